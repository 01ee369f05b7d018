"""What a rounded weight is stored as, kept beside the float weights of a torch model until the file is written.

A model's weights stay floats, on their grids: every pass through it shows the loss of rounding, and nothing that reads
models has to know of quantized ones. The export packs them again, exactly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from backends.quantize.grid import container_bits
from knowledge.techniques.groups import SCALE_BITS
from knowledge.values import LayerFormat


@dataclass(frozen=True)
class Grid:
    """The evenly spaced values of a weight [out, in]: (codes − zeros) · scales / factors.

    Those of a stack of experts have one axis more, in front.
    """

    bits: int
    group_size: int
    accuracy_level: int  # of the product in the file: 4 rounds activations to 8 bits inside the kernel, 0 does not
    scales: Tensor  # [out, groups]
    zeros: Tensor | None = None  # [out, groups]; None: the middle code
    factors: Tensor | None = None  # [in], that inputs are divided by before the product (AWQ)

    @property
    def stored_zeros(self) -> Tensor:
        """Zero points [out, groups] as the file has them: the middle code of its container where none is kept."""
        return torch.full_like(self.scales, 2 ** (self.format.bits - 1)) if self.zeros is None else self.zeros

    @property
    def format(self) -> LayerFormat:
        """How a file stores such a weight."""
        bits = container_bits(self.bits)
        zero = 0 if self.zeros is None else bits
        return LayerFormat(bits=bits, group_size=self.group_size, scale_bits=SCALE_BITS, zero_bits=zero)


Grids = Mapping[str, Grid]  # by the name of the parameter


def save_grids(grids: Grids, path: Path) -> None:
    """Write grids as one safetensors file."""
    tensors: dict[str, Tensor] = {}
    for name, grid in grids.items():
        parts = {"scales": grid.scales, "zeros": grid.zeros, "factors": grid.factors}
        there = {f"{name}|{part}": tensor for part, tensor in parts.items() if tensor is not None}
        tensors |= {key: t.detach().cpu().contiguous().clone() for key, t in there.items()}  # layers share factors
    numbers = ("bits", "group_size", "accuracy_level")
    described = {name: {number: getattr(grid, number) for number in numbers} for name, grid in grids.items()}
    save_file(tensors, path, metadata={"format": "pt", "grids": json.dumps(described)})


def load_grids(path: Path) -> dict[str, Grid]:
    """The grids that `save_grids` wrote; raises OSError, SafetensorError, ValueError or KeyError for a broken file."""
    with safe_open(path, framework="pt") as opened:
        described: dict[str, dict[str, Any]] = json.loads(opened.metadata()["grids"])
        there = set(opened.keys())
        return {
            name: Grid(
                **numbers,
                **{
                    part: opened.get_tensor(f"{name}|{part}")
                    for part in ("scales", "zeros", "factors")
                    if f"{name}|{part}" in there
                },
            )
            for name, numbers in described.items()
        }

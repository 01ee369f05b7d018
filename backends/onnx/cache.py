"""A causal model whose key-value cache goes in and out as tensors, so that one file serves prompt and decoding.

    input_ids [batch, sequence] ──────────┐
    attention_mask [batch, total] ────────┼─► logits [batch, sequence, vocabulary]
    past_key_values.N.key, .value ────────┘   present.N.key, .value [batch, heads, total, width]
      [batch, heads, past, width]             total = past + sequence

With an empty past it is the model without a cache.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from backends.models import InputSpec, exported_experts
from backends.onnx.cache_names import PAST, PRESENT
from knowledge.values import Refusal

if TYPE_CHECKING:
    from backends.models import LoadedModel

PROBED_TOKENS = 3
PARTS = ("key", "value")


class Cached(nn.Module):
    """A causal model with positional inputs: what it reads, then keys and values of every layer, as in `inputs`."""

    def __init__(self, model: LoadedModel, shapes: list[tuple[int, int]]) -> None:
        """`shapes`: heads and width of each layer's keys and of its values, in turn."""
        super().__init__()
        self.module = model.module
        self.names = [spec.name for spec in model.inputs]
        self.placed = "attention_mask" in self.names and _takes(model.module, "position_ids")
        layers = [f"{number}.{part}" for number in range(len(shapes) // 2) for part in PARTS]
        self.inputs = (
            *(_reaching_back(spec) for spec in model.inputs),
            *(
                InputSpec(PAST + layer, "float32", ("batch", heads, "past", width))
                for layer, (heads, width) in zip(layers, shapes, strict=True)
            ),
        )
        self.outputs = ("logits", *(PRESENT + layer for layer in layers))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        from transformers import DynamicCache

        named: dict[str, Any] = dict(zip(self.names, tensors, strict=False))
        past = tensors[len(self.names) :]
        if self.placed:
            named["position_ids"] = positions(named["attention_mask"], past[0].shape[2])
        named["past_key_values"] = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        with exported_experts(self.module):
            result = self.module(**named, use_cache=True)
        return (result.logits, *(t for layer in result.past_key_values.layers for t in (layer.keys, layer.values)))


def positions(mask: Tensor, past: int) -> Tensor:
    """Positions of the new tokens, counted from the first one that the mask lets through, as `generate` counts them.

    mask [batch, past + sequence] -> [batch, sequence]. Padding behind the text changes nothing.

    >>> positions(torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]), 2)
    tensor([[0, 1, 2],
            [2, 3, 4]])
    """
    padding = (mask.cumsum(-1) == 0).sum(-1, keepdim=True)  # in front of the text
    return (torch.arange(past, mask.shape[1], device=mask.device) - padding).clamp(min=0)


def cached(model: LoadedModel) -> Cached | str:
    """The model with its cache as inputs and outputs, or in a clause why it has none that can be exported."""
    if model.output != "logits" or not _takes(model.module, "past_key_values"):
        return f"{type(model.module).__name__} takes no past_key_values"
    shapes = _shapes(model)
    return shapes if isinstance(shapes, str) else Cached(model, shapes)


def no_cache(reason: str) -> Refusal:
    """What is said of a causal model that is exported without a cache."""
    return Refusal(
        technique="export",
        rule="no-key-value-cache",
        observed=f"exported without a key-value cache, because {reason}",
        required="a transformers model whose cache holds keys and values of every layer",
        remedy="decoding with this file computes the whole text again for every token",
    )


def _takes(module: nn.Module, name: str) -> bool:
    return name in inspect.signature(module.forward).parameters


def _reaching_back(spec: InputSpec) -> InputSpec:
    """The mask covers what is cached too."""
    return InputSpec(spec.name, spec.dtype, ("batch", "total")) if spec.name == "attention_mask" else spec


def _shapes(model: LoadedModel) -> list[tuple[int, int]] | str:
    """Heads and width of keys and values, layer by layer, from a pass over three tokens; or why it cannot be told."""
    from transformers import DynamicCache

    tokens = {
        spec.name: torch.ones(spec.sizes(1, PROBED_TOKENS), dtype=torch.int64, device=model.device)
        for spec in model.inputs
    }
    try:
        with torch.no_grad():
            result = model.module(**tokens, past_key_values=DynamicCache(), use_cache=True)
            layers = [(layer.keys, layer.values) for layer in result.past_key_values.layers]
    except Exception as error:  # caches of other kinds fail in ways of their own
        return f"its cache is of another kind ({type(error).__name__}: {str(error).strip()[:100]})"
    found = []
    for tensor in (t for pair in layers for t in pair):
        if not isinstance(tensor, Tensor) or tensor.dim() != 4 or tensor.shape[2] != PROBED_TOKENS:
            return "not every layer caches keys and values of each position"
        found.append((tensor.shape[1], tensor.shape[3]))
    return found or "it returns an empty cache"

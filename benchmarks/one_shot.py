"""One-shot compression of a causal language model's blocks: perplexity, time and memory of each setting.

python -m benchmarks.one_shot --model DIR --calibration FILE.safetensors:KEY --eval FILE.safetensors:KEY
    --settings wanda-50,wanda-2:4,sparsegpt-70,gptq-3-g128,gptq-4-channel,awq-3-g128,round-3-g64,magnitude-50
    [--json]

Windows are int32 [windows, length]. Perplexity is exp of the mean loss over tokens 1… of every window. Linear layers
of the blocks are changed, embeddings and head stay. A row `dense` comes first.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain as joined
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from backends.blocks import find_blocks
from backends.huggingface import check_weights, read_config
from backends.memory import PeakMemory
from backends.models import default_device
from backends.oneshot.blocks import enter
from backends.oneshot.engine import chosen_matrices, compress
from backends.oneshot.feed import held_bytes, layers_width, windows_at_once
from backends.oneshot.matrices import Matrix, layer_paths
from backends.oneshot.methods import (
    Method,
    awq_method,
    gptq_method,
    magnitude_method,
    rounding_method,
    sparsegpt_method,
    wanda_method,
)
from backends.oneshot.readers import readers_together
from benchmarks.show import show
from knowledge.faults import first_line
from knowledge.values import InputError

AWQ_GRID = 20  # exponents that AWQ tries
PRUNING = {"magnitude": magnitude_method, "wanda": wanda_method, "sparsegpt": sparsegpt_method}


def method_of(setting: str, readers: Mapping[str, Sequence[Matrix]]) -> Method:
    """`wanda-50`, `sparsegpt-2:4`, `gptq-3-g128`, `gptq-4-channel`, `gptq-3-g64-sym`. Raises InputError.

    `readers` is what AWQ needs to know of the model: see `readers_together`.
    """
    name, *parts = setting.split("-")
    try:
        if name in PRUNING:
            (amount,) = parts
            kept, _, among = amount.partition(":")
            pattern = (int(kept), int(among)) if among else (0, 0)
            ratio = 0.0 if among else int(amount) / 100
            return PRUNING[name](lambda path: ratio, pattern)
        if name in ("gptq", "awq", "round"):
            bits, group, *more = parts
            size = 0 if group == "channel" else int(group.removeprefix("g"))
            if name == "awq":
                return awq_method(int(bits), size, "sym" in more, AWQ_GRID, clip=True, readers=readers)
            chosen = gptq_method if name == "gptq" else rounding_method
            return chosen(int(bits), size, symmetric="sym" in more)
    except ValueError:
        pass
    raise InputError("settings", setting, "is not understood", "write wanda-50, sparsegpt-2:4, gptq-3-g128 or so")


def load(folder: Path) -> Any:
    """The model in float32. Raises InputError."""
    from transformers import AutoModelForCausalLM

    read_config(folder)
    check_weights(folder)
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(default_device()).eval()
    except ValueError as error:
        problem = f"is no causal language model: {first_line(error)}"
        raise InputError("model", folder, problem, "give one that writes text") from error


def windows(place: str) -> Tensor:
    """Token windows of FILE.safetensors:KEY, int64 [windows, length]. Raises InputError."""
    file, _, key = place.rpartition(":")
    try:
        with safe_open(file, framework="pt") as opened:
            found: Tensor = opened.get_tensor(key)
    except (OSError, SafetensorError) as error:
        remedy = "give FILE.safetensors:KEY, integers [windows, length]"
        raise InputError("windows", place, f"cannot be read: {first_line(error)}", remedy) from error
    return found.long()


@torch.no_grad()
def perplexity(model: nn.Module, ids: Tensor, batch: int = 16) -> float:
    """exp of the mean loss over tokens 1… of every window."""
    total = 0.0
    for part in ids.to(next(model.parameters()).device).split(batch):
        logits = model(input_ids=part, use_cache=False).logits
        total += float(F.cross_entropy(logits[:, :-1].flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
    return float(torch.tensor(total / (ids.numel() - len(ids)), dtype=torch.float64).exp())


def run(model: Any, calibration: Tensor, setting: str) -> None:
    """Compress the dense layers and experts of every block, in place.

    Raises InputError for an unknown setting, and for a model that the engine does not take.
    """
    path, blocks = find_blocks(model, mixed=True)
    chosen = chosen_matrices(model, path, layer_paths(blocks, path))
    method = method_of(setting, readers_together(joined.from_iterable(chosen.values())))
    width = layers_width(blocks, getattr(model.config, "num_experts_per_tok", None) or 0)
    size = windows_at_once(*calibration.shape, width, method, [model.device], held_bytes(model.parameters()))
    parts = calibration.to(model.device).split(size)
    entries = [enter(model, partial(model, input_ids=part, use_cache=False)) for part in parts]
    for _ in compress(list(blocks), entries, chosen, method, model.config):
        pass


def main() -> None:
    """Print the rows; of bad input, one line on stderr, and exit 2."""
    try:
        show(rows())
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def rows() -> list[dict[str, Any]]:
    """A row for each setting that the command line names. Raises InputError."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "calibration", "eval", "settings"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    settings = asked.settings.split(",")
    for setting in settings:
        method_of(setting, {})  # all are understood before the first one runs
    original, ids = load(Path(asked.model)), windows(asked.eval)
    calibration = windows(asked.calibration)
    found: list[dict[str, Any]] = [{"setting": "dense", "perplexity": perplexity(original, ids)}]
    found[0] |= {"seconds": 0.0, "peak_memory_bytes": _peak(original.device)()}
    for setting in settings:
        model = copy.deepcopy(original)
        peak, begin = _peak(model.device), time.perf_counter()
        run(model, calibration, setting)
        used = peak()  # waits until all is computed
        seconds = time.perf_counter() - begin
        row = {"setting": setting, "perplexity": perplexity(model, ids), "seconds": seconds}
        found.append(row | {"peak_memory_bytes": used})
    return found


def _peak(device: torch.device) -> Callable[[], int]:
    """Tells the peak of memory from now on: of a GPU what tensors take of it, else what is resident here."""
    if device.type != "cuda":
        peak = PeakMemory()
        return lambda: peak.bytes
    torch.cuda.reset_peak_memory_stats(device)

    def used() -> int:
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)

    return used


if __name__ == "__main__":
    main()

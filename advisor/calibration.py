"""This machine as a target: measured rates, written as a YAML file like those of `knowledge/targets`."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml

from advisor.progress import Progress, silent
from knowledge.conditions import Operator
from knowledge.files import replacing
from knowledge.load import load_target
from knowledge.names import nearest
from knowledge.places import config_folder
from knowledge.schema import Target
from knowledge.values import InputError

if TYPE_CHECKING:
    from backends.calibrate import Calibration

CALIBRATION_SCHEMA = "advisor.calibration/1"
TARGET_ID = "this-machine"
CLASSES: tuple[str, ...] = get_args(Target.model_fields["target_class"].annotation)
DISTINCT = 1.5  # times faster than fp32 products: from here on a target is said to accelerate a format
LEAST_US = 0.01  # no start is free
OPERATORS = get_args(Operator)

# figure: kind of work, what was measured. Gigabytes per second, microseconds, and one rate divided by another.
RATES = {
    "bandwidth_gbps": ("memory", "products of 1 and 8 rows with weights of 64 MB together"),
    "cache_gbps": ("cache", "products of 1 row with weights of 2 and 4 MB together"),
    "int8_cache_gbps": ("integer cache", "INT8 products of 1 row with 256 × 256 and 512 × 512 weights"),
    "recurrent_gbps": ("reread", "LSTM layers of 64 to 256 units over 8 and 16 steps"),
    "elementwise_gbps": ("plain", "transformer blocks of 64 to 256 columns, what is left beside the other figures"),
    "function_gbps": ("function", "LayerNorm, GELU and softmax on 128 × 192 and 4 × 128 × 128"),
    "quantize_gbps": ("quantize", "INT8 products and transformer blocks, what is left beside the other figures"),
}
OVERHEADS = {
    "node_overhead_us": ("start", "chains of 4 and 16 products of 16 × 64 with 64 × 64"),
    "int8_overhead_us": ("integer start", "chains of INT8 products, and transformer blocks in INT8"),
    "light_overhead_us": ("light", "chains of sums, norms and softmaxes of 16 numbers, and transformer blocks"),
    "step_overhead_us": ("step", "LSTM layers of 64 to 256 units over 8 and 16 steps"),
    "request_overhead_us": ("request", "calls of chains of different lengths, extended to none"),
}
FACTORS = {
    "int8_factor": ("flop", "integer flop", "INT8 products of 1 to 128 rows against the same in fp32"),
    "int8_conv_factor": ("flop", "integer conv flop", "INT8 convolutions of 16 to 64 channels against fp32 arithmetic"),
    "depthwise_factor": ("flop", "depthwise flop", "3 × 3 depthwise convolutions of 32 to 128 channels against others"),
    "int8_depthwise_factor": ("depthwise flop", "integer depthwise flop", "the same in INT8, windows counted apart"),
}


def calibrate_machine(
    out: Path | None = None,
    *,
    threads: int = 1,
    target_class: str = "server",
    max_size_bytes: int | None = None,
    max_memory_bytes: int | None = None,
    rounds: int | None = None,
    progress: Progress = silent,
) -> tuple[Target, Path, Calibration]:
    """Measure this machine and write it as the target `this-machine`; returns it, its file and what was measured.

    Without `out` the file goes where the user's own targets lie. Raises InputError on a class that does not exist, on
    more threads than there are processors, and on a file that cannot be written.
    """
    from backends.calibrate import ROUNDS, calibrate

    path = out or default_file()
    _check(path, threads, target_class)
    limits = {"max_size_bytes": max_size_bytes, "max_memory_bytes": max_memory_bytes}
    given = {name: limit for name, limit in limits.items() if limit}
    try:
        with replacing(path) as temporary:  # opened first: what cannot be written is not worth half a minute
            found = calibrate(threads, rounds=rounds or ROUNDS, progress=progress)
            temporary.write_text(target_yaml(found, threads, target_class, given))
            target = load_target(temporary)  # what cannot be read never replaces what could
    except OSError as error:
        raise InputError("out", path, f"cannot be written ({error.strerror})", "name another file with --out") from None
    return target, path, found


def default_file() -> Path:
    """Where the user's own targets lie."""
    return config_folder() / "targets" / f"{TARGET_ID}.yaml"


def _check(path: Path, threads: int, target_class: str) -> None:
    if target_class not in CLASSES:
        raise InputError("class", target_class, "unknown class", nearest(target_class, CLASSES))
    if threads > (processors := os.cpu_count() or 1):
        raise InputError("threads", threads, "more than this machine has processors", f"at most {processors}")
    if path.suffix not in (".yaml", ".yml"):
        raise InputError("out", path, "is not the name of a YAML file", f"write {path}.yaml")


def target_yaml(found: Calibration, threads: int, target_class: str, limits: dict[str, int]) -> str:
    """The target file: each figure with what was measured for it."""
    from backends.calibrate import kernels
    from backends.processor import cpu_facts

    where = f"{cpu_facts()[0]}, {threads} thread{'s' if threads > 1 else ''}"
    runtime = f"ONNX Runtime {importlib.metadata.version('onnxruntime')}"
    figures = figures_of(found)
    entry: dict[str, Any] = {
        "id": TARGET_ID,
        "about": f"This machine ({where}, {runtime}), measured on {datetime.date.today().isoformat()}",
        "class": target_class,
        "threads": threads,
    }
    accelerates = {"int8_dot": figures["int8_factor"], "fp16": figures["fp16_factor"]}
    if faster := {name: figure["source"] for name, figure in accelerates.items() if figure["value"] >= DISTINCT}:
        entry["accelerates"] = faster
    if present := sorted(kernels() & set(OPERATORS)):
        entry["operators"] = dict.fromkeys(present, f"measured: {runtime} lists a kernel for the CPU")
    entry |= figures
    entry |= {name: {"value": limit, "source": "given on the command line"} for name, limit in limits.items()}
    return yaml.safe_dump(entry, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000)


def figures_of(found: Calibration) -> dict[str, dict[str, Any]]:
    """The figures of a target by name."""
    prices = found.prices
    values: dict[str, tuple[float, str]] = {
        "gflops_fp32": (found.giga_per_second("flop"), "fp32 products of 1 to 128 rows with 64 to 512 columns"),
        "efficiency": (1.0, "the arithmetic rate above is what dense layers reach"),
        "fp16_factor": (found.fp16_factor, "products of 128 rows with 384 × 384 weights in fp16 against fp32"),
    }
    for name, (unit, other, what) in FACTORS.items():
        values[name] = prices[unit] / prices[other], what
    for name, (kind, what) in RATES.items():
        values[name] = found.giga_per_second(kind), what
    for name, (kind, what) in OVERHEADS.items():
        values[name] = max(prices[kind], LEAST_US), what
    windows = "INT8 convolutions 1 × 1 against 3 × 3"
    values["int8_window_ns"] = max(1e3 * prices["window"], LEAST_US), windows
    values["cache_bytes"] = found.cache_bytes, "products of 8 rows: where 2 to 64 MB of weights slow them down"
    if found.channel_block > 1:
        values["channel_block"] = found.channel_block, "convolutions of 32 to 48 channels"
    return {name: {"value": float(f"{v:.4g}"), "source": f"measured: {what}"} for name, (v, what) in values.items()}


def to_json(target: Target, path: Path, found: Calibration) -> dict[str, Any]:
    return {
        "schema": CALIBRATION_SCHEMA,
        "file": str(path),
        "use": TARGET_ID if path == default_file() else str(path),
        "target": target.model_dump(mode="json", by_alias=True, exclude_none=True),
        "probes": found.probes,
        "misfit": found.misfit,
        "seconds": found.seconds,
    }

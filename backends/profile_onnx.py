"""An ONNX file as a table: which initializer is which layer's weight, in what format, and how often it is used.

    operator                                       row
    Conv, ConvInteger, QLinearConv                 conv         bias and quantized weights through DequantizeLinear
    Gemm, MatMul, MatMulInteger, MatMulNBits, …    linear       a bias added behind a MatMul is its bias
    MatMul or Gather of [experts, out, in]         experts
    Gather, GatherBlockQuantized by computed ids   embedding
    LSTM, GRU, DynamicQuantizeLSTM                 lstm         W and R
    …Normalization, Mul by a vector                norm
    everything else that is stored                 other        so that the bytes add up

Rows are called by their initializers, without a final `.weight`: the torch table's paths, where names were kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from backends.onnx import graph as graphs
from backends.onnx_rows import Reader
from backends.onnx_shapes import infer
from knowledge.layers import Family, LayerTable, ModelInfo
from knowledge.roles import assign, completed
from knowledge.tasks import TASKS, check_told, own_task
from knowledge.values import InputError, Workload

SIGNS = {"experts": "moe", "lstm": "rnn", "conv": "cnn"}  # kind of layer -> family
VISION, SEQUENCE = "image-classification", "sequence-classification"


def profile_onnx(path: Path, workload: Workload | None = None) -> LayerTable:
    """Read a file's layers without running it; stored bytes of the table are those of the file's tensors.

    Positions are per sample of the workload's shape, where shape inference and the position embedding get that far.
    `info.task` is what inputs and outputs tell, empty where they tell nothing. Raises InputError for a file that is
    missing or no ONNX file.
    """
    workload = workload or Workload()
    layers = _profile(Path(path), workload)
    info = layers.info
    if 0 < info.max_length < info.seq_len:  # only now is it known how far the sample may reach
        layers = _profile(Path(path), workload.model_copy(update={"seq_len": info.max_length}))
    return layers


def _profile(path: Path, workload: Workload) -> LayerTable:
    model = graphs.load(path)
    sample = infer(model, workload)
    rows = Reader(model, sample).rows()
    hints = assign([{**row, "path": hint} for row, hint in ((row, row.pop("hint", row["path"])) for row in rows)])
    named = [{**hint, "path": row["path"]} for row, hint in zip(rows, hints, strict=True)]
    return completed(LayerTable.of(named, _info(model, path, hints, sample)))


def told(layers: LayerTable, path: Path, task: str | None, arch: str | None) -> LayerTable:
    """The table with the task and the family that were named; `fidelity` names none.

    Raises InputError where the file holds layers of other families only, and where nothing tells its task.
    """
    if arch is not None:
        signs = {kind: family for kind, family in SIGNS.items() if kind in layers.kind}
        if arch not in signs.values() and (signs or layers.info.family == "transformer"):
            check_told("arch", arch, layers.info.family, str(path))
        layers = layers.with_info(family=arch)
    own = own_task(task) or layers.info.task or task
    if not own:
        remedy = f"add --task {' | '.join(TASKS)}"
        raise InputError("task", "", f"{path} does not say what it is for", remedy)
    return layers.with_info(task=own)


def _info(model: ir.Model, path: Path, rows: list[dict[str, Any]], sample: dict[str, Any]) -> ModelInfo:
    kinds = {row["kind"] for row in rows}
    tokens = "seq_len" in sample and any(_is_token_input(v) for v in model.graph.inputs)
    family: Family = "cnn"
    if "experts" in kinds:
        family = "moe"
    elif "lstm" in kinds:
        family = "rnn"
    elif tokens or any(row["role"].startswith("attention") for row in rows):
        family = "transformer"
    output = model.graph.outputs[0]
    sizes = list(output.shape) if output.shape is not None else []
    last = sizes[-1] if sizes and isinstance(sizes[-1], int) else 0
    task = _task(family, tokens, len(sizes), last, rows)
    subfamilies = {
        "cnn": "residual-cnn" if any(n.op_type == "Add" for n in model.graph) else "plain-cnn",
        "rnn": "lstm",
        "moe": "moe",
    }
    vision = "vision-transformer" if task == VISION else "decoder" if task == "causal-lm" else "encoder"
    if any(row["kind"] == "conv" and 1 < row.get("groups", 1) == row["inputs"] for row in rows):
        subfamilies["cnn"] = "depthwise-cnn"
    return ModelInfo(
        name=path.stem,
        family=family,
        task=task,
        subfamily=subfamilies.get(family, vision),
        classes=last if task.endswith("-classification") else 0,
        max_length=min((r["outputs"] for r in rows if r["role"] == "position_embedding"), default=0) if tokens else 0,
        seq_len=sample.get("seq_len", 0),
        image_size=sample.get("image_size", (0, 0, 0)),
    )


def _is_token_input(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.INT64, ir.DataType.INT32)


def _task(family: Family, tokens: bool, rank: int, last: int, rows: list[dict[str, Any]]) -> str:
    """What the output's shape tells: scores over the vocabulary at every position, or over classes; else nothing."""
    vocabulary = max((row["outputs"] for row in rows if row["role"] == "token_embedding"), default=0)
    if tokens and rank == 3 and last == vocabulary > 0:
        return "causal-lm"
    if rank != 2 or (tokens and not any(row["role"] == "head" for row in rows)):
        return ""  # vectors, perhaps
    return "text-classification" if tokens else SEQUENCE if family == "rnn" else VISION

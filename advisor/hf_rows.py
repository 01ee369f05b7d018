"""Rows of a transformer from the names and shapes of its stored tensors.

Paths are those of the module in memory where a checkpoint's names differ from them in a known way: experts stored one
by one become one stack, `gamma` and `beta` become `weight` and `bias`, the model's prefix comes or goes with its task.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from advisor.hf_facts import Config, is_tied
from advisor.hf_files import Shapes, number
from knowledge.configs import HEADS, NO_PARAMETER
from knowledge.layers import ModelInfo
from knowledge.shards import REMEDY
from knowledge.values import InputError

Row = dict[str, Any]

_PREFIXES = {
    "gpt2": "transformer",
    "bert": "bert",
    "roberta": "roberta",
    "distilbert": "distilbert",
    "vit": "vit",
    "deit": "deit",
}
_POOLED = {
    "bert": "pooler.dense",
    "roberta": "pooler.dense",
    "xlm-roberta": "pooler.dense",
    "camembert": "pooler.dense",
}
_EXPERT = re.compile(
    r"^(?P<above>.+?)\.experts\.(?P<number>\d+)\.(?P<name>w1|w2|w3|gate_proj|up_proj|down_proj)\.weight$"
)
_EMBEDDINGS = re.compile(r"(^|\.)(\w*_embeddings?|embed_(?!out)\w+|wte|wpe|tok_embeddings|embeddings?|embed_in)$")
_HEAD_NORMS = {"q_norm", "query_norm", "k_norm", "key_norm"}  # each head is scaled on its own
_RENAMED = {  # stored name -> name in memory, by model_type
    "gpt_neox": (("embed_out.", "lm_head."),),
    "vit": (
        ("vit.encoder.layer.", "vit.layers."),
        (".attention.attention.query.", ".attention.q_proj."),
        (".attention.attention.key.", ".attention.k_proj."),
        (".attention.attention.value.", ".attention.v_proj."),
        (".attention.output.dense.", ".attention.o_proj."),
        (".intermediate.dense.", ".mlp.fc1."),
        (".output.dense.", ".mlp.fc2."),
    ),
}
_TRANSPOSED = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}  # dense weights lie [inputs, outputs]


def rows_of(shapes: Shapes, config: Config, info: ModelInfo, seq_len: int) -> list[Row]:
    """One row per weight, embeddings first, then block by block. Raises InputError where a tensor fits no layer."""
    tensors = _as_in_memory(shapes, config, info.task)
    tokens, patches = _positions(info, config, seq_len)
    biases = {name.removesuffix(".bias"): shape for name, shape in tensors.items() if name.endswith(".bias")}
    rows = []
    for name, shape in tensors.items():
        path = name.removesuffix(".weight")
        if name.endswith(".bias"):
            if f"{name.removesuffix('.bias')}.weight" not in tensors:
                rows.append({"path": name, "kind": "other", "outputs": math.prod(shape)})
            continue
        row = _row(path, name, shape, config)
        if path in biases and name.endswith(".weight"):
            row["bias"] = math.prod(biases[path])
        rows.append(row)
    rows.sort(key=_order)
    _tie_head(rows, config, info)
    _pooler(rows, config, info)
    for row in rows:
        row["positions"] = _uses(row, info, tokens, patches)
    return rows


def _as_in_memory(shapes: Shapes, config: Config, task: str) -> Shapes:
    """The tensors that the module for `task` has, under its names."""
    named: Shapes = {}
    for name, shape in shapes.items():
        mask = len(shape) == 4 and name.endswith(("attn.bias", "attention.bias"))
        if not mask and not NO_PARAMETER.search(name):
            name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
            for old, new in _RENAMED.get(str(config.get("model_type")), ()):
                name = name.replace(old, new)
            named[name] = shape
    top = _PREFIXES.get(str(config.get("model_type")), "")
    if top and task == "embedding":
        named = {n.removeprefix(f"{top}."): s for n, s in named.items() if not n.startswith(HEADS)}
    elif task == "embedding":
        named = {n.removeprefix("model."): s for n, s in named.items() if not n.startswith(HEADS)}
    elif top and not any(n.startswith(f"{top}.") for n in named):
        named = {n if n.startswith(HEADS) else f"{top}.{n}": s for n, s in named.items()}
    return _stacked_experts(named)


def _stacked_experts(shapes: Shapes) -> Shapes:
    """Experts stored one by one as two stacks: [experts, 2·ffn, width] and [experts, width, ffn], as in memory."""
    stacked: Shapes = {}
    counts: dict[str, int] = {}
    single: Shapes = {}
    for name, shape in shapes.items():
        found = _EXPERT.match(name)
        if found is None:
            moved = name.replace(".block_sparse_moe.", ".mlp.")
            stacked[moved] = shape
            continue
        above = found["above"].replace(".block_sparse_moe", ".mlp")
        counts[above] = max(counts.get(above, 0), int(found["number"]) + 1)
        single[f"{above}/{'down' if found['name'] in ('w2', 'down_proj') else 'up'}"] = shape
    for above, count in counts.items():
        up = single.get(f"{above}/up", ())
        if len(up) != 2:
            raise InputError("model", f"{above}.experts", "the up projections are missing, or no matrices", REMEDY)
        ffn, width = up
        stacked[f"{above}.experts.gate_up_proj"] = (count, 2 * ffn, width)
        stacked[f"{above}.experts.down_proj"] = (count, width, ffn)
    return stacked


def _row(path: str, name: str, shape: tuple[int, ...], config: Config) -> Row:
    if not name.endswith(".weight"):
        if len(shape) == 3 and "experts" in path.split("."):
            return {"path": path, "kind": "experts", "outputs": shape[1], "inputs": shape[2], "copies": shape[0]}
        sizes = [n for n in shape if n != 1] or [1]
        return {"path": path, "kind": "other", "outputs": sizes[0], "inputs": math.prod(sizes[1:])}
    if len(shape) == 1:
        return {"path": path, "kind": "norm", "outputs": shape[0]}
    if len(shape) == 2 and _EMBEDDINGS.search(path):
        return {"path": path, "kind": "embedding", "outputs": shape[0], "inputs": shape[1]}
    if len(shape) == 2:
        outputs, inputs = shape[::-1] if _is_transposed(path, config) else shape
        return {"path": path, "kind": "linear", "outputs": outputs, "inputs": inputs}
    if not 3 <= len(shape) <= 5:
        raise InputError(
            "model", name, f"a tensor of shape {list(shape)} fits no known layer", "load it in a factory of your own"
        )
    return {"path": path, "kind": "conv", "outputs": shape[0], "inputs": shape[1], "kernel": math.prod(shape[2:])}


def _is_transposed(path: str, config: Config) -> bool:
    return config.get("model_type") in _TRANSPOSED and path.rpartition(".")[2] in ("c_attn", "c_proj", "c_fc", "q_attn")


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Embeddings, blocks by number, the rest; names in between."""
    parts = [(int(p), "") if p.isdigit() else (-1, p) for p in row["path"].split(".")]
    numbers = [n for n, _ in parts if n >= 0]
    place = 0 if "embed" in row["path"] or row["kind"] == "embedding" else 1 if numbers else 2
    return place, numbers[:1], parts


def _tie_head(rows: list[Row], config: Config, info: ModelInfo) -> None:
    """The head of a language model whose matrix is the token embedding's: a row of its own that owns nothing."""
    if info.task != "causal-lm":
        return
    tokens = next((r for r in rows if r["kind"] == "embedding" and r["outputs"] == info.vocab_size), None)
    head = next((r for r in rows if r["path"] == "lm_head"), None)
    if head is None and tokens is not None:
        sizes = {"outputs": tokens["outputs"], "inputs": tokens["inputs"]}
        rows.append({"path": "lm_head", "kind": "linear", "tied_to": tokens["path"], **sizes})
    elif head is not None and tokens is None:
        top = "transformer.wte" if config.get("model_type") == "gpt2" else "model.embed_tokens"
        rows.insert(0, {"path": top, "kind": "embedding", "outputs": head["outputs"], "inputs": head["inputs"]})
        head["tied_to"] = top
    elif head is not None and tokens is not None and is_tied(config):
        head["tied_to"] = tokens["path"]


def _pooler(rows: list[Row], config: Config, info: ModelInfo) -> None:
    """An embedding model pools by the mean: its own pooler is there, stored or not, but no output reads it."""
    if info.task != "embedding":
        return
    path = _POOLED.get(str(config.get("model_type")))
    if path and not any(r["path"] == path for r in rows):
        rows.append(
            {
                "path": path,
                "kind": "linear",
                "outputs": info.hidden_size,
                "inputs": info.hidden_size,
                "bias": info.hidden_size,
            }
        )
    for row in rows:
        if "pooler" in row["path"].split("."):
            row["exported"] = False


def _positions(info: ModelInfo, config: Config, seq_len: int) -> tuple[int, int]:
    """(tokens, patches) of one sample."""
    if info.vocab_size:
        return seq_len, 0
    _, height, width = info.image_size
    patch = max(number(config, "patch_size"), 1)
    patches = (height // patch) * (width // patch)
    return patches + (2 if config.get("model_type") == "deit" else 1), patches


def _uses(row: Row, info: ModelInfo, tokens: int, patches: int) -> float:
    """Times that each weight is used per sample."""
    if row["kind"] in ("embedding", "other"):
        return 0.0
    if row["kind"] == "conv":
        return float(patches or tokens)
    if row["kind"] == "experts":
        return tokens * info.experts_per_token / max(int(row["copies"]), 1)
    parts = row["path"].split(".")
    if row["kind"] == "norm" and parts[-1] in _HEAD_NORMS and row["outputs"] == info.head_dim:
        return float(tokens * (info.heads if parts[-1].startswith("q") else info.kv_heads))
    inside = any(p.isdigit() for p in parts)
    once = "pooler" in parts or (
        info.task.endswith("-classification") and {"classifier", "pre_classifier"} & set(parts)
    )
    return 1.0 if once and not inside else float(tokens)

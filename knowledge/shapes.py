"""Tables of well-known architectures from their sizes: the rows that the real module has, without building it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from knowledge.layers import LayerTable, ModelInfo
from knowledge.roles import assign, completed

Row = dict[str, Any]
Sizes = Mapping[str, Any]
Builder = Callable[[Sizes, Mapping[str, Any]], LayerTable]


def linear(path: str, outputs: int, inputs: int, positions: float, bias: bool = True) -> Row:
    return {
        "path": path, "kind": "linear", "outputs": outputs, "inputs": inputs, "positions": float(positions),
        "bias": outputs if bias else 0,
    }  # fmt: skip


def norm(path: str, width: int, positions: float, bias: bool = True) -> Row:
    return {"path": path, "kind": "norm", "outputs": width, "positions": float(positions), "bias": width if bias else 0}


def embedding(path: str, entries: int, width: int) -> Row:
    return {"path": path, "kind": "embedding", "outputs": entries, "inputs": width}


def _table(rows: list[Row], info: Mapping[str, Any], sizes: Sizes) -> LayerTable:
    known = (
        "vocab_size",
        "hidden_size",
        "ffn_size",
        "heads",
        "blocks",
        "experts",
        "experts_per_token",
        "classes",
        "max_length",
    )
    facts: dict[str, Any] = {name: sizes[name] for name in known if name in sizes}
    if "heads" in sizes:
        facts |= {"kv_heads": sizes.get("kv_heads", sizes["heads"]), "head_dim": sizes["hidden_size"] // sizes["heads"]}
    if "image" in sizes:
        facts["image_size"] = (sizes["channels"], sizes["image"], sizes["image"])
    else:
        facts["seq_len"] = sizes["seq_len"]
    return completed(LayerTable.of(assign(rows, facts.get("classes", 0)), ModelInfo(**{**facts, **info})))


# -- transformers ----------------------------------------------------------------------------------


def bert(sizes: Sizes, info: Mapping[str, Any]) -> LayerTable:
    """BertForSequenceClassification with `classes`, BertModel without."""
    width, tokens, classes = sizes["hidden_size"], sizes["seq_len"], sizes["classes"]
    top = "bert." if classes else ""
    rows = [
        embedding(f"{top}embeddings.word_embeddings", sizes["vocab_size"], width),
        embedding(f"{top}embeddings.position_embeddings", sizes["max_length"], width),
        embedding(f"{top}embeddings.token_type_embeddings", 2, width),
        norm(f"{top}embeddings.LayerNorm", width, tokens),
    ]
    for block in range(sizes["blocks"]):
        here = f"{top}encoder.layer.{block}"
        rows += [linear(f"{here}.attention.self.{name}", width, width, tokens) for name in ("query", "key", "value")]
        rows += [linear(f"{here}.attention.output.dense", width, width, tokens)]
        rows += [norm(f"{here}.attention.output.LayerNorm", width, tokens)]
        rows += [linear(f"{here}.intermediate.dense", sizes["ffn_size"], width, tokens)]
        rows += [linear(f"{here}.output.dense", width, sizes["ffn_size"], tokens)]
        rows += [norm(f"{here}.output.LayerNorm", width, tokens)]
    # a model of vectors pools by the mean: nothing reads the pooler
    rows.append({**linear(f"{top}pooler.dense", width, width, 1), "exported": bool(classes)})
    if classes:
        rows.append(linear("classifier", classes, width, 1))
    return _table(rows, info, sizes)


def llama(sizes: Sizes, info: Mapping[str, Any]) -> LayerTable:
    """LlamaForCausalLM: rotary positions, grouped queries, gated feed-forward, no biases, an untied head."""
    return _decoder(sizes, info, _gated_ffn)


def mixtral(sizes: Sizes, info: Mapping[str, Any]) -> LayerTable:
    """MixtralForCausalLM: Llama with `experts` feed-forward layers, `experts_per_token` of them for each token."""
    return _decoder(sizes, info, _mixture)


def _decoder(sizes: Sizes, info: Mapping[str, Any], ffn: Callable[[str, Sizes], Iterator[Row]]) -> LayerTable:
    width, tokens = sizes["hidden_size"], sizes["seq_len"]
    kv = width // sizes["heads"] * sizes["kv_heads"]
    rows = [embedding("model.embed_tokens", sizes["vocab_size"], width)]
    for block in range(sizes["blocks"]):
        here = f"model.layers.{block}"
        for name, outputs in (("q", width), ("k", kv), ("v", kv), ("o", width)):
            rows.append(linear(f"{here}.self_attn.{name}_proj", outputs, width, tokens, bias=False))
        rows += ffn(here, sizes)
        rows += [norm(f"{here}.{name}_layernorm", width, tokens, bias=False) for name in ("input", "post_attention")]
    rows += [
        norm("model.norm", width, tokens, bias=False),
        linear("lm_head", sizes["vocab_size"], width, tokens, bias=False),
    ]
    return _table(rows, info, sizes)


def _gated_ffn(here: str, sizes: Sizes) -> Iterator[Row]:
    width, ffn, tokens = sizes["hidden_size"], sizes["ffn_size"], sizes["seq_len"]
    for name, outputs, inputs in (("gate", ffn, width), ("up", ffn, width), ("down", width, ffn)):
        yield linear(f"{here}.mlp.{name}_proj", outputs, inputs, tokens, bias=False)


def _mixture(here: str, sizes: Sizes) -> Iterator[Row]:
    width, ffn, tokens, experts = sizes["hidden_size"], sizes["ffn_size"], sizes["seq_len"], sizes["experts"]
    yield linear(f"{here}.mlp.gate", experts, width, tokens, bias=False)
    stack = {"kind": "experts", "copies": experts, "positions": tokens * sizes["experts_per_token"] / experts}
    yield {**stack, "path": f"{here}.mlp.experts.gate_up_proj", "outputs": 2 * ffn, "inputs": width}
    yield {**stack, "path": f"{here}.mlp.experts.down_proj", "outputs": width, "inputs": ffn}


def vit(sizes: Sizes, info: Mapping[str, Any]) -> LayerTable:
    """ViTForImageClassification: square patches, a class token, learned positions."""
    width, ffn, side = sizes["hidden_size"], sizes["ffn_size"], sizes["image"] // sizes["patch"]
    tokens = side * side + 1
    rows: list[Row] = [
        {"path": "vit.embeddings.cls_token", "kind": "other", "outputs": width},
        {"path": "vit.embeddings.position_embeddings", "kind": "other", "outputs": tokens, "inputs": width},
        conv("vit.embeddings.patch_embeddings.projection", width, sizes["channels"], sizes["patch"], side, bias=True),
    ]
    for block in range(sizes["blocks"]):
        here = f"vit.layers.{block}"
        rows += [linear(f"{here}.attention.{name}_proj", width, width, tokens) for name in "qkvo"]
        rows += [norm(f"{here}.layernorm_before", width, tokens), norm(f"{here}.layernorm_after", width, tokens)]
        rows += [linear(f"{here}.mlp.fc1", ffn, width, tokens), linear(f"{here}.mlp.fc2", width, ffn, tokens)]
    rows += [norm("vit.layernorm", width, tokens), linear("classifier", sizes["classes"], width, 1)]
    return _table(rows, info, sizes)


# -- others ----------------------------------------------------------------------------------------


def conv(path: str, outputs: int, inputs: int, kernel: int, side: int, bias: bool = False) -> Row:
    """A square convolution whose output is `side` pixels wide and high."""
    return {
        "path": path, "kind": "conv", "outputs": outputs, "inputs": inputs, "kernel": kernel * kernel,
        "positions": float(side * side), "bias": outputs if bias else 0,
    }  # fmt: skip


def _conv_norm(path: str, norm_path: str, outputs: int, inputs: int, kernel: int, side: int) -> list[Row]:
    statistics = {**norm(norm_path, outputs, side * side), "buffers": 2 * outputs, "folds_into": path}
    return [conv(path, outputs, inputs, kernel, side), statistics]


def resnet(sizes: Sizes, info: Mapping[str, Any]) -> LayerTable:
    """ResNet of bottleneck blocks, as torchvision builds and names it."""
    width, side = sizes["width"], -(-sizes["image"] // 2)
    rows = _conv_norm("conv1", "bn1", width, sizes["channels"], 7, side)
    side, inputs = -(-side // 2), width
    for stage, blocks in enumerate(sizes["stages"]):
        inner = width * 2**stage
        for block in range(blocks):
            here = f"layer{stage + 1}.{block}"
            after = -(-side // 2) if stage and not block else side
            rows += _conv_norm(f"{here}.conv1", f"{here}.bn1", inner, inputs, 1, side)
            rows += _conv_norm(f"{here}.conv2", f"{here}.bn2", inner, inner, 3, after)
            rows += _conv_norm(f"{here}.conv3", f"{here}.bn3", 4 * inner, inner, 1, after)
            if not block:
                rows += _conv_norm(f"{here}.downsample.0", f"{here}.downsample.1", 4 * inner, inputs, 1, after)
            side, inputs = after, 4 * inner
    rows.append(linear("fc", sizes["classes"], inputs, 1))
    facts = {"blocks": sum(sizes["stages"]), "hidden_size": width}
    return _table(rows, info, {**sizes, **facts})


def lstm(sizes: Sizes, info: Mapping[str, Any]) -> LayerTable:
    """LSTM layers over feature vectors, a dense layer on the last step."""
    hidden, steps = sizes["hidden_size"], sizes["seq_len"]
    rows: list[Row] = []
    for layer in range(sizes["layers"]):
        inputs = hidden if layer else sizes["features"]
        for name, width in (("ih", inputs), ("hh", hidden)):
            row = {"path": f"lstm.weight_{name}_l{layer}", "kind": "lstm", "outputs": 4 * hidden, "inputs": width}
            rows.append({**row, "bias": 4 * hidden, "positions": float(steps)})
    rows.append(linear("fc", sizes["classes"], hidden, 1))
    return _table(rows, info, {**sizes, "blocks": sizes["layers"]})


BUILDERS: dict[str, Builder] = {
    "bert": bert,
    "llama": llama,
    "mixtral": mixtral,
    "vit": vit,
    "resnet": resnet,
    "lstm": lstm,
}

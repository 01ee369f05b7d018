"""What a layer does and which repeated block it is in, read from its path, its kind and its place in the table.

Whole path parts are compared, never substrings: `layer.1` is not in `layer.10`.

    model.layers.3.self_attn.q_proj            attention_q    block 3     Llama, Mixtral
    transformer.h.0.mlp.c_proj                 ffn_down       block 0     GPT-2
    encoder.layer.11.attention.output.dense    attention_o    block 11    BERT
    stem.0                                     stem           block -1    the first convolution
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from knowledge.layers import LayerTable

Row = dict[str, Any]


def _names(**groups: str) -> dict[str, str]:
    return {name: role for role, names in groups.items() for name in names.split()}


# last part of a dense layer's path, wherever it stands
_ANYWHERE = _names(
    attention_q="q_proj query q_lin to_q q_a_proj q_b_proj",
    attention_k="k_proj key k_lin to_k",
    attention_v="v_proj value v_lin to_v",
    attention_qkv="c_attn qkv qkv_proj query_key_value in_proj in_proj_weight Wqkv",
    attention_o="o_proj out_lin to_out",
    ffn_up="up_proj c_fc fc1 lin1 w3 wi wi_1 linear1 dense_h_to_4h gate_up_proj",
    ffn_gate="gate_proj w1 wi_0",
    ffn_down="down_proj fc2 lin2 w2 linear2 dense_4h_to_h",
    router="router",
)
# last part of a dense layer's path, below an attention or a feed-forward module
_IN_ATTENTION = _names(
    attention_q="q wq", attention_k="k wk", attention_v="v wv", attention_o="o wo dense proj out_proj c_proj output"
)
_IN_FFN = _names(ffn_up="up dense_in", ffn_gate="gate", ffn_down="down wo c_proj dense_out")
_ATTENTION = {"attention", "attn", "self_attn", "self_attention", "SelfAttention", "attn1", "mha"}
_FFN = {"mlp", "ffn", "ff", "feed_forward", "feedforward", "DenseReluDense", "experts"}
_MIXTURE = {"mlp", "moe", "block_sparse_moe", "feed_forward", "ffn", "sparse_moe"}
_HEADS = {"lm_head", "classifier", "score", "head", "fc", "logits", "embed_out", "cls", "qa_outputs", "heads"}
_EMBEDDED = _names(
    token_embedding="word_embeddings embed_tokens wte token_embedding tok_embeddings tokens embedding embed embed_in",
    position_embedding="position_embeddings position_embedding positional_embedding embed_positions wpe pos_embed "
    "pos_embedding pos_emb positions position pos",
)
DENSE = ("linear", "experts")


def role_of(path: str, kind: str, outputs: int = 0, inputs: int = 0) -> str:
    """Role of one layer by its name alone; `body` where the name says nothing.

    Heads, stems and nameless feed-forward layers need their neighbors: see `assign`.

    >>> role_of("bert.encoder.layer.10.attention.output.dense", "linear")
    'attention_o'
    >>> role_of("model.layers.0.mlp.gate", "linear"), role_of("model.layers.0.mlp.gate_proj", "linear")
    ('router', 'ffn_gate')
    """
    parts = [p for p in path.split(".") if not p.isdigit()]
    if kind == "norm":
        return "norm"
    if kind == "lstm":
        return "hidden" if parts[-1].startswith("weight_hh") else "input"
    if kind in ("embedding", "other"):
        return _embedding_role(parts, kind)
    if kind not in DENSE or not parts:
        return "body"
    return _dense_role(parts, path, outputs, inputs)


def _embedding_role(parts: Sequence[str], kind: str) -> str:
    role = _EMBEDDED.get(parts[-1], "body") if parts else "body"
    return role if kind == "embedding" or role == "position_embedding" else "body"


def _dense_role(parts: Sequence[str], path: str, outputs: int, inputs: int) -> str:
    last, above = parts[-1], set(parts[:-1])
    if last == "gate" and parts[-2:-1] and parts[-2] in _MIXTURE and (outputs < inputs or not outputs):
        return "router"
    if "router" in above:
        return "router"
    if last in _ANYWHERE:
        return _ANYWHERE[last]
    if last == "dense" and parts[-2:-1] == ["intermediate"]:
        return "ffn_up"
    if last == "dense" and parts[-2:-1] == ["output"]:
        return "attention_o" if above & _ATTENTION else "ffn_down"
    if above & _ATTENTION and last in _IN_ATTENTION:
        return _IN_ATTENTION[last]
    if above & _FFN and last in _IN_FFN:
        return _IN_FFN[last]
    nameless = path.rpartition(".")[2].isdigit() or last in _FFN
    if nameless and (above | {last}) & _FFN and outputs and outputs != inputs:  # nn.Sequential(Linear, act, Linear)
        return "ffn_up" if outputs > inputs else "ffn_down"
    return "body"


def block_indices(paths: Sequence[str]) -> list[int]:
    """Index of the repeated block that each path is in, -1 outside.

    Blocks are the members of the longest list of modules with layers below them, the outermost among equals.

    >>> block_indices(["stem.0", "layer.1.fc", "layer.10.fc", "head"])
    [-1, 1, 10, -1]
    """
    members: dict[str, set[str]] = {}
    for path in paths:
        found = _list_member(path)
        if found is not None:
            members.setdefault(found[0], set()).add(found[1])
    if not members:
        return [-1] * len(paths)
    container = max(members, key=lambda c: len(members[c]))  # the first of equals
    found_in = [_list_member(path) for path in paths]
    return [int(f[1]) if f is not None and f[0] == container else -1 for f in found_in]


def _list_member(path: str) -> tuple[str, str] | None:
    """(path of the outermost list, index in it) of a layer below a list's member."""
    parts = path.split(".")
    for i, part in enumerate(parts[:-1]):
        if part.isdigit() and not all(p.isdigit() or p.startswith("weight_") for p in parts[i + 1 :]):
            return ".".join(parts[:i]), part
    return None


def assign(rows: Sequence[Mapping[str, Any]], classes: int = 0) -> list[Row]:
    """The rows with `role` and `block` filled in. Rows that carry a role keep it.

    The first convolution is the stem. The head is the last dense layer outside the blocks with a head's name, else with
    as many outputs as there are classes, else the last dense layer behind convolutions or recurrent layers.
    """
    blocks = block_indices([str(r["path"]) for r in rows])
    named: list[Row] = []
    for row, block in zip(rows, blocks, strict=True):
        role = row.get("role") or role_of(row["path"], row["kind"], row["outputs"], row.get("inputs", 1))
        named.append({**row, "block": block, "role": role})
    for row in named:
        if row["kind"] == "conv":
            row["role"] = "stem"
            break
    _mark_tokens(named)
    head = _head(named, classes)
    if head is not None:
        head["role"] = "head"
    return named


def _mark_tokens(rows: Sequence[Row]) -> None:
    """Without a token embedding by name, the nameless embedding with the most entries is it."""
    nameless = [r for r in rows if r["kind"] == "embedding" and r["role"] == "body"]
    if nameless and not any(r["role"] == "token_embedding" for r in rows):
        max(nameless, key=lambda r: r["outputs"])["role"] = "token_embedding"


def _head(rows: Sequence[Row], classes: int) -> Row | None:
    dense = [r for r in rows if r["kind"] == "linear" and r["block"] < 0 and r["role"] in ("body", "head")]
    named = [r for r in dense if _HEADS & set(r["path"].split("."))]
    if named:
        return named[-1]
    sized = [r for r in dense if classes and r["outputs"] == classes]
    if sized:
        return sized[-1]
    features = [i for i, r in enumerate(rows) if r["kind"] in ("conv", "lstm") and r["role"] != "stem"]
    behind = [r for i, r in enumerate(rows) if r in dense and features and i > features[-1]]
    return behind[-1] if behind else None


def completed(layers: LayerTable) -> LayerTable:
    """The table with the model facts that its rows tell: blocks always, widths where they are not known yet."""
    info, found = layers.info, {}
    if (layers.block >= 0).any() and info.family in ("transformer", "moe"):
        found["blocks"] = int(layers.block.max()) + 1
    tokens = layers.role == "token_embedding"
    downs = (layers.role == "ffn_down") & (layers.rank == 0)
    if tokens.any():
        found["vocab_size"] = info.vocab_size or int(layers.outputs[tokens][0])
        found["hidden_size"] = info.hidden_size or int(layers.inputs[tokens][0])
    if downs.any():
        found["hidden_size"] = info.hidden_size or int(layers.outputs[downs][0])
        found["ffn_size"] = info.ffn_size or int(layers.inputs[downs][0])
    return layers.with_info(**found)

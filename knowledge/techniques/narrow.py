"""Structured pruning inside the blocks: attention heads, feed-forward neurons, the model's width, recurrent units."""

from collections.abc import Iterator
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from knowledge.dimensions import FFN, HIDDEN, INNER, KV, QKV, with_head_counts, with_widths
from knowledge.layers import BoolColumn, LayerTable
from knowledge.recurrent import hidden_scaled
from knowledge.techniques.base import Need, Range
from knowledge.techniques.reshape import Grid, Reshaping, kept_width, reshaped
from knowledge.values import Decision, Refusal

Share = Annotated[float, Field(gt=0, lt=1), Range(0.1, 0.7, step=0.05)]
ATTENTION = ("attention_q", "attention_k", "attention_v", "attention_qkv", "attention_o")
FEED_FORWARD = ("ffn_up", "ffn_gate", "ffn_down")


class Narrowing(Reshaping):
    """Base of the techniques that leave every block with the same smaller widths: `ratio` of them goes."""

    architectures: ClassVar[frozenset[str]] = frozenset({"transformer", "moe"})
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})

    def narrowed(self, layers: LayerTable) -> LayerTable:
        """The table with the widths that these parameters leave."""
        raise TypeError(f"{type(self).__name__} does not declare what it narrows")

    def renamed(self, layers: LayerTable, after: LayerTable) -> LayerTable:
        """`after` with the model's facts as the new widths of its rows say; `layers` is the table before."""
        return after

    def effect(self, layers: LayerTable, decision: Decision | None = None) -> LayerTable:
        return self.narrowed(layers) if decision is None else self.renamed(layers, reshaped(layers, decision))


class Heads(Narrowing):
    """Remove whole attention heads, those that the loss depends on least; the width of a head stays.

    Where several query heads share keys and values, a whole group goes, so that the rest divides as before: 32 heads in
    4 groups lose 8 at a time. At least one group goes, never all. Importance: the first-order Taylor term of a gate on
    each head, over calibration data (arXiv:1905.10650).
    """

    id: ClassVar[str] = "heads"
    paper: ClassVar[str] = "arXiv:1905.10650"

    ratio: Share = 0.25

    def touches(self, layers: LayerTable) -> BoolColumn:
        chosen: BoolColumn = np.isin(layers.role, ATTENTION) & (layers.rank == 0)
        return chosen

    def requirement(self) -> str:
        return "attention layers whose projections are known by name"

    def refusals(self, layers: LayerTable) -> Iterator[Refusal]:
        found = list(super().refusals(layers))
        yield from found
        groups = layers.info.kv_heads or layers.info.heads
        if not found and layers.info.heads % max(groups, 1):
            yield Refusal(
                technique=self.id,
                rule="heads-do-not-divide",
                observed=f"{layers.info.heads} query heads over {groups} heads of keys and values",
                required="query heads in groups of one size",
                remedy="remove neurons instead",
            )
        elif not found and groups < 2:
            yield Refusal(
                technique=self.id,
                rule="heads-one-group",
                observed=f"{groups} group of heads that share keys and values",
                required="at least 2, of which one stays",
                remedy="remove neurons instead",
            )

    def narrowed(self, layers: LayerTable) -> LayerTable:
        info = layers.info
        groups = info.kv_heads or info.heads
        kept = groups - min(max(1, round(self.ratio * groups)), groups - 1)
        return with_heads(layers, kept * (info.heads // groups), kept)

    def renamed(self, layers: LayerTable, after: LayerTable) -> LayerTable:
        info = layers.info
        wide = np.flatnonzero(np.isin(after.role, ("attention_q", "attention_qkv")))[:1]
        if not len(wide):
            return after
        heads = int(info.heads * after.outputs[wide[0]] // layers.outputs[wide[0]])
        return after.with_info(heads=heads, kv_heads=heads * (info.kv_heads or info.heads) // info.heads)


def with_heads(layers: LayerTable, heads: int, kv_heads: int) -> LayerTable:
    """The table with other numbers of heads, of the same width each."""
    info = layers.info
    width = info.head_dim or info.hidden_size // info.heads
    sizes = {INNER: heads * width, KV: kv_heads * width, QKV: (heads + 2 * kv_heads) * width}
    changed = with_widths(with_head_counts(layers, heads, kv_heads), sizes)
    return changed.with_info(heads=heads, kv_heads=kv_heads, head_dim=width)


class Neurons(Narrowing):
    """Remove feed-forward neurons of every block and expert, those with the smallest contribution.

    A neuron is a row of the up and gate projections and a column of the down projection. Importance: the mean
    activation over calibration tokens (arXiv:2407.14679).
    """

    id: ClassVar[str] = "neurons"
    paper: ClassVar[str] = "arXiv:2407.14679"

    ratio: Share = 0.3
    round_to: Grid = 8

    def touches(self, layers: LayerTable) -> BoolColumn:
        chosen: BoolColumn = np.isin(layers.role, FEED_FORWARD) & (layers.rank == 0)
        return chosen

    def requirement(self) -> str:
        return "feed-forward layers that are known by name"

    def narrowed(self, layers: LayerTable) -> LayerTable:
        ffn = int(kept_width(layers.info.ffn_size, self.ratio, self.round_to))
        return with_widths(layers, {FFN: ffn}).with_info(ffn_size=ffn)

    def renamed(self, layers: LayerTable, after: LayerTable) -> LayerTable:
        down = np.flatnonzero(after.role == "ffn_down")[:1]
        return after.with_info(ffn_size=int(after.inputs[down[0]])) if len(down) else after


class Width(Narrowing):
    """Remove channels of the hidden state, and as large a share of the feed-forward neurons, from the whole model.

    Embeddings, norms and every projection get thinner by the same channels; attention heads stay as they are, as in the
    width-pruned models of arXiv:2408.11796. Importance: the mean activation of a channel after the norms, over
    calibration tokens (arXiv:2407.14679).
    """

    id: ClassVar[str] = "width"
    paper: ClassVar[str] = "arXiv:2408.11796"

    ratio: Share = 0.25
    round_to: Grid = 16

    def touches(self, layers: LayerTable) -> BoolColumn:
        return np.full(len(layers), bool((layers.block >= 0).any()))

    def requirement(self) -> str:
        return "repeated blocks"

    def refusals(self, layers: LayerTable) -> Iterator[Refusal]:
        yield from super().refusals(layers)
        if layers.info.family in self.architectures and layers.info.task == "embedding":
            yield Refusal(
                technique=self.id,
                rule="width-is-the-output",
                observed="an embedding model: its width is the length of its vectors",
                required="a width that no one outside the model sees",
                remedy="remove neurons or blocks instead",
            )

    def narrowed(self, layers: LayerTable) -> LayerTable:
        info = layers.info
        hidden = int(kept_width(info.hidden_size, self.ratio, self.round_to))
        ffn = int(kept_width(info.ffn_size, self.ratio, self.round_to))
        dim = info.head_dim or info.hidden_size // max(info.heads, 1)  # a setting of its own from here on
        return with_widths(layers, {HIDDEN: hidden, FFN: ffn}).with_info(hidden_size=hidden, ffn_size=ffn, head_dim=dim)

    def renamed(self, layers: LayerTable, after: LayerTable) -> LayerTable:
        down = np.flatnonzero(after.role == "ffn_down")[:1]
        if not len(down):
            return after
        info = layers.info
        dim = info.head_dim or info.hidden_size // max(info.heads, 1)
        hidden, ffn = int(after.outputs[down[0]]), int(after.inputs[down[0]])
        return after.with_info(hidden_size=hidden, ffn_size=ffn, head_dim=dim)


class HiddenUnits(Narrowing):
    """Remove hidden units of every recurrent layer: a row of each gate, and the columns that read the unit.

    Inputs and classes stay. Half the units leave about a quarter of the recurrent weights. Importance: the group norm
    of everything that belongs to a unit (arXiv:1709.05027).
    """

    id: ClassVar[str] = "hidden_units"
    architectures: ClassVar[frozenset[str]] = frozenset({"rnn"})
    needs: ClassVar[frozenset[Need]] = frozenset()
    paper: ClassVar[str] = "arXiv:1709.05027"

    ratio: Share = 0.5
    round_to: Grid = 4

    def touches(self, layers: LayerTable) -> BoolColumn:
        chosen: BoolColumn = layers.kind == "lstm"
        return chosen

    def requirement(self) -> str:
        return "recurrent layers"

    def narrowed(self, layers: LayerTable) -> LayerTable:
        return hidden_scaled(layers, lambda hidden: int(kept_width(hidden, self.ratio, self.round_to)))

    def renamed(self, layers: LayerTable, after: LayerTable) -> LayerTable:
        hidden = np.flatnonzero((after.kind == "lstm") & (after.role == "hidden"))[:1]
        known = len(hidden) and layers.info.hidden_size == layers.inputs[hidden[0]]
        return after.with_info(hidden_size=int(after.inputs[hidden[0]])) if known else after

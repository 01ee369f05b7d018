"""Structured pruning of lists: experts that few tokens reach, tokens that the texts never hold."""

from collections.abc import Iterator
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from knowledge.layers import BoolColumn, LayerTable
from knowledge.techniques.base import Need, Range
from knowledge.techniques.reshape import Grid, Reshaping, kept_width, reshaped
from knowledge.values import Decision, Refusal


class Experts(Reshaping):
    """Remove the experts that the router chooses least, counted over calibration tokens; the router's rows go too.

    `ratio` of them goes in every layer, never all: 0.75 of eight experts leaves two. With a `threshold`, those go that
    fewer than this share of the tokens reach, whatever the ratio; how many that are is unknown until the router has
    run: until then it counts as none. Arithmetic stays, as each token still goes through as many experts as before,
    while there are as many. To prune step by step, put this stage and recovery into a plan in turn. arXiv:2206.00277.
    """

    id: ClassVar[str] = "experts"
    architectures: ClassVar[frozenset[str]] = frozenset({"moe"})
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    paper: ClassVar[str] = "arXiv:2206.00277"

    ratio: Annotated[float, Field(gt=0, lt=1), Range(0.25, 0.75, step=0.125)] = 0.5
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None

    def touches(self, layers: LayerTable) -> BoolColumn:
        chosen: BoolColumn = (layers.kind == "experts") & (layers.copies > 1)
        return chosen

    def requirement(self) -> str:
        return "at least 2 experts, stacked in one parameter"

    def strength(self) -> float:
        return self.ratio if self.threshold is None else 0.0

    def kept(self, experts: int) -> int:
        """Experts that stay: at least one goes, never all."""
        return experts - min(max(1, round(self.ratio * experts)), experts - 1)

    def effect(self, layers: LayerTable, decision: Decision | None = None) -> LayerTable:
        if decision is not None:
            left = decision.experts
        elif self.threshold is not None:
            left = {}
        else:
            counted = self.touches(layers) | ((layers.role == "router") & (layers.outputs == layers.info.experts))
            left = dict.fromkeys(layers.path[counted].tolist(), self.kept(layers.info.experts))
        return with_experts(layers, left)


def with_experts(layers: LayerTable, left: dict[str, int]) -> LayerTable:
    """The table with as many experts in each stack, and rows in each router, as `left` says by path."""
    if not left:
        return layers
    chosen = np.isin(layers.path, list(left))
    stacks, routers = chosen & (layers.kind == "experts"), chosen & (layers.role == "router")
    before = layers.copies[stacks]
    after = np.array([left[path] for path in layers.path[stacks]], dtype=np.int64)
    per_token = max(layers.info.experts_per_token, 1)
    # tokens spread over fewer experts, and over all of them where fewer are left than each token wants
    uses = layers.positions[stacks] * before / after * np.minimum(after, per_token) / np.minimum(before, per_token)
    bias = layers.bias[stacks] * after // before
    changed = layers.change(stacks, copies=after, positions=uses, bias=bias)
    rows = np.array([left[path] for path in layers.path[routers]], dtype=np.int64)
    bias = layers.bias[routers] * rows // np.maximum(layers.outputs[routers], 1)
    changed = changed.change(routers, outputs=rows, bias=bias)
    most = max(left.values())
    return changed.with_info(experts=most, experts_per_token=min(layers.info.experts_per_token, most))


class Vocabulary(Reshaping):
    """Remove the tokens that the training inputs hold least often, from the embedding and from the head.

    Special tokens and those of single bytes or characters stay, so that every text can still be written; the tokenizer
    is rebuilt, and rare words become more tokens. Half the vocabulary is often enough for one language or one domain
    (arXiv:2305.15020, abstract).
    """

    id: ClassVar[str] = "vocabulary"
    architectures: ClassVar[frozenset[str]] = frozenset({"transformer", "moe"})
    needs: ClassVar[frozenset[Need]] = frozenset({Need.UNLABELED})
    paper: ClassVar[str] = "arXiv:2305.15020"

    ratio: Annotated[float, Field(gt=0, lt=1), Range(0.1, 0.9, step=0.1)] = 0.5
    round_to: Grid = 8

    def touches(self, layers: LayerTable) -> BoolColumn:
        tokens = layers.role == "token_embedding"
        heads = (layers.role == "head") | (layers.tied_to != "")
        chosen: BoolColumn = tokens | (heads & np.isin(layers.outputs, layers.outputs[tokens]))
        return chosen

    def requirement(self) -> str:
        return "a token embedding"

    def refusals(self, layers: LayerTable) -> Iterator[Refusal]:
        found = list(super().refusals(layers))
        yield from found
        tokens = layers.outputs[layers.role == "token_embedding"]
        if not found and int(tokens.max()) <= self.round_to:
            yield Refusal(
                technique=self.id,
                rule="vocabulary-too-small",
                observed=f"a vocabulary of {int(tokens.max())}",
                required=f"more than {self.round_to} tokens",
            )

    def effect(self, layers: LayerTable, decision: Decision | None = None) -> LayerTable:
        if decision is not None:
            changed = reshaped(layers, decision)
        else:
            where = self.touches(layers)
            outputs = kept_width(layers.outputs[where], self.ratio, self.round_to)
            bias = layers.bias[where] * outputs // layers.outputs[where]
            changed = layers.change(where, outputs=outputs, bias=bias)
        tokens = changed.outputs[changed.role == "token_embedding"]
        return changed.with_info(vocab_size=int(tokens.max())) if len(tokens) else changed

"""Structured pruning: whole channels or blocks go, and what stays is a smaller dense model."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from knowledge.layers import BoolColumn, LayerTable
from knowledge.techniques.base import Choices, Family, Level, Need, Phase, Range, Technique
from knowledge.values import Decision, Refusal

Grid = Annotated[int, Field(ge=1, description="what is left is a multiple of this")]


def kept_width(width: NDArray[np.int64] | int, ratio: float, round_to: int) -> NDArray[np.int64]:
    """Channels that stay when `ratio` of them go, on a grid of `round_to` and never below one step of it.

    >>> kept_width(np.array([32, 64, 6]), 0.5, 4).tolist()
    [16, 32, 4]
    """
    wide = np.asarray(width, dtype=np.int64)
    grid = round_to * np.floor(wide * (1 - ratio) / round_to + 0.5).astype(np.int64)
    return np.minimum(wide, np.maximum(grid, round_to))


class Reshaping(Technique):
    """Base of the techniques that leave a smaller dense model; `ratio` is the share of what goes."""

    family: ClassVar[Family] = Family.RESHAPE
    level: ClassVar[Level] = Level.MODEL
    phase: ClassVar[Phase] = Phase.RESHAPE
    dial: ClassVar[str] = "ratio"


class Channels(Reshaping):
    """Remove the least important channels of every convolution, through groups of layers that must agree in width.

    Both sides of an inner convolution shrink: at ratio 0.5 about 25 % of its parameters remain. The classifier's
    outputs and the stem's inputs are never pruned. Importance: l1 or l2 norm of a channel's weights over its group
    (arXiv:1608.08710), or the first-order Taylor term (arXiv:1906.10771).
    """

    id: ClassVar[str] = "channels"
    architectures: ClassVar[frozenset[str]] = frozenset({"cnn"})
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    paper: ClassVar[str] = "arXiv:1608.08710"

    ratio: Annotated[float, Field(gt=0, lt=1), Range(0.1, 0.7, step=0.05)] = 0.5
    importance: Annotated[Literal["l2", "l1", "taylor"], Choices("l2", "l1", "taylor")] = "l2"
    round_to: Grid = 4

    def touches(self, layers: LayerTable) -> BoolColumn:
        convs: BoolColumn = (layers.kind == "conv") & (layers.role != "head")
        return convs

    def requirement(self) -> str:
        return "convolutions"

    def effect(self, layers: LayerTable, decision: Decision | None = None) -> LayerTable:
        if decision is not None:
            return reshaped(layers, decision)
        return narrowed(layers, self.ratio, self.round_to)


def narrowed(layers: LayerTable, ratio: float, round_to: int) -> LayerTable:
    """The table after every convolution lost `ratio` of its channels, as `kept_width` rounds it."""

    def keep(width: NDArray[np.int64]) -> NDArray[np.int64]:
        return kept_width(width, ratio, round_to)

    convs = layers.kind == "conv"
    if not convs.any():
        return layers
    norms = layers.kind == "norm"
    stem = convs & (layers.role == "stem")
    depthwise = convs & (layers.groups > 1) & (layers.groups == layers.inputs)
    changed = layers.change(convs | norms, outputs=keep(layers.outputs[convs | norms]))
    changed = changed.change(convs & ~stem, inputs=keep(layers.inputs[convs & ~stem]))
    changed = changed.change(depthwise, groups=keep(layers.groups[depthwise]))
    changed = changed.change(norms, buffers=layers.buffers[norms] * changed.outputs[norms] // layers.outputs[norms])
    has_bias = (convs | norms) & (layers.bias > 0)
    changed = changed.change(has_bias, bias=changed.outputs[has_bias])
    # a dense layer behind the convolutions reads last-channels × spatial positions
    last = np.flatnonzero(convs)[-1]
    reader = np.flatnonzero((layers.kind == "linear") & (np.arange(len(layers)) > last))[:1]
    if len(reader) and layers.inputs[reader[0]] % layers.outputs[last] == 0:
        spatial = layers.inputs[reader] // layers.outputs[last]
        changed = changed.change(reader, inputs=spatial * changed.outputs[last])
    return changed


def reshaped(layers: LayerTable, decision: Decision) -> LayerTable:
    """The table with the widths that surgery really gave; biases and statistics follow the outputs."""
    where = np.isin(layers.path, list(decision.shapes))
    shapes = [decision.shapes[path] for path in layers.path[where]]
    outputs = np.array([s.outputs for s in shapes], dtype=np.int64)
    before = layers.outputs[where]
    values: dict[str, Any] = {
        "outputs": outputs,
        "inputs": [s.inputs for s in shapes],
        "groups": [s.groups for s in shapes],
        "bias": layers.bias[where] * outputs // before,
        "buffers": layers.buffers[where] * outputs // before,
    }
    return layers.change(where, **values)


class LayerDrop(Reshaping):
    """Remove whole transformer blocks, those whose output differs least from their input.

    Importance of a block: 1 − cosine(input, output) averaged over calibration tokens (block influence,
    arXiv:2403.03853); the blocks in the middle to late part are usually the redundant ones.
    """

    id: ClassVar[str] = "layer_drop"
    architectures: ClassVar[frozenset[str]] = frozenset({"transformer", "moe"})
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    paper: ClassVar[str] = "arXiv:2403.03853"

    ratio: Annotated[float, Field(gt=0, lt=1), Range(0.1, 0.6, step=0.05)] = 0.3

    def dropped(self, blocks: int) -> int:
        """Blocks that go: the ratio rounded, at least one, never all."""
        return min(max(1, round(self.ratio * blocks)), blocks - 1)

    def strength_among(self, blocks: int) -> float:
        """A tenth for each block that goes: in small models that counts, not its share (measured, 4 to 8 blocks)."""
        return self.dropped(blocks) / 10 if blocks > 1 else self.strength()

    def touches(self, layers: LayerTable) -> BoolColumn:
        return layers.block >= 0

    def refusals(self, layers: LayerTable) -> Iterator[Refusal]:
        yield from super().refusals(layers)
        if layers.info.family in self.architectures and layers.info.blocks < 2:
            yield Refusal(
                technique=self.id,
                rule="technique-too-few-blocks",
                observed=f"{layers.info.blocks} repeated blocks",
                required="at least 2 blocks",
                remedy="distill to a narrower student instead",
            )

    def effect(self, layers: LayerTable, decision: Decision | None = None) -> LayerTable:
        blocks = layers.info.blocks
        if decision is not None:
            gone: tuple[int, ...] = decision.dropped_blocks
        else:  # the blocks of one model are alike: which ones go does not change the numbers
            first = (blocks - self.dropped(blocks)) // 2
            gone = tuple(range(first, first + self.dropped(blocks)))
        kept = layers.keep(~np.isin(layers.block, gone))
        renumbered = {old: new for new, old in enumerate(b for b in range(blocks) if b not in gone)}
        paths = [
            renumber(path, old, renumbered[old]) if old >= 0 else path
            for path, old in zip(kept.path.tolist(), kept.block.tolist(), strict=True)
        ]
        block = [renumbered.get(old, -1) for old in kept.block.tolist()]
        everything = np.ones(len(kept), dtype=bool)
        return kept.change(everything, path=paths, block=block).with_info(blocks=blocks - len(gone))


def renumber(path: str, old: int, new: int) -> str:
    """`layers.3.fc` with block 3 become block 2 is `layers.2.fc`: the first whole part that is the number."""
    parts = path.split(".")
    parts[parts.index(str(old))] = str(new)
    return ".".join(parts)

"""Pruning that sets single weights to zero. Shapes stay; so does the size of a dense file."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from knowledge.layers import BoolColumn, LayerTable
from knowledge.techniques.base import Choices, Epochs, Family, LearningRate, Level, Need, Phase, Range, Technique
from knowledge.techniques.patterns import DENSE, LayerRatios, Pattern, by_layer, kept_of, naming_none, pattern_strength
from knowledge.values import Decision, Refusal


class Pruning(Technique):
    """Base of the techniques that set single weights to zero: `ratio` of each layer's, unless told otherwise."""

    family: ClassVar[Family] = Family.PRUNE
    level: ClassVar[Level] = Level.MODEL
    phase: ClassVar[Phase] = Phase.PRUNE
    dial: ClassVar[str] = "ratio"

    def touches(self, layers: LayerTable) -> BoolColumn:
        return np.isin(layers.kind, ("linear", "conv", "lstm", "experts")) & layers.owned

    def pattern_name(self) -> str:
        """How the zeros lie, as the table names it."""
        return DENSE

    def removed(self, layers: LayerTable, where: BoolColumn) -> NDArray[np.float64] | float:
        """Share of the weights that goes, of each chosen layer; it counts as none where only data can tell."""
        raise TypeError(f"{type(self).__name__} does not declare what it removes")

    def effect(self, layers: LayerTable, decision: Decision | None = None) -> LayerTable:
        if decision is not None:
            where = np.isin(layers.path, list(decision.density))
            density = [decision.density[path] for path in layers.path[where]]
            return layers.change(where, density=density, pattern=decision.pattern)
        where = self.touches(layers)
        removed = self.removed(layers, where)
        if not np.any(removed):
            return layers
        return layers.change(where, density=np.minimum(layers.density[where], 1 - removed), pattern=self.pattern_name())


class ScheduledPruning(Pruning):
    """Base of the techniques that remove `ratio` of each layer, or what `layer_ratios` says for it.

    `layer_ratios` maps patterns of whole path parts to ratios: `layers.1` is every layer below `layers.1`, never
    `layers.10`; `*` stands for any one part. The first pattern that fits decides.
    """

    layer_ratios: LayerRatios = ()

    def refusals(self, layers: LayerTable) -> Iterator[Refusal]:
        yield from super().refusals(layers)
        paths = layers.path[self.touches(layers)].tolist()
        if paths and (unknown := naming_none(self.layer_ratios, paths)):
            yield Refusal(
                technique=self.id,
                rule="prune-names-no-layer",
                observed=f"layer_ratios: {', '.join(unknown)} names no layer that it prunes",
                required=f"whole parts of paths such as {paths[0]}",
                remedy="take names that `advisor inspect --layers` shows, or leave it out",
            )

    def strength(self) -> float:
        return float(np.mean([getattr(self, self.dial), *(ratio for _, ratio in self.layer_ratios)]))

    def removed(self, layers: LayerTable, where: BoolColumn) -> NDArray[np.float64] | float:
        ratio = float(getattr(self, self.dial))
        return by_layer(self.layer_ratios, layers.path[where], ratio) if self.layer_ratios else ratio


class PatternPruning(ScheduledPruning):
    """Base of the techniques that can leave N of every M neighbors: then the pattern is the ratio of every layer.

    Neighbors are inputs of one output, as kernels for patterns want them: in a convolution, channels at one place of
    the kernel. Layers that have no whole number of groups stay as they are.
    """

    def kept(self) -> tuple[int, int]:
        """(N, M), or (0, 0) for zeros anywhere."""
        return kept_of(getattr(self, "pattern", DENSE))

    def pattern_name(self) -> str:
        return str(getattr(self, "pattern", DENSE))

    def divides(self, layers: LayerTable) -> BoolColumn:
        """Rows whose weights, those of both factors, make whole groups."""
        among = max(self.kept()[1], 1)
        whole: BoolColumn = (layers.inputs // layers.groups % among == 0) & (layers.rank % among == 0)
        return whole

    def ratios_set(self) -> dict[str, str]:
        """What sets the ratio of layers besides `ratio`, in words, and how to do without it."""
        found = {}
        if self.kept()[1]:
            found[f"pattern {self.pattern_name()}"] = "take the pattern unstructured"
        if self.layer_ratios:
            found["ratios by layer"] = "leave out layer_ratios"
        return found

    def refusals(self, layers: LayerTable) -> Iterator[Refusal]:
        yield from super().refusals(layers)
        if len(said := self.ratios_set()) > 1:
            yield Refusal(
                technique=self.id,
                rule="prune-two-ratios",
                observed=" and ".join(said),
                required="one of them: each sets the ratio of every layer",
                remedy=", or ".join(dict.fromkeys(said.values())),
            )

    def strength(self) -> float:
        return pattern_strength(self.pattern_name(), super().strength())

    def removed(self, layers: LayerTable, where: BoolColumn) -> NDArray[np.float64] | float:
        kept, among = self.kept()
        return 1 - kept / among if among else super().removed(layers, where)


class Magnitude(PatternPruning):
    """Set the weights with the smallest absolute value to zero, over the whole model or layer by layer.

    The file stays as large and as slow as before wherever the runtime multiplies zeros like other numbers; the gain is
    in the compressed download. Masks are kept through later training. Layers that `layer_ratios` names lose what it
    says, and `scope` is about the others. How many weights lie below a `threshold` is unknown until the weights are
    read: until then it counts as none. arXiv:1510.00149, section 2.
    """

    id: ClassVar[str] = "magnitude"
    paper: ClassVar[str] = "arXiv:1510.00149"
    method: ClassVar[str] = "scope"

    scope: Annotated[Literal["global", "local"], Choices("global", "local")] = "global"
    ratio: Annotated[float, Field(gt=0, lt=1), Range(0.2, 0.9, step=0.05)] = 0.5
    pattern: Pattern = DENSE
    threshold: Annotated[float, Field(gt=0)] | None = None  # given: |w| below it goes, whatever ratio and scope say

    def touches(self, layers: LayerTable) -> BoolColumn:
        return super().touches(layers) & self.divides(layers)

    def ratios_set(self) -> dict[str, str]:
        more = {} if self.threshold is None else {f"threshold {self.threshold:g}": "leave out threshold"}
        return super().ratios_set() | more

    def strength(self) -> float:
        return super().strength() if self.threshold is None else 0.0

    def removed(self, layers: LayerTable, where: BoolColumn) -> NDArray[np.float64] | float:
        return super().removed(layers, where) if self.threshold is None else 0.0


class GradualPruning(ScheduledPruning):
    """Raise the share of zeros from none to `ratio` while training goes on: the smallest weights of each layer first.

    Fast at first and slow at the end, sₜ = ratio · (1 − (1 − t)³), or linear; t runs from 0 to 1 over the epochs. The
    zeros are enforced after every step, and the last step ends exactly at the ratio: made for high ratios, where one
    cut takes too much at once. arXiv:1710.01878, section 3.
    """

    id: ClassVar[str] = "gradual_pruning"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.UNLABELED, Need.TRAINING})
    paper: ClassVar[str] = "arXiv:1710.01878"

    ratio: Annotated[float, Field(gt=0, lt=1), Range(0.3, 0.95, step=0.05)] = 0.7
    schedule: Annotated[Literal["cubic", "linear"], Choices("cubic", "linear")] = "cubic"
    epochs: Epochs = 3
    learning_rate: LearningRate = 3e-4

    def ratio_at(self, progress: float) -> float:
        """Share of zeros at this share of the training.

        >>> [round(GradualPruning(ratio=0.8).ratio_at(t), 3) for t in (0.0, 0.5, 1.0)]
        [0.0, 0.7, 0.8]
        """
        return self.ratio * (1 - (1 - progress) ** (3 if self.schedule == "cubic" else 1))


class IterativePruning(ScheduledPruning):
    """Cut and train in turn, `rounds` times, until `ratio` of each layer's weights are zero.

    Every round removes the same share of what is left, 1 − (1 − ratio)^(1 / rounds): five rounds to one half take
    12.9 % each, not 10 %. Masks are kept through the training. arXiv:1506.02626, section 3.
    """

    id: ClassVar[str] = "iterative_pruning"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.UNLABELED, Need.TRAINING})
    paper: ClassVar[str] = "arXiv:1506.02626"

    ratio: Annotated[float, Field(gt=0, lt=1), Range(0.3, 0.95, step=0.05)] = 0.7
    rounds: Annotated[int, Field(ge=1), Choices(3, 5)] = 3
    epochs: Annotated[int, Field(ge=0)] = 1  # of each round
    learning_rate: LearningRate = 3e-4

    def round_share(self) -> float:
        """Share of the remaining weights that each round removes.

        >>> round(IterativePruning(ratio=0.5, rounds=5).round_share(), 3)
        0.129
        """
        return 1 - float((1 - self.ratio) ** (1 / self.rounds))

"""As many zeros as a budget of loss allows the model as a whole.

The sum of what layers alone lose says which of them lose how much. It does not say how much they lose together: pruned
layers read what pruned layers give. So a few totals are tried, from what the sum foretells.
"""

from __future__ import annotations

from collections.abc import Sequence

from backends.budget import within
from backends.context import Context
from backends.models import LoadedModel
from backends.oneshot.chosen import Forms, method_for
from backends.oneshot.engine import Done
from backends.oneshot.matrices import matrices
from backends.oneshot.run import compress_model
from backends.prune.allocation import LARGEST, SMALLEST, largest_ratio, lost_together
from backends.prune.judge import WHOLE, Judge
from backends.prune.parts import Allocation
from knowledge.techniques.prune_once import OneShotPruning
from knowledge.values import RunFailed


class Totals:
    """A model pruned to one total after the other, each time from the weights that it came with."""

    def __init__(
        self, technique: OneShotPruning, model: LoadedModel, context: Context, allocation: Allocation, forms: Forms
    ) -> None:
        self.technique, self.model, self.context, self.forms = technique, model, context, forms
        self.allocation, self.judge = allocation, Judge(model, context, WHOLE)
        if not self.judge.sound:
            raise RunFailed(f"{technique.id}: the outputs on calibration data are not finite: no loss can be measured")
        found = [matrix for path in allocation.paths for matrix in matrices(model.module, path)]
        self._kept = [(matrix, matrix.read().to("cpu", copy=True)) for matrix in found]  # a GPU has less memory
        self.total, self.lost = 0.0, 0.0
        self.done: Sequence[Done] = ()

    def prune(self, total: float) -> float:
        """The loss of the model with so many zeros."""
        if total == self.total:
            return self.lost
        self.restore()
        method = method_for(self.technique, {}, ratio=self.allocation.ratios(total).__getitem__, forms=self.forms)
        self.done = compress_model(self.model, self.context, self.allocation.paths, method)
        self.total, self.lost = total, self.judge.loss()
        return self.lost

    def restore(self) -> None:
        """Give the model the weights that it came with."""
        for matrix, weight in self._kept:
            matrix.write(weight)


def pruned_to_budget(
    technique: OneShotPruning, model: LoadedModel, context: Context, allocation: Allocation, forms: Forms
) -> Totals:
    """The model in place with the most zeros found whose loss is `max_loss` at most, in a few tries.

    Raises RunFailed where a hundredth of the weights loses more, or is less than one weight of a row; the model is then
    as it was.
    """
    curves, asked = allocation.curves, technique.max_loss
    assert curves is not None
    assert asked is not None
    totals = Totals(technique, model, context, allocation, forms)
    least, most = (lost_together(curves, allocation.shared(total)) for total in (SMALLEST, LARGEST))
    try:
        within(
            asked,
            lambda foretold: totals.prune(largest_ratio(curves, allocation.shared, foretold)),
            least,
            most,
            f"{technique.id}: {SMALLEST:.0%} of the weights lose",
        )
    except RunFailed:
        totals.restore()
        raise
    if not any(bool((one.matrix.read() == 0).any()) for one in totals.done):
        raise RunFailed(f"{technique.id}: no row is so long that a weight of it can go for a loss of {asked:g}")
    return totals

"""Wanda and SparseGPT on a model: calibration data pass block by block, and matrices lose weights on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from backends.context import Context
from backends.locate import weight_tensors
from backends.models import LoadedModel
from backends.oneshot.engine import Done
from backends.oneshot.methods import Method, sparsegpt_method, wanda_method
from backends.oneshot.run import compress_model
from backends.prune.magnitude import density
from backends.structure import changed
from knowledge.techniques.patterns import by_layer, kept_of
from knowledge.techniques.prune_once import OneShotPruning, SparseGpt
from knowledge.values import Decision, Refusal


def apply(technique: OneShotPruning, model: LoadedModel, context: Context) -> tuple[LoadedModel, Decision]:
    """Set weights of dense layers and experts to zero by what they read, in place; SparseGPT moves the others too.

    The decision holds the share of non-zero weights per layer, and where the data did not suffice. Raises InputError
    where they are too few for a block's Hessians, or an activation is not finite, naming the layer.
    """
    paths = context.layers.path[technique.touches(context.layers)].tolist()
    done = compress_model(model, context, paths, _method(technique))
    found = {path: density(weight_tensors(model.module, path)) for path in paths}
    decision = Decision(technique=technique.id, density=found, skipped=tuple(cautions(technique, done)))
    return changed(model, decision), decision


def cautions(technique: OneShotPruning, done: Sequence[Done]) -> Iterator[Refusal]:
    """What the calibration data did not tell, one line for each layer."""
    by_path: dict[str, list[Done]] = {}
    for one in done:
        by_path.setdefault(one.matrix.path, []).append(one)
    for path, parts in by_path.items():
        if unread := sum(not one.tokens for one in parts):
            observed = f"{path}: {unread} of {len(parts)} matrices read no calibration token and went by their size"
            yield _caution(technique, "calibration-unread", observed, "tokens that reach every matrix")
        if not isinstance(technique, SparseGpt):
            continue
        if thin := sum(0 < one.tokens < one.matrix.read().shape[1] for one in parts):
            observed = f"{path}: {thin} of {len(parts)} matrices read fewer tokens than they have inputs"
            yield _caution(technique, "calibration-thin", observed, "as many tokens as inputs")
        if (most := max(one.outcome.damping for one in parts)) > technique.damping:
            observed = f"{path}: its Hessian took a damping of {most:g}"
            yield _caution(technique, "hessian-damped", observed, f"a factor at {technique.damping:g}")


def _caution(technique: OneShotPruning, rule: str, observed: str, required: str) -> Refusal:
    remedy = "give more calibration data"
    return Refusal(technique=technique.id, rule=rule, observed=observed, required=required, remedy=remedy)


def _method(technique: OneShotPruning) -> Method:
    def ratio(path: str) -> float:
        return float(by_layer(technique.layer_ratios, [path], technique.ratio)[0])

    pattern = kept_of(technique.pattern)
    if isinstance(technique, SparseGpt):
        return sparsegpt_method(ratio, pattern, technique.damping)
    return wanda_method(ratio, pattern)

"""Wanda and SparseGPT on a model: calibration data pass block by block, and matrices lose weights on the way."""

from __future__ import annotations

from backends.context import Context
from backends.locate import weight_tensors
from backends.models import LoadedModel
from backends.oneshot.methods import Method, sparsegpt_method, wanda_method
from backends.oneshot.run import compress_model
from backends.prune.magnitude import density
from backends.structure import changed
from knowledge.techniques.patterns import by_layer, kept_of
from knowledge.techniques.prune_once import OneShotPruning, SparseGpt
from knowledge.values import Decision


def apply(technique: OneShotPruning, model: LoadedModel, context: Context) -> tuple[LoadedModel, Decision]:
    """Set weights of dense layers and experts to zero by what they read, in place; SparseGPT moves the others too.

    The decision holds the share of non-zero weights per layer. Raises InputError where the data are too few for a
    Hessian, or an activation is not finite, naming the layer.
    """
    paths = context.layers.path[technique.touches(context.layers)].tolist()
    compress_model(model, context, paths, _method(technique))
    found = {path: density(weight_tensors(model.module, path)) for path in paths}
    decision = Decision(technique=technique.id, density=found)
    return changed(model, decision), decision


def _method(technique: OneShotPruning) -> Method:
    def ratio(path: str) -> float:
        return float(by_layer(technique.layer_ratios, [path], technique.ratio)[0])

    pattern = kept_of(technique.pattern)
    if isinstance(technique, SparseGpt):
        return sparsegpt_method(ratio, pattern, technique.damping)
    return wanda_method(ratio, pattern)

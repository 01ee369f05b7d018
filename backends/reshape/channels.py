"""Channel pruning of convolutional networks: how much each channel counts (tensor functions), and removing the least.

Layers that must agree in width form a group, found by tracing (torch-pruning's dependency graph):

    conv1 ──bn1──relu──conv2      group of conv1: conv1 outputs, bn1, conv2 inputs
    x ──conv3──(+)──conv4         group of conv3: conv3 outputs, everything else that is added, conv4 inputs
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch_pruning.ops import OPTYPE

from backends.context import Context
from backends.data import Split
from backends.losses import learnable
from backends.models import LoadedModel
from backends.structure import changed
from backends.tasks import Task
from backends.training import batch_starts, tensors
from knowledge.layers import LayerTable
from knowledge.techniques.reshape import Channels, kept_width
from knowledge.values import Decision, Refusal, Shape, Workload

TAYLOR_BATCHES, TAYLOR_BATCH = 8, 64
RECALIBRATION_BATCH = 64
KNOWN = (_ConvNd, nn.Linear, _BatchNorm, nn.LayerNorm)  # what `surgery.resize` rebuilds

Scores = Mapping[int, Tensor]  # id of a parameter -> a score for each of its entries
Width = Callable[[str, int], int]  # path of a group's first convolution, its channels -> how many stay

# -- tensors ---------------------------------------------------------------------------------------


def per_channel(scores: Tensor, axis: int) -> Tensor:
    """Sum of entry scores for each index of an axis, divided by their mean: layers of a group count alike.

    >>> per_channel(torch.tensor([[1.0, 1.0], [3.0, 3.0]]), 0).tolist()
    [0.5, 1.5]
    """
    sums = scores.transpose(0, axis).flatten(1).sum(1) if scores.dim() > 1 else scores
    return sums / sums.mean().clamp(min=torch.finfo(sums.dtype).tiny)


def least(importance: Tensor, keep: int) -> list[int]:
    """Indices to remove so that the `keep` most important stay; among equals the later ones go."""
    order = torch.argsort(importance, descending=True, stable=True)
    return sorted(order[keep:].tolist())


# -- importance ------------------------------------------------------------------------------------


def norm_scores(module: nn.Module, power: int) -> Scores:
    """|w|^power for every parameter: l1 and l2 norms of channels (arXiv:1608.08710)."""
    return {id(p): p.detach().abs().pow(power) for p in module.parameters()}


def taylor_scores(model: LoadedModel, task: Task, split: Split) -> Scores:
    """|w · ∂loss/∂w| for every parameter, summed over batches: the first-order term of arXiv:1906.10771.

    Their square is left out: a few loud weights would outvote all others of a channel. Without labels the model's own
    predictions stand in for them.
    """
    parameters = [p for p in model.module.parameters() if p.requires_grad]
    sums = {id(p): torch.zeros_like(p) for p in parameters}
    model.module.eval()
    for start in batch_starts(len(split), TAYLOR_BATCH)[:TAYLOR_BATCHES]:
        rows = np.arange(start, min(start + TAYLOR_BATCH, len(split)))
        batch = tensors(split, rows, model.device)
        with torch.enable_grad():
            outputs = model.forward(batch)
            known = batch if learnable(task, split) else {"labels": outputs.detach().argmax(-1)}
            loss = nn.functional.cross_entropy(outputs, known["labels"])
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for p, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                sums[id(p)] += (p.detach() * gradient).abs()
    return sums


def group_importance(group: Any, width: int, scores: Scores) -> Tensor:
    """Importance of each of a group's channels: the mean over its layers of the channel's normalized score. [width]"""
    found = []
    for position, (dep, indices) in enumerate(group):
        module, roots = dep.target.module, group[position].root_idxs
        if not isinstance(module, nn.Module) or getattr(module, "weight", None) is None:
            continue
        reads = dep.handler in (tp.prune_conv_in_channels, tp.prune_linear_in_channels)
        local = per_channel(scores[id(module.weight)], 1 if reads else 0)
        # a dense layer behind a flattening reads each channel at many positions: they add up
        total = torch.zeros(width, dtype=local.dtype, device=local.device)
        found.append(total.index_add(0, torch.tensor(roots, device=local.device), local[indices]))
    return torch.stack(found).mean(0)


# -- groups ----------------------------------------------------------------------------------------


def trace(model: LoadedModel) -> Any:
    """torch-pruning's dependency graph of the model."""
    batch = {name: torch.as_tensor(v, device=model.device) for name, v in model.example(Workload()).items()}
    model.module.eval()
    with torch.enable_grad():
        graph = tp.DependencyGraph()
        return graph.build_dependency(
            model.module, batch, forward_fn=lambda _, inputs: model.forward(inputs), verbose=False
        )


def prunable(graph: Any, names: Mapping[nn.Module, str], technique: str) -> Iterator[Any | Refusal]:
    """Every group that starts at a convolution: the group itself, or why it must stay as it is."""
    for group in graph.get_all_groups(root_module_types=[nn.Conv1d, nn.Conv2d, nn.Conv3d]):
        problem = _obstacle(group, names)
        if problem is None:
            yield group
            continue
        yield Refusal(
            technique=technique,
            rule="channels-fixed-group",
            observed=f"the channels of {names[group[0].dep.target.module]} {problem}",
            required="channels that only convolutions, dense layers and norms share",
        )


def _obstacle(group: Any, names: Mapping[nn.Module, str]) -> str | None:
    writers = 0
    for dep, _ in group:
        module = dep.target.module
        if dep.target.type == OPTYPE.OUTPUT:
            return "are the model's output"
        if dep.target.type == OPTYPE.PARAMETER:
            return "meet a bare parameter"
        if not isinstance(module, nn.Module) or not any(True for _ in module.parameters(recurse=False)):
            continue
        name = names.get(module, type(module).__name__)
        if not isinstance(module, KNOWN) or isinstance(module, _ConvTransposeNd):
            return f"meet {name}, a {type(module).__name__}"
        if isinstance(module, _ConvNd):
            if module.groups not in (1, module.in_channels) or module.groups > module.out_channels:
                return f"meet {name}, a convolution of {module.groups} groups"
            if module.groups == module.in_channels > 1 and module.out_channels != module.in_channels:
                return f"meet {name}, a depthwise convolution that multiplies channels"
        writers += dep.handler in (tp.prune_conv_out_channels, tp.prune_linear_out_channels)
    return None if writers else "are the model's input"


# -- the model -------------------------------------------------------------------------------------


def narrow(
    model: LoadedModel, layers: LayerTable, width: Width, scores: Scores, technique: str
) -> tuple[dict[str, Shape], list[Refusal]]:
    """Shrink every group of convolution channels in place to the width that `width` says, keeping the most important.

    Returns the new shapes of the changed layers by path, and a refusal for every group that cannot change.
    """
    module = model.module
    names = {m: name for name, m in module.named_modules()}
    before = _shapes(names, layers)
    graph = trace(model)
    chosen, refused = [], []
    for group in prunable(graph, names, technique):
        if isinstance(group, Refusal):
            refused.append(group)
            continue
        channels = len(group[0].idxs)
        keep = width(names[group[0].dep.target.module], channels)
        chosen.append((group, least(group_importance(group, channels, scores), keep)))
    for group, gone in chosen:  # scored before the first is cut, so that the order of the groups does not matter
        if gone:
            group.prune(gone)
    module.zero_grad(set_to_none=True)
    after = _shapes(names, layers)
    return {path: shape for path, shape in after.items() if before[path] != shape}, refused


def recalibrate(model: LoadedModel, split: Split) -> None:
    """Take batch-norm statistics anew from the split: the ones stored belong to the wider model (arXiv:2007.02491)."""
    norms = [m for m in model.module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms or len(split) < 2:
        return
    model.module.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # an even mean over all batches
        norm.train()
    with torch.no_grad():
        for start in batch_starts(len(split), RECALIBRATION_BATCH):
            rows = np.arange(start, min(start + RECALIBRATION_BATCH, len(split)))
            model.forward(tensors(split, rows, model.device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def apply(technique: Channels, model: LoadedModel, context: Context) -> tuple[LoadedModel, Decision]:
    """Remove the least important channels of every convolution, in place.

    The decision holds the new shape of every layer that changed, and a refusal for every group that could not.
    """
    if technique.importance == "taylor":
        scores = taylor_scores(model, context.task, context.data.calibration)
    else:
        scores = norm_scores(model.module, 1 if technique.importance == "l1" else 2)

    def width(_: str, channels: int) -> int:
        return int(kept_width(channels, technique.ratio, technique.round_to))

    shapes, refused = narrow(model, context.layers, width, scores, technique.id)
    recalibrate(model, context.data.calibration)
    decision = Decision(technique=technique.id, shapes=shapes, skipped=tuple(refused))
    return changed(model, decision), decision


def _shapes(names: Mapping[nn.Module, str], layers: LayerTable) -> dict[str, Shape]:
    """Shapes of all layers with weights, as the layer table counts them."""
    norm_inputs = dict(zip(layers.path.tolist(), layers.inputs.tolist(), strict=True))
    found = {}
    for module, path in names.items():
        if isinstance(module, _ConvNd):
            found[path] = Shape(outputs=module.out_channels, inputs=module.in_channels, groups=module.groups)
        elif isinstance(module, nn.Linear):
            found[path] = Shape(outputs=module.out_features, inputs=module.in_features)
        elif isinstance(module, _BatchNorm):
            found[path] = Shape(outputs=module.num_features, inputs=norm_inputs.get(path, 1))
        elif isinstance(module, nn.LayerNorm):
            found[path] = Shape(outputs=int(np.prod(module.normalized_shape)), inputs=norm_inputs.get(path, 1))
    return found

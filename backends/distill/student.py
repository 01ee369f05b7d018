"""Students: the original model in smaller dimensions, starting from the weights it keeps.

    blocks       evenly spaced ones, the first and the last among them
    hidden       the units with the largest weights over all layers, the same everywhere
    heads, ffn   the heads and units with the largest weights, block by block

transformers' models are built anew from a changed configuration. Other modules keep their code: blocks are dropped,
layers cut, and the attributes by which modules know their widths follow.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backends.blocks import drop_blocks, find_blocks
from backends.distill.inherit import inherited
from backends.layer_kinds import is_pretrained
from backends.locate import located
from backends.models import LoadedModel
from backends.seeds import seeded
from backends.surgery import select, select_hidden
from knowledge.layers import LayerTable, ModelInfo
from knowledge.students import head_dim_of
from knowledge.values import Shape, StudentShape

CONFIG_NAMES = {  # field of StudentShape -> names in configurations, the first that exists is set
    "blocks": ("num_hidden_layers",),
    "hidden_size": ("hidden_size",),
    "ffn_size": ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim"),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads",),
}
ATTRIBUTES = {  # fact -> names under which modules that are not transformers' keep it
    "hidden_size": ("width", "hidden_size", "embed_dim", "dim", "d_model", "kdim", "vdim"),
    "ffn_size": ("ffn", "ffn_size", "ffn_dim", "intermediate_size", "mlp_dim", "hidden_dim"),
    "heads": ("heads", "num_heads", "n_heads", "num_attention_heads"),
    "kv_heads": ("kv_heads", "num_kv_heads", "n_kv_heads", "num_key_value_heads"),
    "head_dim": ("head_dim", "head_size", "d_head"),
}
SCALES = ("scale", "scaling")


def spread(count: int, kept: int) -> tuple[int, ...]:
    """Indices of `kept` blocks out of `count`, evenly spaced with both ends.

    >>> spread(12, 4)
    (0, 4, 7, 11)
    """
    return tuple(int(i + 0.5) for i in np.linspace(0, count - 1, kept)) if kept > 1 else (0,)


def facts_of(info: ModelInfo, shape: StudentShape) -> dict[str, int]:
    """The student's dimensions in full."""
    given = shape.model_dump(exclude_none=True, exclude={"width"})
    names = ("blocks", "hidden_size", "ffn_size", "heads", "kv_heads")
    return {name: given.get(name, getattr(info, name)) for name in names} | {"head_dim": head_dim_of(info, shape)}


def skeleton(model: LoadedModel, shape: StudentShape) -> nn.Module:
    """The student's structure with arbitrary weights, as far as no layer has to be named; leaves `model` as it is.

    Whole for transformers' models. Other modules come with their blocks dropped and their attributes set; their layers
    are cut by the shapes of the decision.
    """
    if shape.width is not None:
        return copy.deepcopy(model.module)
    if is_pretrained(model.module):
        return _configured(model, shape)
    module = copy.deepcopy(model.module)
    _drop(module, shape.blocks)
    _set_attributes(module, model.info, facts_of(model.info, shape))
    return module


def transformer_student(
    model: LoadedModel, layers: LayerTable, shape: StudentShape, target: LayerTable
) -> tuple[nn.Module, dict[str, Shape]]:
    """A smaller transformer that starts from the original's weights, and the shapes that rebuild it where code is kept.

    `target`: the student's table. Raises ValueError or RuntimeError where the module's code does not allow the shape.
    """
    cut = copy.deepcopy(model.module)
    _drop(cut, shape.blocks)
    shapes = inherited(cut, layers, target)
    if not is_pretrained(model.module):
        _set_attributes(cut, model.info, facts_of(model.info, shape))
        return cut, shapes
    student = _configured(model, shape)
    student.load_state_dict(cut.state_dict(), strict=True)
    return student, {}


def _drop(module: nn.Module, blocks: int | None) -> None:
    count = len(find_blocks(module)[1])
    if blocks is not None and blocks < count:
        drop_blocks(module, set(range(count)) - set(spread(count, blocks)))


def _configured(model: LoadedModel, shape: StudentShape) -> nn.Module:
    """A transformers model of the same class under a changed configuration."""
    config: Any = copy.deepcopy(model.module.config)
    facts = facts_of(model.info, shape)
    for field, names in CONFIG_NAMES.items():
        known = next((name for name in names if hasattr(config, name)), None)
        if known is not None:
            setattr(config, known, facts[field])
    if getattr(config, "head_dim", None):
        config.head_dim = facts["head_dim"]
    for name, value in list(vars(config).items()):
        if name.startswith("layer_") and isinstance(value, list) and len(value) == model.info.blocks:
            setattr(config, name, [value[i] for i in spread(model.info.blocks, facts["blocks"])])
    with seeded(0, model.device):
        student = type(model.module)(config)
    return student.to(model.device, next(model.module.parameters()).dtype).eval()


def _set_attributes(module: nn.Module, info: ModelInfo, facts: dict[str, int]) -> None:
    """Tell every part its new widths, where it keeps one under a usual name and with the old value."""
    old_dim = info.head_dim or info.hidden_size // max(info.heads, 1)
    for part in module.modules():
        for fact, names in ATTRIBUTES.items():
            old = old_dim if fact == "head_dim" else getattr(info, fact)
            for name in names:
                if isinstance(part.__dict__.get(name), int) and part.__dict__[name] == old:
                    setattr(part, name, facts[fact])
        for name in SCALES:
            value = part.__dict__.get(name)
            if isinstance(value, float) and abs(value - old_dim**-0.5) < 1e-9:
                setattr(part, name, facts["head_dim"] ** -0.5)


# -- recurrent models ------------------------------------------------------------------------------


def recurrent_student(model: LoadedModel, layers: LayerTable, target: LayerTable) -> dict[str, Shape]:
    """Cut a recurrent model in place to the hidden units with the largest weights; returns the new shapes.

    All recurrent layers keep the same units, because what one writes the next may add or read.
    """
    module = model.module
    recurrent = {path: m for path, m in module.named_modules() if isinstance(m, nn.RNNBase)}
    hidden = next(iter(recurrent.values())).hidden_size
    row = next(path for path in target.path if path.rpartition(".")[2].startswith("weight_hh"))
    width = int(target.inputs[target.index(row)])
    keep = torch.topk(_unit_importance(list(recurrent.values()), hidden), width).indices.sort().values
    new_inputs = dict(zip(target.path.tolist(), target.inputs.tolist(), strict=True))
    new_outputs = dict(zip(target.path.tolist(), target.outputs.tolist(), strict=True))
    shapes = {}
    for path, part in recurrent.items():
        inputs = new_inputs[f"{path}.weight_ih_l0" if path else "weight_ih_l0"]
        select_hidden(part, keep, _repeated(keep, hidden, part.input_size, inputs))
        shapes[path] = Shape(outputs=part.hidden_size, inputs=part.input_size)
    for path in layers.path[layers.kind == "linear"].tolist():
        outputs, inputs = located(module, path).sizes
        if (new_outputs[path], new_inputs[path]) != (outputs, inputs):
            rows = _repeated(keep, hidden, outputs, new_outputs[path])
            select(module.get_submodule(path), rows, _repeated(keep, hidden, inputs, new_inputs[path]))
            shapes[path] = Shape(outputs=new_outputs[path], inputs=new_inputs[path])
    return shapes


def _unit_importance(parts: list[nn.RNNBase], hidden: int) -> Tensor:
    """Squared weights into and out of each hidden unit, over all layers. [hidden]"""
    total = torch.zeros(hidden)
    for part in parts:
        for name, weight in part.named_parameters(recurse=False):
            if name.startswith("weight_"):
                squares = weight.detach().cpu().square()
                total += squares.sum(1).view(-1, hidden).sum(0)
                total += squares.sum(0) if name.startswith("weight_hh") else 0
    return total


def _repeated(keep: Tensor, hidden: int, before: int, after: int) -> Tensor | None:
    """Indices into a side that holds the hidden units once per direction; None where the side stays."""
    if before == after:
        return None
    times = before // hidden
    if times * len(keep) != after:
        raise ValueError(f"{before} inputs are no multiple of {hidden} hidden units")
    return torch.cat([keep + i * hidden for i in range(times)])

"""What is stored in one form: an operator that computes with several matrices has one for all of them."""

import re

import numpy as np

from knowledge.layers import BoolColumn, LayerTable

RECURRENT = re.compile(r"(.+)\.weight_[ih]h_(l\d+)(?:_reverse)?")


def unit_names(layers: LayerTable) -> list[str]:
    """What each row is stored together with: both matrices of a recurrent layer, all stacks of a block's experts.

    One operator computes with them, in one form. Any other row is alone, under its own path.
    """
    names = []
    for kind, path in zip(layers.kind, layers.path, strict=True):
        recurrent = RECURRENT.fullmatch(path) if kind == "lstm" else None
        alone = path if kind != "experts" else path.rpartition(".")[0] or path
        names.append(f"{recurrent[1]}.{recurrent[2]}" if recurrent else alone)
    return names


def whole_experts(layers: LayerTable, group_size: int) -> BoolColumn:
    """Stacks of experts whose rows, and those of the others in their block, divide into whole groups."""
    experts: BoolColumn = (layers.kind == "experts") & layers.owned
    if not experts.any():
        return experts
    names = np.array(unit_names(layers), dtype=object)
    uneven = set(names[experts & ((layers.inputs % group_size > 0) | (layers.rank > 0))])
    return experts & ~np.isin(names, list(uneven))

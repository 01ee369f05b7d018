"""Which rows a group-wise technique left in float, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from knowledge.layers import LayerTable
from knowledge.techniques.groups import LOOKUP_GROUPS, GroupWeights
from knowledge.values import LayerFormat, Refusal


def left_alone(
    technique: GroupWeights, layers: LayerTable, formats: Mapping[str, LayerFormat], obstacles: Mapping[str, str]
) -> Iterator[Refusal]:
    """One refusal for each row of a kind that the technique is for and that stays in float, unless it was asked to."""
    dense, touched = technique.dense(layers), technique.touches(layers)
    head = (layers.kind == "linear") & (layers.role == "head")
    at_end = (head | (layers.kind == "embedding")) & (technique.embedding_bits < 32) & layers.owned
    for row in range(len(layers)):
        path, inputs = str(layers.path[row]), int(layers.inputs[row])
        if path in formats:
            continue
        if touched[row] and layers.owned[row]:
            observed = obstacles.get(path, f"{path} is not read by a product or a lookup alone")
            yield _refusal(technique, "groups-other-readers", observed, "a matrix that products or lookups read")
        elif layers.kind[row] == "experts":
            if why := technique.experts_in_float():
                rule, required = why
                observed = f"{path} is a stack of {layers.copies[row]} experts, {inputs} wide"
                yield _refusal(technique, rule, observed, required)
        elif dense[row]:
            yield _refusal(technique, "groups-too-wide", f"{path} is {inputs} wide", technique.requirement())
        elif at_end[row]:
            required = f"rows of whole groups of {LOOKUP_GROUPS[0]}" if not head[row] else technique.requirement()
            yield _refusal(technique, "groups-too-wide", f"{path} is {inputs} wide", required)
        elif layers.role[row] == "router":
            yield _refusal(
                technique, "groups-router", f"{path} is a router", "layers whose rounding sends no token away"
            )


def _refusal(technique: GroupWeights, rule: str, observed: str, required: str) -> Refusal:
    return Refusal(technique=technique.id, rule=rule, observed=observed, required=required)

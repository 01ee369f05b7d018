"""From a chain to Optuna parameters and back: every searchable field of every stage, as `technique.field`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from knowledge.layers import LayerTable
from knowledge.techniques.base import Choices, Range, Technique
from knowledge.techniques.catalog import CATALOG, build
from knowledge.values import Stage


class Trial(Protocol):
    """The part of an Optuna trial that suggesting needs."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...
    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...


@dataclass(frozen=True)
class Step:
    """A technique to search: where to start, and where rules narrow what may be tried ([low, high] or choices)."""

    technique: str
    params: Mapping[str, Any] = field(default_factory=dict)
    ranges: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def space(self, layers: LayerTable) -> dict[str, Range | Choices]:
        """What may be tried for each field that matters for this model."""
        return {n: self._narrowed(n, s) for n, s in CATALOG[self.technique].space_for(layers).items()}

    def _narrowed(self, name: str, space: Range | Choices) -> Range | Choices:
        if name not in self.ranges:
            return space
        if isinstance(space, Choices):
            return Choices(*self.ranges[name])
        values = self.ranges[name]
        return dataclasses.replace(space, low=min(values), high=max(values))


def chain_id(stages: Sequence[Step | Stage]) -> str:
    """`channels > finetune > int8_static`."""
    return " > ".join(stage.technique for stage in stages) or "nothing"


def searched(stages: Sequence[Step], layers: LayerTable) -> Iterator[tuple[int, str, str, Range | Choices]]:
    """(stage number, field, parameter name, space) of all that can be searched; a repeated technique is numbered."""
    seen: dict[str, int] = {}
    for number, stage in enumerate(stages):
        seen[stage.technique] = seen.get(stage.technique, 0) + 1
        prefix = stage.technique if seen[stage.technique] == 1 else f"{stage.technique}#{seen[stage.technique]}"
        for name, space in stage.space(layers).items():
            yield number, name, f"{prefix}.{name}", space


def suggest(trial: Trial, stages: Sequence[Step], layers: LayerTable) -> tuple[Stage, ...]:
    """The chain with every searchable parameter chosen by the trial; what is not searched keeps the chain's value."""
    params = [dict(stage.params) for stage in stages]
    for number, parameter, name, space in searched(stages, layers):
        if isinstance(space, Choices):
            value = trial.suggest_categorical(name, list(space))
        elif CATALOG[stages[number].technique].model_fields[parameter].annotation is int:
            low, high, step = int(space.low), int(space.high), int(space.step or 1)
            value = trial.suggest_int(name, low, high, step=step, log=space.log)
        else:
            value = float(f"{trial.suggest_float(name, space.low, space.high, step=space.step, log=space.log):.3g}")
        params[number][parameter] = value
    return tuple(
        Stage(technique=stage.technique, params=_complete(stage.technique, chosen))
        for stage, chosen in zip(stages, params, strict=True)
    )


def starting_point(stages: Sequence[Step], layers: LayerTable) -> dict[str, Any]:
    """Optuna parameters of the chain as recommended: the first thing to try."""
    built: list[Technique] = [build(Stage(technique=s.technique, params=dict(s.params))) for s in stages]
    values = {
        name: _inside(space, getattr(built[number], parameter))
        for number, parameter, name, space in searched(stages, layers)
    }
    return {"chain": chain_id(stages), **values}


def _inside(space: Range | Choices, value: Any) -> Any:
    """The value itself where it may be tried, else the nearest that may."""
    if isinstance(space, Choices):
        return value if value in space else space[0]
    return min(max(value, space.low), space.high)


def _complete(technique: str, params: dict[str, Any]) -> dict[str, Any]:
    """Every parameter spelled out, so that a plan does not change with a default."""
    cls = CATALOG[technique]
    full: dict[str, Any] = cls.model_validate(cls.together(params)).model_dump(mode="json")
    return full

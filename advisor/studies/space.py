"""From a chain to Optuna parameters and back: every searchable field of every stage, under the name it has in `--set`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from knowledge.layers import LayerTable
from knowledge.techniques.base import Choices, Range, Technique
from knowledge.techniques.catalog import CATALOG, build
from knowledge.values import Stage


class Trial(Protocol):
    """The part of an Optuna trial that suggesting needs."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float: ...


def chain_id(stages: Sequence[Stage]) -> str:
    """`channels > finetune > int8_static`."""
    return " > ".join(stage.technique for stage in stages) or "nothing"


def searched(stages: Sequence[Stage], layers: LayerTable) -> Iterator[tuple[int, str, str, Range | Choices]]:
    """(stage number, field, parameter name, space) for everything that can be searched; a repeated technique is numbered."""
    seen: dict[str, int] = {}
    for number, stage in enumerate(stages):
        seen[stage.technique] = seen.get(stage.technique, 0) + 1
        prefix = stage.technique if seen[stage.technique] == 1 else f"{stage.technique}#{seen[stage.technique]}"
        for field, space in CATALOG[stage.technique].space_for(layers).items():
            yield number, field, f"{prefix}.{field}", space


def suggest(trial: Trial, stages: Sequence[Stage], layers: LayerTable) -> tuple[Stage, ...]:
    """The chain with every searchable parameter chosen by the trial; what is not searched keeps the chain's value."""
    params = [dict(stage.params) for stage in stages]
    for number, field, name, space in searched(stages, layers):
        if isinstance(space, Choices):
            params[number][field] = trial.suggest_categorical(name, list(space))
        elif CATALOG[stages[number].technique].model_fields[field].annotation is int:
            params[number][field] = trial.suggest_int(
                name, int(space.low), int(space.high), step=int(space.step or 1), log=space.log
            )
        else:
            value = trial.suggest_float(name, space.low, space.high, step=space.step, log=space.log)
            params[number][field] = round(value, 6) if not space.log else float(f"{value:.3g}")
    return tuple(
        Stage(technique=stage.technique, params=_complete(stage.technique, chosen))
        for stage, chosen in zip(stages, params, strict=True)
    )


def starting_point(stages: Sequence[Stage], layers: LayerTable) -> dict[str, Any]:
    """Optuna parameters of the chain as recommended: the first thing to try."""
    built: list[Technique] = [build(stage) for stage in stages]
    values = {name: getattr(built[number], field) for number, field, name, _ in searched(stages, layers)}
    return {"chain": chain_id(stages), **values}


def _complete(technique: str, params: dict[str, Any]) -> dict[str, Any]:
    """Every parameter spelled out, so that a plan does not change with a default."""
    full: dict[str, Any] = CATALOG[technique].model_validate(params).model_dump(mode="json")
    return full

"""Presets: partial plans, each a budget and parameters to start from."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from knowledge.schema import Conclusion, Id, Rule, Setting, Text, check_params, known_technique
from knowledge.values import Value


class Preset(Value):
    """A partial plan to start from: what may be spent, and parameters for the techniques that a chain uses."""

    id: Id
    about: Text  # one sentence
    source: Text
    max_drop: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?\s*(pp|%)?$")] | None = None  # as `--max-drop` takes it
    params: dict[str, dict[str, Any]] = Field(default_factory=dict)  # technique -> parameter -> value to start from

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name, params in self.params.items():
            check_params(known_technique(name, "params", name), params, ("params", name))
        return self

    def as_rule(self) -> Rule:
        """The preset as a rule that starts every parameter from its value, whatever the request."""
        starts = tuple(
            Conclusion(set=Setting(technique=name, param=param, start=value))
            for name, params in self.params.items()
            for param, value in params.items()
            if value is not None
        )
        return Rule(id=f"preset-{self.id}", then=starts, text=self.about, source=self.source, tree="Presets")

"""Every technique there is, listed by hand: a typo is an ImportError, and nothing registers itself."""

import difflib
from typing import Any

from pydantic import ValidationError

from knowledge.names import nearest
from knowledge.techniques.architecture import ArchitectureSearch
from knowledge.techniques.base import Technique
from knowledge.techniques.calibrated import Awq, Gptq
from knowledge.techniques.distill import Distill, DistillText, MiniLlm
from knowledge.techniques.entries import Experts, Vocabulary
from knowledge.techniques.factorize import Svd
from knowledge.techniques.fuse import GraphFusion
from knowledge.techniques.groups import Nf4, WeightOnly
from knowledge.techniques.mixed import ExpertsInt4, MixedPrecision
from knowledge.techniques.narrow import Heads, HiddenUnits, Neurons, Width
from knowledge.techniques.prune import GradualPruning, IterativePruning, Magnitude
from knowledge.techniques.prune_once import SparseGpt, Wanda
from knowledge.techniques.quantize import Bf16, ComplexInt8, Fp16, Int8Dynamic, Int8Static, Qat
from knowledge.techniques.recover import Finetune
from knowledge.techniques.reshape import Channels, LayerDrop
from knowledge.values import InputError, Stage

CATALOG: dict[str, type[Technique]] = {
    technique.id: technique
    for technique in (
        Distill,
        MiniLlm,
        DistillText,
        Channels,
        Heads,
        Neurons,
        Width,
        LayerDrop,
        HiddenUnits,
        Experts,
        Vocabulary,
        ArchitectureSearch,
        Svd,
        Magnitude,
        Wanda,
        SparseGpt,
        GradualPruning,
        IterativePruning,
        Finetune,
        Fp16,
        Bf16,
        Int8Dynamic,
        Int8Static,
        Qat,
        WeightOnly,
        Gptq,
        Awq,
        Nf4,
        MixedPrecision,
        ExpertsInt4,
        ComplexInt8,
        GraphFusion,
    )
}


def technique_class(name: str, field: str = "technique") -> type[Technique]:
    """The class of a technique id; raises InputError with the nearest names."""
    if name not in CATALOG:
        raise InputError(field, name, "unknown technique", nearest(name, CATALOG))
    return CATALOG[name]


def build(stage: Stage, field: str = "stages") -> Technique:
    """A stage's technique, its parameters checked; raises InputError naming parameter, value and what is allowed."""
    cls = technique_class(stage.technique, f"{field}.technique")
    try:
        return cls.model_validate(stage.params)
    except ValidationError as error:
        raise InputError(*parameter_problem(cls, error, f"{field}.{cls.id}")) from None


def parameter_problem(cls: type[Technique], error: ValidationError, field: str) -> tuple[str, Any, str, str]:
    """First problem of a validation as (field, value, problem, remedy)."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, cls.model_fields, n=1)
        known = ", ".join(cls.model_fields) or "none"
        remedy = f"did you mean {near[0]}?" if near else f"known parameters: {known}"
        return f"{field}.{name}", first["input"], "unknown parameter", remedy
    return f"{field}.{name}", first["input"], first["msg"].lower(), f"see `advisor knowledge techniques {cls.id}`"

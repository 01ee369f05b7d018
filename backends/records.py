"""What one stage did, as it is stored, and the check that it did what it reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from knowledge.layers import LayerTable, table_from_json, table_to_json
from knowledge.techniques.base import Technique
from knowledge.techniques.catalog import CATALOG
from knowledge.values import Decision, Quality, Refusal

MODEL_FILE = "model.onnx"
EXPORT = "export"


@dataclass(frozen=True)
class StageRecord:
    """What one stage did: its decision, the model after it as numbers, quality on the search split, time and memory."""

    key: str
    technique: str  # a technique id, or "export"
    params: dict[str, Any]
    decision: Decision
    layers: LayerTable = field(repr=False)
    seconds: float  # of the technique itself
    total_seconds: float  # with profile, quality and saving
    peak_memory_bytes: int
    quality: Quality
    file_bytes: int = 0  # of model.onnx, after the export
    warnings: tuple[Refusal, ...] = ()
    reused: bool = False

    @property
    def family(self) -> str:
        return CATALOG[self.technique].family.value if self.technique in CATALOG else EXPORT

    def to_json(self) -> dict[str, Any]:
        return {
            "technique": self.technique,
            "params": self.params,
            "decision": self.decision.model_dump(mode="json"),
            "layers": table_to_json(self.layers),
            "seconds": self.seconds,
            "total_seconds": self.total_seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "quality": self.quality.model_dump(mode="json"),
            "file_bytes": self.file_bytes,
            "warnings": [w.model_dump(mode="json") for w in self.warnings],
        }

    @classmethod
    def from_json(cls, key: str, data: dict[str, Any]) -> StageRecord:
        values = dict(data)
        values["decision"] = Decision.model_validate(data["decision"])
        values["layers"] = table_from_json(data["layers"])
        values["quality"] = Quality.model_validate(data["quality"])
        values["warnings"] = tuple(Refusal.model_validate(w) for w in data["warnings"])
        return cls(key=key, reused=True, **values)


def table_mismatch(technique: Technique, expected: LayerTable, real: LayerTable) -> tuple[Refusal, ...]:
    """A warning where a technique did something else than its decision says."""
    if (expected.parameters, expected.macs) == (real.parameters, real.macs):
        return ()
    observed = f"{real.parameters} parameters and {real.macs} MACs"
    return (_mismatch(technique, observed, f"{expected.parameters} parameters and {expected.macs} MACs"),)


def size_mismatch(technique: Technique, expected_bytes: int, real_bytes: int) -> tuple[Refusal, ...]:
    """A warning where a file's weights are more than a percent off the size that a technique reports."""
    if abs(expected_bytes - real_bytes) <= 0.01 * real_bytes:
        return ()
    return (_mismatch(technique, f"{real_bytes} bytes of weights in the file", f"{expected_bytes} bytes"),)


def _mismatch(technique: Technique, observed: str, expected: str) -> Refusal:
    return Refusal(
        technique=technique.id,
        rule="effect-differs",
        observed=observed,
        required=f"{expected}, by the stage's own decision",
        remedy="the stage did not do what it reports: please report this with the plan",
    )

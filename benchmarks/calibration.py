"""Can the estimates be trusted? Each embedded model in turn is left out, and its measured chains are predicted.

python -m benchmarks.calibration [--json] [--chains]

Quality: share of the measured losses inside the 80 % interval, and the mean Winkler score (width, and 10 × what lies
outside) against that of plain quantiles of the same chain on the other models. Size: error of the predicted file.
Speed: error of the predicted speed-up on this machine, from a roofline fitted to it (`advisor targets calibrate`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from advisor.predict import Predictor
from advisor.profile import profile_source
from advisor.quality import QualityModel
from benchmarks.show import show
from knowledge.evidence import Evidence
from knowledge.load import Knowledge, load_knowledge
from knowledge.measured import load_evidence
from knowledge.schema import Target
from knowledge.techniques.base import Technique
from knowledge.techniques.catalog import build

METRICS = ("accuracy", "perplexity")
OUTSIDE = 0.2  # share that an 80 % interval leaves out


@dataclass(frozen=True)
class Predicted:
    """One measured chain beside what was predicted without its model."""

    row: Evidence
    low: float
    mid: float
    high: float
    plain: tuple[float, float]  # quantiles of the same chain on other models
    size_error: float
    speed_error: float

    @property
    def inside(self) -> bool:
        return self.low <= self.row.drop <= self.high


def winkler(low: float, high: float, value: float) -> float:
    """Score of an interval: its width, and the distance to what lies outside at the price of being wrong."""
    return high - low + 2 / OUTSIDE * (max(0.0, low - value) + max(0.0, value - high))


def techniques(row: Evidence) -> list[Technique]:
    return [build(stage) for stage in row.stages]


def predictions(metric: str, knowledge: Knowledge, target: Target) -> Iterator[Predicted]:
    """Every measured chain of a metric, predicted from the other models' chains."""
    evidence = [r for r in load_evidence() if r.metric == metric]
    for model in sorted({r.model for r in evidence}):
        mine = [r for r in evidence if r.model == model]
        rest = [r for r in evidence if r.model != model]
        layers = profile_source(model, workload=mine[0].workload)
        quality = QualityModel(knowledge, layers.info, metric, mine[0].unit, rest, parameters=layers.parameters)
        predictor = Predictor(layers, target, mine[0].workload, knowledge)
        for row in mine:
            chain = techniques(row)
            spread, outlook = quality.chain(chain), predictor.chain(chain)
            yield Predicted(
                row, spread.low, spread.mid, spread.high, plain_quantiles(row, rest),
                outlook.bytes / row.size_bytes - 1, outlook.speedup / row.speedup - 1,
            )  # fmt: skip


def plain_quantiles(row: Evidence, rest: Sequence[Evidence]) -> tuple[float, float]:
    """10 and 90 % of the losses of the same techniques on other models, at any strength; of all where there is none."""
    name = [s.technique for s in row.stages]
    drops = [r.drop for r in rest if [s.technique for s in r.stages] == name] or [r.drop for r in rest]
    low, high = np.quantile(drops, [OUTSIDE / 2, 1 - OUTSIDE / 2])
    return float(low), float(high)


def summary(metric: str, found: Sequence[Predicted]) -> dict[str, object]:
    """One row of the benchmark."""
    ours = np.mean([winkler(p.low, p.high, p.row.drop) for p in found])
    plain = np.mean([winkler(*p.plain, p.row.drop) for p in found])
    size = np.abs([p.size_error for p in found])
    return {
        "metric": metric,
        "models": len({p.row.model for p in found}),
        "chains": len(found),
        "inside_80": float(np.mean([p.inside for p in found])),
        "winkler": float(ours),
        "winkler_plain": float(plain),
        "winkler_ratio": float(ours / plain),
        "size_error_median": float(np.median(size)),
        "size_within_1_percent": float(np.mean(size <= 0.01)),
        "speedup_error_median": float(np.median(np.abs([p.speed_error for p in found]))),
    }


def chain_rows(found: Sequence[Predicted]) -> list[dict[str, object]]:
    """Every chain by itself, for looking at what goes wrong."""
    return [
        {
            "model": p.row.model.removeprefix("zoo:"),
            "chain": " + ".join(s.technique for s in p.row.stages),
            "drop": p.row.drop,
            "low": p.low,
            "mid": p.mid,
            "high": p.high,
            "plain_low": p.plain[0],
            "plain_high": p.plain[1],
            "size_error": p.size_error,
            "speedup": p.row.speedup,
            "speed_error": p.speed_error,
        }
        for p in found
    ]


def rows(chains: bool = False) -> list[dict[str, object]]:
    """One row per metric, or per chain."""
    knowledge = load_knowledge()
    target = knowledge.targets.get("this-machine") or knowledge.target("server-cpu")
    found: list[dict[str, object]] = []
    for metric in METRICS:
        predicted = list(predictions(metric, knowledge, target))
        found += chain_rows(predicted) if chains else [summary(metric, predicted)]
    return found


if __name__ == "__main__":
    show(rows(chains="--chains" in sys.argv[1:]))

"""Stage sharing: stages that a search asked for, divided by stages that it had to execute.

python -m benchmarks.stage_sharing [--json]
"""

from __future__ import annotations

from benchmarks.show import show
from benchmarks.studies import study


def rows() -> list[dict[str, object]]:
    """One row per model."""
    found: list[dict[str, object]] = []
    for model, trials in (("zoo:digits-cnn", 16), ("zoo:digits-lstm", 16)):
        pareto = study(model, trials)
        requested, executed = pareto["stages_requested"], pareto["stages_executed"]
        found.append(
            {
                "model": model,
                "trials": len(pareto["trials"]),
                "requested": requested,
                "executed": executed,
                "factor": requested / executed,
            }
        )
    return found


if __name__ == "__main__":
    show(rows())

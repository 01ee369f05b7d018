"""Trial overhead: the share of a search's trials that is not training, evaluation, export or timing.

python -m benchmarks.trial_overhead [--json]
"""

from __future__ import annotations

from benchmarks.show import show
from benchmarks.studies import study


def rows() -> list[dict[str, object]]:
    """One row: seconds in trials, seconds of work in them, and what is left over as a share."""
    trials = [t for t in study("zoo:digits-cnn", 12)["trials"] if t["seconds"] is not None]
    total = sum(t["seconds"] for t in trials)
    work = sum(t["work_seconds"] for t in trials)
    return [
        {
            "model": "zoo:digits-cnn",
            "trials": len(trials),
            "trial_seconds": total,
            "work_seconds": work,
            "overhead": 1 - work / total,
        }
    ]


if __name__ == "__main__":
    show(rows())

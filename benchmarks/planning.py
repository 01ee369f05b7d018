"""Planning time: `advisor recommend` as a process, against importing the libraries that it stands on.

python -m benchmarks.planning [--json]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from benchmarks.show import show

REFERENCE = [sys.executable, "-c", "import click, pydantic, networkx, yaml, rich, numpy"]
REQUESTS = {
    "transformer-mobile": ["--arch", "transformer", "--target", "mobile"],
    "cnn-edge": ["--arch", "cnn", "--target", "edge"],
    "rnn-server-cpu": ["--arch", "rnn", "--target", "server-cpu"],
    "zoo:minilm": ["zoo:minilm", "--target", "server-cpu"],
}
ROUNDS = 7


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def rows() -> list[dict[str, object]]:
    """One row per request: medians of alternating runs, and their ratio."""
    found: list[dict[str, object]] = []
    for name, arguments in REQUESTS.items():
        command = [sys.executable, "-m", "cli", "recommend", *arguments]
        seconds(REFERENCE), seconds(command)  # warms the file cache
        pairs = [(seconds(REFERENCE), seconds(command)) for _ in range(ROUNDS)]
        reference, planning = (statistics.median(column) for column in zip(*pairs, strict=True))
        found.append(
            {
                "request": name,
                "seconds": planning,
                "reference_seconds": reference,
                "ratio": statistics.median(p / r for r, p in pairs),
            }
        )
    return found


if __name__ == "__main__":
    show(rows())

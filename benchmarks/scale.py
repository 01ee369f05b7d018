"""Loading and planning time against the number of rules: 300 techniques, 1,000 to 5,000 rules from YAML.

python -m benchmarks.scale [--json] [--plot FILE.svg]

Each size runs in a fresh process that has parsed none of its files before. The exponent of a power law fitted to the
seconds is printed on stderr; n log n has 1.13 between 1,000 and 5,000.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from advisor.report.charts import HEIGHT, LEFT, RIGHT, TOP, WIDTH, axes, polyline
from benchmarks.show import show
from benchmarks.synthetic import add_techniques, write_rules
from knowledge.files import write_text

TECHNIQUES = 300
RULES = (1000, 2000, 3000, 4000, 5000)
ROUNDS = 3
REQUEST = {"arch": "transformer", "target": "mobile", "top": "10"}
Row = dict[str, float]


def measured(techniques: int, rules: int) -> Row:
    """One size in this process: loading without a cache, loading again with one, and the ten best chains."""
    from advisor.advise import advise
    from advisor.request import Request
    from knowledge.load import load_knowledge
    from knowledge.reading import checked

    add_techniques(techniques)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"ADVISOR_CACHE": f"{folder}/cache", "ADVISOR_CONFIG": f"{folder}/config"}
        write_rules(Path(folder) / "rules", rules - len(load_knowledge().rules))
        started = time.perf_counter()
        knowledge = load_knowledge(folder)
        loaded = time.perf_counter()
        checked.cache_clear()  # as in a new process: only what was written to disk helps
        load_knowledge(folder)
        again = time.perf_counter()
        answer = advise(Request.parse(**REQUEST), knowledge)
        planned = time.perf_counter()
    assert len(answer.chains) == int(REQUEST["top"])
    return {
        "techniques": techniques,
        "rules": len(knowledge.rules),
        "load_seconds": loaded - started,
        "warm_load_seconds": again - loaded,
        "plan_seconds": planned - again,
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def rows() -> list[Row]:
    """One row per size: medians of fresh processes, sizes in turn so that drift hits all alike."""
    runs: dict[int, list[dict[str, float]]] = {rules: [] for rules in RULES}
    for _ in range(ROUNDS):
        for rules, found in runs.items():
            command = [sys.executable, "-m", "benchmarks.scale", "--one", str(rules)]
            found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return [{name: statistics.median(run[name] for run in found) for name in found[0]} for found in runs.values()]


def seconds(row: Row) -> float:
    """Loading and planning together."""
    return row["load_seconds"] + row["plan_seconds"]


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The power with which values grow, by least squares on logarithms.

    >>> round(exponent([1, 2, 4], [3, 12, 48]), 3)
    2.0
    """
    xs, ys = [math.log(size) for size in sizes], [math.log(value) for value in values]
    return statistics.linear_regression(xs, ys).slope


def plot(found: Sequence[Row], path: Path) -> None:
    """Seconds by rules, as an SVG file."""
    sizes, values = [float(row["rules"]) for row in found], [seconds(row) for row in found]
    x, y = axes([0, *sizes], [0, *values], zero_x=True, zero_y=True)
    title = f"{TECHNIQUES} techniques: seconds to load and plan, by rules (power {exponent(sizes, values):.2f})"
    box, font = f"0 0 {WIDTH} {HEIGHT}", 'font-family="sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" {font}>',
        f'<title>{escape(title)}</title><text x="{LEFT}" y="{TOP}" font-weight="bold">{escape(title)}</text>',
    ]
    for tick in y.ticks("{:g} s".format):
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{tick.at}" y2="{tick.at}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{tick.at + 4}" text-anchor="end">{tick.text}</text>')
    for tick in x.ticks("{:,.0f}".format):
        parts.append(f'<text x="{tick.at}" y="{HEIGHT - 28}" text-anchor="middle">{tick.text}</text>')
    points = [(x(size), y(value)) for size, value in zip(sizes, values, strict=True)]
    parts.append(f'<polyline points="{polyline(points)}" fill="none" stroke="#2563eb" stroke-width="2"/>')
    for (left, top), value in zip(points, values, strict=True):
        parts.append(f'<circle cx="{left}" cy="{top}" r="4" fill="#2563eb"><title>{value:.2f} s</title></circle>')
    write_text(path, "\n".join([*parts, "</svg>\n"]))


def main() -> None:
    """Parse, measure, show."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="write time against size")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(TECHNIQUES, given.one)))
        return
    found = rows()
    show(found)
    sizes = [float(row["rules"]) for row in found]
    whole, load = (
        exponent(sizes, [seconds(row) for row in found]),
        exponent(sizes, [row["load_seconds"] for row in found]),
    )
    print(f"load and plan grow with the rules to the power {whole:.2f}, load alone to {load:.2f}", file=sys.stderr)
    if given.plot:
        plot(found, given.plot)


if __name__ == "__main__":
    main()

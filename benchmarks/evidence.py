"""Measured evidence for estimates: chains carried out on the embedded models, a row for each.

python -m benchmarks.evidence [--models digits-cnn,minilm] [--budget-seconds 600] [--json]
python -m benchmarks.evidence --models digits-cnn --chain "channels ratio=0.5 + finetune"   measures one row again

Only rows that knowledge/evidence lacks are measured. Each is written as soon as it is there: what is cut short goes on.
Quality is that of the file on the search split; speed is processor time of one thread, against the uncompressed file.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from advisor.recording import evidence_row, protocol_text
from backends.onnx.workload import workload_feed
from backends.runner import Pipeline
from backends.store import Store
from backends.zoo import zoo_names
from benchmarks.chains import chains, names, parse
from benchmarks.show import show
from benchmarks.timing import processor_time
from knowledge.evidence import Evidence
from knowledge.measured import FOLDER, read_rows, write_rows
from knowledge.techniques.catalog import build
from knowledge.values import InputError, Stage, Workload

SEQ_LEN = 128
LITTLE_TRAINED = ("stdlib-lm-large",)  # so far: what it loses tells of no other model


def open_model(name: str, store: Store) -> Pipeline:
    """An embedded model at the workload that evidence is measured at."""
    reads_text = not name.startswith("digits")
    workload = Workload(batch=1, threads=1, seq_len=SEQ_LEN if reads_text else None)
    return Pipeline.open(f"zoo:{name}", workload=workload, seed=0, store=store)


def collect(
    pipelines: Mapping[str, Pipeline],
    plan: Mapping[str, Sequence[str]],
    folder: Path = FOLDER,
    *,
    budget_seconds: float | None = None,
    again: bool = False,
) -> Iterator[Evidence]:
    """Measure the chains of each model that its file lacks; models take turns, each with the same time.

    A chain that fails is told and left out. `again` measures them all. A row replaces that of the same chain on other
    weights.
    """
    deadline = math.inf if budget_seconds is None else time.monotonic() + budget_seconds
    left = {name: list(texts) for name, texts in plan.items()}
    spent = dict.fromkeys(plan, 0.0)
    while name := min((n for n in left if left[n]), key=spent.__getitem__, default=None):
        if time.monotonic() > deadline:
            tell(f"the time is up with {sum(map(len, left.values()))} chains to look at: the same command goes on")
            return
        started = time.monotonic()
        row = _looked_at(pipelines[name], name, left[name].pop(0), folder, again)
        spent[name] += time.monotonic() - started
        if row is not None:
            yield row


def _looked_at(pipeline: Pipeline, name: str, text: str, folder: Path, again: bool) -> Evidence | None:
    """The new row of one chain, written; None where it is known or fails."""
    path = folder / f"{name}.json"
    rows = read_rows(path) if path.exists() else ()
    started = time.monotonic()
    try:
        stages = parse(text, pipeline.original_layers)
        if not again and any(same(row, pipeline, stages) for row in rows):
            return None
        row = measured(pipeline, name, text)
    except Exception as error:  # one chain must not cost the others
        tell(f"warning: {name}: {text}: {type(error).__name__}: {' '.join(str(error).split())}")
        return None
    kept = [r for r in rows if not same_question(r, row.protocol, row.workload, row.stages)]
    write_rows(path, sorted([*kept, row], key=lambda r: (names(r.stages), str(r.stages))))
    tell(f"{name}: {text}: {figures(row)} ({time.monotonic() - started:.0f} s)")
    return row


def measured(pipeline: Pipeline, name: str, text: str) -> Evidence:
    """Carry out one chain and measure its file against the uncompressed one's."""
    stages = parse(text, pipeline.original_layers)
    baseline = pipeline.baseline
    record = list(pipeline.run([build(stage) for stage in stages]))[-1]
    files = pipeline.file(baseline), pipeline.file(record)
    feed = workload_feed(files[0], pipeline.source.data.search, pipeline.workload)
    before, after, speedup = processor_time(*files, feed)
    return evidence_row(
        pipeline,
        stages,
        part="search",
        baseline_quality=baseline.quality,
        quality=record.quality,
        sizes=(baseline.file_bytes, record.file_bytes),
        latencies_ms=(before, after),
        speedup=speedup,
        command=f'python -m benchmarks.evidence --models {name} --chain "{text}"',
    )


def same(row: Evidence, pipeline: Pipeline, stages: Sequence[Stage]) -> bool:
    """Whether a row is this measurement."""
    protocol = protocol_text(pipeline, "search", own_data=False)
    same_weights = row.model_key == pipeline.source.fingerprint
    return same_weights and same_question(row, protocol, pipeline.workload, stages)


def same_question(row: Evidence, protocol: str, workload: Workload, stages: Sequence[Stage]) -> bool:
    """Whether a row answers this, whatever the weights were.

    Parameters that techniques have gained since it was measured stand at their defaults.
    """
    if (row.protocol, row.workload) != (protocol, workload):
        return False
    try:
        return [build(stage) for stage in row.stages] == [build(stage) for stage in stages]
    except InputError:  # a parameter that is no more
        return False


def figures(row: Evidence) -> str:
    return f"{row.compression:.2f}× smaller, {row.speedup:.2f}× faster, drop {row.drop:.3g} {row.unit}"


def tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Measure what knowledge/evidence lacks.")
    parser.add_argument("--models", default=",".join(name for name in zoo_names() if name not in LITTLE_TRAINED))
    parser.add_argument("--chain", help="measure this one, whether it is known or not")
    parser.add_argument("--budget-seconds", type=float)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    store = Store()
    pipelines = {name: open_model(name, store) for name in options.models.split(",")}
    plan = {
        name: [options.chain] if options.chain else chains(pipeline.original_layers)
        for name, pipeline in pipelines.items()
    }
    rows = collect(pipelines, plan, budget_seconds=options.budget_seconds, again=bool(options.chain))
    print_rows(rows, options.json)


def print_rows(rows: Iterable[Evidence], as_json: bool) -> None:
    """The new rows as JSON, or as a table."""
    found = list(rows)
    if as_json:
        print(json.dumps([row.model_dump(mode="json") for row in found], indent=1))
    elif found:
        columns = ("compression", "speedup", "drop", "unit")
        show([{"model": r.model, "chain": names(r.stages)} | {c: getattr(r, c) for c in columns} for r in found])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(str(error))

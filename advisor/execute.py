"""Carry out a plan: stages, artifact, verification on the untouched split, report. The run folder is what remains."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.folders import check_run_folder, make_folder, plan_in, question
from advisor.packing import FOLDER, packed_weights
from advisor.plans import save_plan, techniques
from advisor.profile import check_real
from advisor.progress import Progress, silent
from advisor.workloads import check_measurable
from knowledge.files import replacing_folder, write_text
from knowledge.sources import is_factory
from knowledge.values import Plan

if TYPE_CHECKING:
    from backends.onnx.verification import PackedWeights, Verification
    from backends.records import StageRecord
    from backends.runner import Pipeline
    from backends.store import Store
    from backends.windows import Windows

RUN_SCHEMA = "advisor.run/1"
RESULTS = ("run.json", "verification.json", "report.html", "report.md")
LINKED_BYTES = 64 * 2**20  # smaller files of a stage are copied into the run folder


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder, what `run.json` says, and the verdict."""

    folder: Path
    run: dict[str, Any]
    verification: Verification

    @property
    def within_budget(self) -> bool:
        return bool(self.verification.verdict.within_budget)

    @property
    def exit_code(self) -> int:
        return 0 if self.within_budget else 1


def run_plan(
    plan: Plan,
    out: Path,
    *,
    allow_code: bool = False,
    store: Store | None = None,
    pipeline: Pipeline | None = None,
    recommendation: dict[str, Any] | None = None,
    over: bool = False,
    progress: Progress = silent,
) -> RunResult:
    """Execute `plan` into the run folder `out` and verify the file that ships.

    Finished stages are taken from the store: an interrupted run goes on where it stopped. `over`: the finished run of
    another plan may be replaced. Raises InputError on anything wrong with model, data or folder, RunFailed where a
    stage could not be carried out.
    """
    from advisor.recording import record_run
    from advisor.report.layers import layer_rows
    from backends.records import EXPORT

    chain, out = techniques(plan), Path(out)
    if not over:
        check_run_folder(out, plan)
    pipeline = pipeline or open_pipeline(plan, store, allow_code)  # bad input leaves no folder behind
    pipeline.check(chain)
    note = pipeline.source.info.note
    if note:
        progress(f"warning: {note}")
    baseline = pipeline.baseline
    begin(plan, out)
    progress(f"baseline: {baseline.file_bytes / 1e6:.2f} MB, {_quality(baseline)}")
    records: list[StageRecord] = []
    for record in pipeline.run(chain):
        records.append(record)
        number = sum(r.technique != EXPORT for r in records)
        if record.technique != EXPORT:
            _keep_stage(pipeline.folder(record), out / "stages" / f"{number:02d}-{record.technique}")
        where = "from the store" if record.reused else f"{record.seconds:.1f} s"
        progress(f"{record.technique}: {_quality(record)} ({where})")
    progress("verifying on the untouched split")
    packed = packed_weights(pipeline, records)
    verification = measure(plan, pipeline, pipeline.file(records[-1]), packed=packed and packed[1])
    run = {
        "schema": RUN_SCHEMA,
        "plan": plan.model_dump(mode="json", by_alias=True),
        "stages": [_stage_json(record) for record in records],
        "baseline": _stage_json(baseline),
        "estimate": plan.estimate.model_dump(mode="json") if plan.estimate else None,
        "verification": verification.model_dump(mode="json", by_alias=True),
        "warnings": [
            *([note] if note else []),
            *(w.model_dump(mode="json") for r in records for w in (*r.warnings, *r.decision.skipped)),
        ],
        "recommendation": recommendation,
        "layers": layer_rows(baseline.layers, records[-1].layers),
    }
    clear_results(out)  # none of an earlier run stands beside this artifact
    _ship(pipeline, records, out / "artifact", packed and packed[0])
    write_text(out / "verification.json", json.dumps(run["verification"], indent=1))
    write_text(out / "run.json", json.dumps(run))
    _report(out, run)
    record_run(plan, pipeline, verification, out, progress)
    return RunResult(out, run, verification)


def open_pipeline(plan: Plan, store: Store | None = None, allow_code: bool = False) -> Pipeline:
    """The plan's model and data, loaded. Raises InputError on anything wrong with them, or with the workload on them.

    A factory that the plan itself names was typed by the user or let through by `load_plan`; one that only a stage's
    folder names needs `allow_code`.
    """
    from backends.runner import Pipeline
    from backends.store import Store

    check_real(plan.model, plan.knowledge)
    pipeline = Pipeline.open(
        plan.model,
        workload=plan.workload,
        seed=plan.seed,
        store=store or Store(),
        task=plan.task,
        arch=plan.arch or None,
        metric=plan.metric,
        files=dict(plan.data),
        allow_code=allow_code or is_factory(plan.model),
    )
    first = pipeline.source.data.search.inputs[pipeline.source.inputs[0].name]
    check_measurable(plan.workload, pipeline.original_layers, first.shape[1:])
    return pipeline


def _quality(record: StageRecord) -> str:
    return f"{record.quality.metric} {record.quality.value:.4f}"


def begin(plan: Plan, out: Path) -> None:
    """Make the run folder, or take up the one that is there; what a run of another plan left in it is removed.

    Results go before the plan that they belong to is replaced: at no time does a plan stand beside another's results.
    """
    make_folder(out)
    file = out / "plan.yaml"
    known = plan_in(file)
    if file.exists() and (known is None or question(known) != question(plan)):
        clear_results(out)
        for folder in ("artifact", "stages"):
            if (out / folder).exists():
                shutil.rmtree(out / folder)
    save_plan(plan, file)


def clear_results(out: Path) -> None:
    """Remove what a finished run says of itself; `run.json` first, because it marks the run as finished."""
    for name in RESULTS:
        (out / name).unlink(missing_ok=True)


def _keep_stage(folder: Path, target: Path) -> None:
    """The stage's checkpoint in the run folder: copies, or links to large files, which are then read-only."""
    with replacing_folder(target) as beside:
        for file in sorted(folder.iterdir()):
            kept = beside / file.name
            if file.stat().st_size >= LINKED_BYTES:
                try:
                    os.link(file, kept)
                except OSError:  # another file system, or one without links
                    shutil.copyfile(file, kept)
                else:
                    kept.chmod(0o444)  # the store's file is the same one
            else:
                shutil.copyfile(file, kept)


def _ship(pipeline: Pipeline, records: Sequence[StageRecord], target: Path, packed: Path | None = None) -> None:
    """The artifact folder: the file, packed weights, and the tokenizer and configuration that belong to it."""
    with replacing_folder(target) as beside:
        shutil.copyfile(pipeline.file(records[-1]), beside / "model.onnx")
        model = pipeline.model(records)
        if model is not None and model.tokenizer is not None:
            model.tokenizer.save_pretrained(str(beside))
        config = getattr(model.module, "config", None) if model is not None else None
        if config is not None and hasattr(config, "save_pretrained"):
            config.save_pretrained(str(beside))
        if packed is not None:
            _keep_stage(packed, beside / FOLDER)


def measure(
    plan: Plan,
    pipeline: Pipeline,
    file: Path,
    prompts: Sequence[int] = (),
    batches: Sequence[int] = (),
    packed: PackedWeights | None = None,
    windows: Windows | None = None,
) -> Verification:
    """Size, speed, memory and quality of `file` against the uncompressed model's, on the verification split.

    A causal model's decoding is measured at each of `prompts` (tokens) and `batches`, else at the plan's workload; its
    perplexity is taken over `windows`, else over the split's samples.
    """
    from backends.onnx.verify import verify
    from backends.tasks import reference_outputs

    source = pipeline.source
    split = source.data.verification
    reference = reference_outputs(source.predict, split) if source.task.needs_reference else None
    return verify(
        pipeline.file(pipeline.baseline),
        file,
        task=source.task,
        split=split,
        reference=reference,
        workload=plan.workload,
        budget=plan.budget,
        longest=source.info.max_length,
        prompts=prompts,
        batches=batches,
        packed=packed,
        windows=windows,
    )


def _stage_json(record: StageRecord) -> dict[str, Any]:
    """A stage for `run.json`: the numbers that a report shows."""
    return {
        "technique": record.technique,
        "family": record.family,
        "params": record.params,
        "seconds": record.seconds,
        "peak_memory_bytes": record.peak_memory_bytes,
        "parameters": record.layers.parameters,
        "macs": record.layers.macs,
        "stored_bytes": record.layers.stored_bytes,
        "sparsity": record.layers.sparsity,
        "file_bytes": record.file_bytes,
        "quality": record.quality.model_dump(mode="json"),
        "decision": record.decision.model_dump(mode="json", exclude_defaults=True),
        "reused": record.reused,
    }


def _report(out: Path, run: dict[str, Any]) -> None:
    from advisor.report import write_run_report

    write_run_report(out, run)

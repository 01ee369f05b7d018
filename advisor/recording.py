"""From finished work to evidence: what a run, a search or a benchmark measured, as rows."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from advisor.progress import Progress
from knowledge.evidence import Evidence
from knowledge.sources import is_factory, is_function
from knowledge.tasks import TASKS
from knowledge.techniques.catalog import build
from knowledge.values import InputError, Plan, Quality, RunFailed, Stage

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from backends.data import Split
    from backends.onnx.verification import Verification
    from backends.runner import Pipeline

Part = Literal["search", "verification"]


def record_run(plan: Plan, pipeline: Pipeline, verification: Verification, out: Path, progress: Progress) -> None:
    """Keep what a finished run measured on the verification split; a run that did nothing says nothing."""
    if not plan.stages:
        return
    before, after = verification.baseline, verification.compressed
    row = evidence_row(
        pipeline,
        plan.stages,
        part="verification",
        baseline_quality=before.quality,
        quality=after.quality,
        sizes=(before.size_bytes, after.size_bytes),
        latencies_ms=(before.latency_ms.p50, after.latency_ms.p50),
        speedup=verification.speedup.value,
        command=run_command(plan, out),
        own_data=any(plan.data.values()),
    )
    _keep([row], progress)


def record_trials(plan: Plan, pipeline: Pipeline, trials: Iterable[FrozenTrial], progress: Progress) -> None:
    """Keep what a search's completed trials measured on the search split."""
    from optuna.trial import TrialState

    from advisor.studies.objective import stages_of

    baseline = pipeline.baseline
    found = []
    for trial in trials:
        measured = trial.user_attrs
        if trial.state is not TrialState.COMPLETE or "baseline_latency_ms" not in measured or "same_as" in measured:
            continue  # stopped early, failed, or another trial's figures
        row = evidence_row(
            pipeline,
            stages_of(trial),
            part="search",
            baseline_quality=baseline.quality,
            quality=baseline.quality.model_copy(update={"value": measured["quality"]}),
            sizes=(baseline.file_bytes, measured["size_bytes"]),
            latencies_ms=(measured["baseline_latency_ms"], measured["latency_ms"]),
            speedup=measured["speedup"],
            command=f"{search_command(plan)}  # trial {trial.number}",
            own_data=any(plan.data.values()),
        )
        found.append(row)
    _keep(found, progress)


def _keep(rows: Sequence[Evidence], progress: Progress) -> None:
    """Add rows; where that cannot be done, the work that they come from stays and the trouble is told."""
    from advisor.evidence import add

    try:
        add(rows)
    except (InputError, RunFailed) as error:
        progress(f"warning: what was measured is not kept as evidence: {error}")


def run_command(plan: Plan, out: Path) -> str:
    """Runs the plan in a run folder again."""
    code = " --allow-code" if is_factory(plan.model) or is_function(plan.metric) else ""
    return f"advisor run {shlex.quote(str(out.resolve() / 'plan.yaml'))}{code} --out run"


def search_command(plan: Plan) -> str:
    """Searches as this search did, with the options that decide what is measured."""
    options = {"arch": plan.arch, "task": plan.task, "target": plan.target, "metric": plan.metric, "goal": plan.goal}
    options |= {f"{part}-data": path for part, path in plan.data.items()}
    options |= {"max-drop": str(plan.budget.max_drop).replace(" ", ""), "batch": str(plan.workload.batch)}
    options |= {"threads": str(plan.workload.threads), "seed": str(plan.seed)}
    if plan.workload.seq_len:
        options["seq-len"] = str(plan.workload.seq_len)
    words = [word for name, value in options.items() if value for word in (f"--{name}", value)]
    return shlex.join(["advisor", "search", plan.model, *words, "--out", "study"])


def evidence_row(
    pipeline: Pipeline,
    stages: Sequence[Stage],
    *,
    part: Part,
    baseline_quality: Quality,
    quality: Quality,
    sizes: tuple[int, int],
    latencies_ms: tuple[float, float],
    speedup: float,
    command: str,
    own_data: bool = False,
) -> Evidence:
    """One measured chain; pairs are (uncompressed, compressed). `own_data`: judged on the user's files."""
    source, workload = pipeline.source, pipeline.workload
    spelled = tuple(Stage(technique=s.technique, params=build(s).model_dump(mode="json")) for s in stages)
    protocol = protocol_text(pipeline, part, own_data)
    info = pipeline.original_layers.info
    return Evidence(
        id=evidence_id(pipeline, spelled, protocol),
        model=source.name,
        model_key=source.fingerprint,
        arch=info.family,
        subfamily=info.subfamily,
        parameters=pipeline.original_layers.parameters,
        blocks=pipeline.original_layers.info.blocks,
        task=source.task.name,
        metric=TASKS[source.task.name][0],
        unit=quality.unit,
        protocol=protocol,
        stages=spelled,
        baseline_quality=baseline_quality.value,
        quality=quality.value,
        drop=quality.drop_from(baseline_quality),
        baseline_size_bytes=sizes[0],
        size_bytes=sizes[1],
        workload=workload,
        baseline_latency_ms=latencies_ms[0],
        latency_ms=latencies_ms[1],
        speedup=speedup,
        machine=machine_text(),
        command=command,
    )


def evidence_id(pipeline: Pipeline, stages: Sequence[Stage], protocol: str) -> str:
    """Equal for the same weights, stages, protocol, workload and seed; measuring again replaces the row."""
    from backends.store import digest

    told = [s.model_dump(mode="json") for s in stages], pipeline.workload.model_dump(mode="json"), pipeline.seed
    return digest("evidence", pipeline.source.fingerprint, protocol, *told)[:16]


def protocol_text(pipeline: Pipeline, part: Part, own_data: bool) -> str:
    """`accuracy of the ONNX file on the search split: 297 samples, pixels 1×8×8`; own data are told by their hash."""
    split: Split = getattr(pipeline.source.data, part)
    name, array = next(iter(split.inputs.items()))
    shape = "×".join(map(str, array.shape[1:]))
    told = f"{pipeline.source.task.metric} of the ONNX file on the {part} split: {len(split)} samples, {name} {shape}"
    return f"{told}, data {split.fingerprint()[:12]}" if own_data else told


def machine_text() -> str:
    """The processor and the runtime that timed."""
    from backends.onnx.environment import environment

    found = environment(1)
    integers = "8-bit dot products" if found.vnni else "no 8-bit dot products"
    return f"{found.cpu}, {integers}, onnxruntime {found.versions['onnxruntime']}"

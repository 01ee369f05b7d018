"""Measure a finished artifact again: the same plan, the same splits, this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advisor.execute import measure, open_pipeline
from advisor.harness import Harness, examine, open_exam
from advisor.packing import packed_beside
from advisor.plans import load_plan
from advisor.progress import Progress, silent
from advisor.report import read_json, write_run_report
from knowledge.files import write_text
from knowledge.layers import ModelInfo
from knowledge.values import InputError


def verify_artifact(
    artifact: Path,
    plan_file: Path | None = None,
    allow_code: bool = False,
    progress: Progress = silent,
    prompts: Sequence[int] = (),
    batches: Sequence[int] = (),
    window: int | None = None,
    stride: int | None = None,
    harness: Harness | None = None,
) -> dict[str, Any]:
    """The JSON of a fresh verification of a run folder, its artifact folder or its ONNX file.

    A causal model's decoding is measured at each of `prompts` (tokens) and `batches`, else at the plan's workload; its
    perplexity is taken over windows of `window` tokens, `stride` apart, else over the samples of the data; and both
    files answer the tasks of `harness`. A run folder's `verification.json`, `run.json` and reports then show it. Raises
    InputError without a file or a plan, and for prompts, windows or tasks that the model cannot read.
    """
    from backends.windows import asked_windows

    file, folder = artifact_file(Path(artifact))
    if plan_file is None:
        plan_file = folder / "plan.yaml"
        if not plan_file.exists():
            raise InputError("artifact", artifact, "lies in no run folder: plan.yaml is missing", "name it with --plan")
    plan = load_plan(plan_file, allow_code)
    if harness:
        harness.check_installed()
    check_loads(file)
    pipeline = open_pipeline(plan, allow_code=allow_code)
    source = pipeline.source
    check_prompts(prompts, batches, source.info)
    windows = asked_windows(window, stride, source.data.verification, source.info, source.task.metric)
    exam = harness and open_exam(harness, pipeline, file, allow_code)
    progress(f"exporting the uncompressed {plan.model}")
    baseline = pipeline.baseline
    scores = examine(exam, plan, pipeline.file(baseline), file, progress) if exam else ()
    progress(f"measuring against it: {baseline.file_bytes / 1e6:.2f} MB")
    verification = measure(plan, pipeline, file, prompts, batches, packed_beside(file), windows)
    found = verification.model_copy(update={"lm_eval": scores}).model_dump(mode="json", by_alias=True)
    if (folder / "run.json").exists():
        run = {**read_json(folder / "run.json"), "verification": found}
        write_text(folder / "verification.json", json.dumps(found, indent=1))
        write_text(folder / "run.json", json.dumps(run))
        write_run_report(folder, run)
    return found


def check_prompts(prompts: Sequence[int], batches: Sequence[int], info: ModelInfo) -> None:
    """Raise InputError where decoding cannot be measured as asked."""
    from backends.onnx.decoding import NEW_TOKENS

    asked = {"prompt-length": prompts, "batch": batches}
    for name, values in asked.items():
        if values and info.task != "causal-lm":
            raise InputError(name, values[0], f"{info.name} writes no text", "leave it out")
    for length in prompts:
        if 0 < info.max_length < length + NEW_TOKENS:
            problem = f"{info.name} has {info.max_length} positions, and {NEW_TOKENS} are for the tokens that follow"
            most = info.max_length - NEW_TOKENS
            raise InputError(
                "prompt-length", length, problem, f"ask for {most} or fewer" if most > 0 else "leave it out"
            )


def check_loads(file: Path) -> None:
    """Raise InputError for a file that the runtime cannot load."""
    from backends.onnx.session import open_session

    open_session(file, 1, given=True)


def artifact_file(artifact: Path) -> tuple[Path, Path]:
    """The ONNX file behind a run folder, a study folder, an artifact folder or a file; and its run folder."""
    if artifact.is_file():
        return artifact, artifact.parent.parent if artifact.parent.name == "artifact" else artifact.parent
    tried = (
        (artifact / "artifact" / "model.onnx", artifact),
        (artifact / "best" / "artifact" / "model.onnx", artifact / "best"),
        (artifact / "model.onnx", artifact.parent),
    )
    for file, folder in tried:
        if file.exists():
            return file, folder
    if not artifact.exists():
        raise InputError("artifact", artifact, "no such file or folder", "give a run folder or an .onnx file")
    raise InputError("artifact", artifact, "holds no artifact/model.onnx", "give a run folder or an .onnx file")

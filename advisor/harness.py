"""lm-eval tasks that `verify` is asked for: checked before anything is measured, then put to both files."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.progress import Progress
from knowledge.values import InputError, Plan

if TYPE_CHECKING:
    from backends.onnx.verification import TaskScore
    from backends.runner import Pipeline

EXTRA = "pip install 'compression-advisor[lm-eval]'"
USUAL_POSITIONS = 2048  # where neither the model nor its tokenizer tells


@dataclass(frozen=True)
class Harness:
    """Names of tasks or paths of their YAML files, the folder of the user's own, and how many documents of each."""

    tasks: tuple[str, ...]
    folder: Path | None = None
    limit: int | None = None

    @classmethod
    def asked(cls, tasks: str | None, folder: Path | None, limit: int | None) -> Harness | None:
        """What the options say; None without tasks. Raises InputError for options that make no sense."""
        if tasks is None:
            if folder is not None or limit is not None:
                name, value = ("lm-eval-include", folder) if folder is not None else ("limit", limit)
                raise InputError(name, value, "belongs to --lm-eval", "name the tasks with --lm-eval")
            return None
        names = tuple(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
        if not names:
            raise InputError("lm-eval", tasks, "names no task", "name one or more, with commas between them")
        if folder is not None and not folder.is_dir():
            raise InputError("lm-eval-include", folder, "no such folder", "give the folder of the tasks' YAML files")
        return cls(names, folder, limit)

    def check_installed(self) -> None:
        """Raise InputError without the extra."""
        if importlib.util.find_spec("lm_eval") is None:
            raise InputError("lm-eval", ",".join(self.tasks), "the extra is not installed", EXTRA)


@dataclass(frozen=True)
class Exam:
    """Loaded tasks, and what is needed to put them to a file."""

    harness: Harness
    tasks: Any
    tokenizer: Any
    longest: int
    vocabulary: int
    allow_code: bool


def open_exam(harness: Harness, pipeline: Pipeline, file: Path, allow_code: bool) -> Exam:
    """Load the tasks and the tokenizer that stands beside `file`, else the model's own.

    Raises InputError for tasks that cannot be had or would run code, and for a model that writes no text.
    """
    from backends.huggingface import read_tokenizer

    named, info = ",".join(harness.tasks), pipeline.source.info
    if info.task != "causal-lm":
        raise InputError("lm-eval", named, f"{info.name} writes no text", "leave it out")
    if more := {spec.name for spec in pipeline.source.inputs} - {"input_ids", "attention_mask"}:
        raise InputError("lm-eval", named, f"{info.name} reads {min(more)} beside its tokens", "leave it out")
    model = pipeline.source.model
    tokenizer: Any = read_tokenizer(file.parent)
    if tokenizer is None and model is not None:
        tokenizer = model.tokenizer
    if tokenizer is None:
        remedy = "put its tokenizer.json beside the file"
        raise InputError("lm-eval", named, f"{info.name} has no tokenizer for texts", remedy)
    from backends.harness.tasks import load_tasks

    tasks = load_tasks(harness.tasks, harness.folder, allow_code)
    told = int(tokenizer.model_max_length)  # an astronomical number where it does not tell
    longest = info.max_length or (told if told < 10**9 else USUAL_POSITIONS)
    return Exam(harness, tasks, tokenizer, longest, info.vocab_size, allow_code)


def examine(exam: Exam, plan: Plan, baseline: Path, compressed: Path, progress: Progress) -> tuple[TaskScore, ...]:
    """Scores of both files on the same documents. Raises RunFailed, InputError."""
    from backends.harness.model import HarnessModel
    from backends.harness.tasks import compare
    from backends.harness.writing import Writer
    from backends.onnx.session import open_session, session_predictor

    models = []
    for path in (baseline, compressed):
        session = open_session(path, plan.workload.threads)
        writer = Writer(session_predictor(session), exam.longest, session)
        models.append(HarnessModel(writer, exam.tokenizer, exam.vocabulary))
    limit = exam.harness.limit
    much = f", the first {limit:,} documents of each" if limit else ""
    progress(f"lm-eval on both files: {', '.join(exam.harness.tasks)}{much}")
    return tuple(compare(exam.tasks, models[0], models[1], limit, exam.allow_code))

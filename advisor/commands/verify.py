"""`advisor verify`: parse, call one function, show."""

from __future__ import annotations

from pathlib import Path

import click

from advisor.show import console, options

FILE = click.Path(path_type=Path)
COUNT = click.IntRange(1)


@click.command()
@click.argument("artifact", type=FILE)
@click.option("--plan", type=FILE, help="The plan that made it. [plan.yaml of its run folder]")
@click.option(
    "--prompt-length", type=COUNT, multiple=True, metavar="N", help="Decode behind N tokens; may repeat. [the plan's]"
)
@click.option(
    "--batch", type=COUNT, multiple=True, metavar="N", help="Decode N texts at once; may repeat. [1 and the plan's]"
)
@click.option("--window", type=COUNT, metavar="N", help="Take perplexity over windows of N tokens. [the data's]")
@click.option("--stride", type=COUNT, metavar="N", help="Score N tokens of a window, the others are context. [all]")
@click.option("--lm-eval", metavar="TASK[,TASK]", help="Put lm-eval tasks to both files: names, or YAML files.")
@click.option("--lm-eval-include", type=FILE, metavar="DIR", help="Folder of your own lm-eval tasks.")
@click.option("--limit", type=COUNT, metavar="N", help="Only the first N documents of each lm-eval task. [all]")
@options.allow_code
@options.as_json
def verify(
    artifact: Path,
    plan: Path | None,
    prompt_length: tuple[int, ...],
    batch: tuple[int, ...],
    window: int | None,
    stride: int | None,
    lm_eval: str | None,
    lm_eval_include: Path | None,
    limit: int | None,
    allow_code: bool,
    as_json: bool,
) -> int:
    """Measure ARTIFACT against its uncompressed model again.

    ARTIFACT is a run folder, or its .onnx file with --plan. Of a language model, the time to the first token and the
    tokens per second are measured too, at every prompt length and batch size; its perplexity is taken over the windows
    and the stride asked for, and both files answer the lm-eval tasks (with the extra lm-eval). Python functions that
    your own tasks name are run with --allow-code only.

    \b
    Example:
      advisor verify run
      advisor verify run --prompt-length 32 --prompt-length 128 --batch 1 --batch 8
      advisor verify run --window 256 --stride 64
      advisor verify run --lm-eval my-task --lm-eval-include tasks --limit 200
    """
    from advisor.harness import Harness
    from advisor.show.runs import show_verification
    from advisor.verify import verify_artifact

    harness = Harness.asked(lm_eval, lm_eval_include, limit)
    verification = verify_artifact(
        artifact, plan, allow_code, console.progress, prompt_length, batch, window, stride, harness
    )
    console.answer(as_json, verification, lambda: show_verification(verification, str(artifact)))
    return 0 if verification["verdict"]["within_budget"] else 1

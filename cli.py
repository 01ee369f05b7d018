"""The command line: parse, call one function, show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from advisor.commands.checks import diagnose, lint
from advisor.commands.compress import compress, unpack
from advisor.commands.evidence import evidence
from advisor.commands.explain import explain, graph
from advisor.commands.knowledge import knowledge
from advisor.commands.targets import targets
from advisor.commands.verify import verify
from advisor.show import console, options
from advisor.show.shell import Shell

if TYPE_CHECKING:
    from advisor.request import Request

RUN = click.Path(path_type=Path)


@click.group(cls=Shell, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="compression-advisor", prog_name="advisor")
def main() -> None:
    """Advises how to compress a model, does it, and proves on the ONNX file what was gained.

    \b
    Exit codes: 0 done and within the budget, 1 the budget is missed or nothing fits,
    2 bad input, 3 a run failed, 130 interrupted (the same command goes on).
    """


@main.command()
@click.argument("model", required=False)
@options.request
@click.option("--params", metavar="7B", help="Size of the typical model, where no MODEL is given.")
@click.option("--top", metavar="N", help="How many chains to show. [5]")
@options.as_json
def recommend(request: Request, as_json: bool) -> int:
    """Rank chains of techniques for MODEL and a target.

    From what is known, with reasons; nothing is run.

    \b
    Example:
      advisor recommend --arch transformer --target mobile
    """
    from advisor.advise import advise
    from advisor.show.recommendation import show_recommendation

    advice = advise(request).to_json()
    console.answer(as_json, advice, lambda: show_recommendation(advice))
    return 0 if any(chain["fits"] for chain in advice["chains"]) else 1


@main.command()
@click.argument("model")
@options.arch_and_task
@click.option("--layers", is_flag=True, help="Show every layer.")
@options.as_json
def inspect(model: str, arch: str | None, task: str | None, layers: bool, as_json: bool) -> None:
    """Show what MODEL is made of.

    Weights, arithmetic, embeddings, layers.

    \b
    Example:
      advisor inspect zoo:digits-cnn
    """
    from advisor import inspect as inspection
    from advisor.profile import profile_source
    from advisor.show.machine import show_inspection

    found = inspection.inspect(profile_source(model, arch=arch, task=task))
    console.answer(as_json, inspection.to_json(found), lambda: show_inspection(found, layers))


@main.command()
@click.argument("model")
@options.request
@options.out
@options.trials(24)
@click.option("--time-budget", metavar="30m", help="Stop starting trials after this long.")
@click.option("--storage", metavar="URL", help="Optuna storage. [SQLite in the folder]")
@click.option("--workers", type=click.IntRange(1), metavar="N", default=1, help="Processes that search. [1]")
@options.as_json
def search(
    request: Request,
    out: Path,
    trials: int,
    time_budget: str | None,
    storage: str | None,
    workers: int,
    as_json: bool,
) -> int:
    """Search chains and parameters, and run the best plan.

    The best plan is verified on data that the search has not seen. The same
    command on the same folder goes on where it stopped.

    \b
    Example:
      advisor search zoo:digits-cnn --max-drop 2pp --trials 12 --out study
    """
    from advisor.show.runs import show_search
    from advisor.studies.search import search as searched
    from advisor.units import parse_seconds

    seconds = parse_seconds("time-budget", time_budget) if time_budget else None
    result = searched(
        request, trials, out, storage=storage, time_budget_seconds=seconds, workers=workers, progress=console.progress
    )
    console.answer(as_json, result.pareto, lambda: show_search(result, out))
    return result.exit_code


@main.command()
@click.argument("plan", type=RUN)
@options.out
@options.allow_code
@options.as_json
def run(plan: Path, out: Path, allow_code: bool, as_json: bool) -> int:
    """Carry out PLAN stage by stage, export, verify, report.

    \b
    Example:
      advisor run study/best-plan.yaml --out run
    """
    from advisor.execute import run_plan
    from advisor.plans import load_plan
    from advisor.show.runs import show_run

    result = run_plan(load_plan(plan, allow_code), out, allow_code=allow_code, progress=console.progress)
    console.answer(as_json, result.run, lambda: show_run(result.run, out))
    return result.exit_code


@main.command()
@click.argument("folder", type=RUN, metavar="RUN|STUDY")
@options.as_json
def report(folder: Path, as_json: bool) -> None:
    """Write the reports of a run or study again.

    HTML and Markdown, from the folder's JSON files.

    \b
    Example:
      advisor report study
    """
    from advisor.report import rewrite_reports

    written = [str(path) for path in rewrite_reports(folder)]
    console.answer(as_json, {"schema": "advisor.report/1", "files": written}, lambda: click.echo("\n".join(written)))


@main.command()
@click.argument("runs", type=RUN, nargs=-1, required=True)
@options.as_json
def compare(runs: tuple[Path, ...], as_json: bool) -> None:
    """Show finished RUNS side by side.

    With a caution where their figures are not comparable.

    \b
    Example:
      advisor compare run study
    """
    from advisor import compare as comparing
    from advisor.show.runs import show_comparison

    found = comparing.to_json(comparing.compare_runs(runs))
    console.answer(as_json, found, lambda: show_comparison(found))


@main.command()
@options.as_json
def doctor(as_json: bool) -> int:
    """Say what this machine and installation can run, and why not.

    \b
    Example:
      advisor doctor
    """
    from advisor import doctor as doctors
    from advisor.show.machine import show_diagnosis

    found = doctors.diagnose_machine()
    console.answer(as_json, doctors.to_json(found), lambda: show_diagnosis(found))
    return found.exit_code


@main.command()
@options.out
@options.trials(12)
def demo(out: Path, trials: int) -> int:
    """Compress an embedded model in a few minutes.

    digits-cnn: recommend, search, run, verify, report.

    \b
    Example:
      advisor demo --out demo
    """
    from advisor.show.demo import show_demo

    return show_demo(out, trials)


for command in (compress, unpack, verify, targets, knowledge, explain, graph, evidence, lint, diagnose):
    main.add_command(command)


if __name__ == "__main__":
    main()

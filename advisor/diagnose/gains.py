"""Why a gain that was expected is not in the file: what the file itself explains, and what each stage did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from advisor.diagnose import commands
from advisor.diagnose.missed import named, turn_text
from advisor.diagnose.read import Run
from advisor.diagnose.values import Diagnosis
from advisor.report.measured import speed_text
from advisor.report.stages import compared
from advisor.texts import warning_text
from advisor.units import bytes_text, ratio_text
from knowledge.load import load_knowledge
from knowledge.techniques.base import Level
from knowledge.techniques.catalog import CATALOG

UNCHANGED = 0.005  # of the bytes
LARGER = 32  # times the batch, where starting operators no longer counts

Advice = tuple[str, tuple[str, ...]]  # in words, and as commands


def explained(run: Run) -> Iterator[Diagnosis]:
    """What verification found in the file, each with what to try."""
    gain = f"{ratio_text(run.verification['compression'])} smaller, {speed_text(run.verification['speedup'])}"
    for found in run.verification["explanations"]:
        advice, to_try = NEXT.get(found["rule"], _ask)(run)
        yield Diagnosis(
            id=found["rule"],
            level="cause",
            about="file",
            seen=gain,
            why=found["text"],
            source="facts of the file that ships, read when it was verified",
            advice=advice,
            commands=to_try,
        )


def _ask(run: Run) -> Advice:
    return "see what is advised for this model and target", (commands.recommend(run.plan),)


def _remove_structures(run: Run) -> Advice:
    mended = commands.edited_run(run.plan, run.folder)
    return "remove whole structures instead of single weights", (commands.recommend(run.plan), *mended)


def _on_dot_products(run: Run) -> Advice:
    return "judge the speed on the target, or plan for a processor with INT8 dot products", _elsewhere(run, "int8_dot")


def _with_exact_kernels(run: Run) -> Advice:
    advice = "open the file as its README.md shows, or plan for a processor with INT8 dot products"
    return advice, _elsewhere(run, "int8_dot")


def _on_half_precision(run: Run) -> Advice:
    here = commands.recommend(run.plan, goal="latency")
    return "take INT8 here, or run the fp16 file where fp16 is computed", (here, *_elsewhere(run, "fp16"))


def _elsewhere(run: Run, feature: str) -> tuple[str, ...]:
    """What would be advised on the first other target that has a kind of arithmetic."""
    known = load_knowledge(run.plan.knowledge or None).targets.values()
    fast = [t.id for t in known if feature in t.accelerates and t.id != run.plan.target]
    return tuple(commands.recommend(run.plan, target=target, threads=None) for target in fast[:1]) or (
        "advisor doctor",
    )


def _search_speed(run: Run) -> Advice:
    return "search quantizations: another form may find integer kernels", (
        commands.search_beside(run.plan, run.folder, goal="latency"),
    )


def _search_size(run: Run) -> Advice:
    return "take fewer bits a weight: fewer operations do not help", (
        commands.search_beside(run.plan, run.folder, goal="size"),
    )


def _embeddings_too(run: Run) -> Advice:
    switches = [name for name, t in named(run) if getattr(t, "embeddings", None) is False]
    if not switches:
        return "search chains with a technique for embeddings", (
            commands.search_beside(run.plan, run.folder, goal="size"),
        )
    settings = {f"{name}.embeddings": True for name in switches}
    return f"quantize the embeddings: {turn_text(settings)}", commands.edited_run(run.plan, run.folder, settings)


def _larger_batch(run: Run) -> Advice:
    batch = LARGER * run.plan.workload.batch
    to_try = (commands.recommend(run.plan, batch=batch), commands.search_beside(run.plan, run.folder, batch=batch))
    return f"compare at batch {batch}, where requests can be answered together", to_try


NEXT: Mapping[str, Callable[[Run], Advice]] = {  # by the names of the rules in backends/onnx/explain.py
    "zeros-stored-densely": _remove_structures,
    "no-vnni": _on_dot_products,
    "integer-sums-overflow": _with_exact_kernels,
    "half-precision-on-cpu": _on_half_precision,
    "unfused-nodes": _search_speed,
    "float-products-left": _search_speed,
    "embedding-dominates": _embeddings_too,
    "bound-by-memory": _search_size,
    "bound-by-overhead": _larger_batch,
    "graph-outweighs-weights": _ask,
}


def slower(run: Run) -> Iterator[Diagnosis]:
    """A file that is surely slower than the uncompressed one."""
    speedup = run.verification["speedup"]
    if speedup["high"] < 1:
        forms = [s["technique"] for s in run.stages if CATALOG[s["technique"]].level is Level.GRAPH]
        yield Diagnosis(
            id="slower",
            level="cause",
            about="file",
            seen=speed_text(speedup),
            why="steps around each operator, or kernels that the runtime lacks, cost more than small numbers save",
            source="measured: dynamic INT8 runs convolutions at 0.17 times, signed static INT8 at 0.7 times",
            advice=f"try another form than {' and '.join(forms)}" if forms else "leave the slow stage out",
            commands=(
                commands.recommend(run.plan, goal="latency"),
                commands.search_beside(run.plan, run.folder, goal="latency"),
            ),
        )


def skipped(run: Run) -> Iterator[Diagnosis]:
    """Stages that left layers alone, or did something else than they report."""
    for number, stage in enumerate(run.stages, 1):
        left = stage["decision"].get("skipped", ())
        if left:
            shown = "; ".join(dict.fromkeys(f"{s['observed']}, needs {s['required']}" for s in left[:3]))
            yield Diagnosis(
                id="layers-skipped",
                level="cause",
                about=f"stage {number} ({stage['technique']})",
                seen=f"{len(left)} times it left something alone: {shown}",
                why="what a stage leaves alone keeps its size and its time",
                source="the stage's own record",
                advice=next((s["remedy"] for s in left if s.get("remedy")), "see what else applies to these layers"),
                commands=(commands.recommend(run.plan),),
            )
    assert run.run is not None
    for warning in run.run["warnings"]:
        if isinstance(warning, dict) and warning.get("rule") == "effect-differs":
            yield Diagnosis(
                id="effect-differs",
                level="cause",
                about=str(warning["technique"]),
                seen=warning_text(warning),
                why="the stage did not do what its decision says: its estimate cannot hold",
                source="the contract of every technique: effect equals the profile of the result",
                advice="look at the stage in the report, and report the plan",
                commands=(commands.report(run.folder),),
            )


def no_effect(run: Run) -> Iterator[Diagnosis]:
    """Stages on the file that left it as it was."""
    assert run.run is not None
    sizes = [s.get("file_bytes") or 0 for s in run.run["stages"]]
    for before, after, stage in zip(sizes, sizes[1:], run.run["stages"][1:], strict=False):
        technique = stage["technique"]
        if technique not in CATALOG or not before or abs(after - before) > UNCHANGED * before:
            continue
        kept = stage["decision"].get("kept", True)
        seen = f"{bytes_text(before)} before and {bytes_text(after)} after"
        yield Diagnosis(
            id="no-effect",
            level="note",
            about=technique,
            seen=seen if kept else f"{seen}: its result was not faster, and was not kept",
            why="a stage that changes nothing costs time when it is run, and maybe quality",
            source="measured",
            advice="leave the stage out",
            commands=(commands.lint(run.folder),),
        )


def off_estimate(run: Run) -> Iterator[Diagnosis]:
    """Figures outside what was expected."""
    assert run.run is not None
    off = [row for row in compared(run.run) if row.inside is False]
    if off:
        yield Diagnosis(
            id="off-estimate",
            level="note",
            about="run",
            seen="; ".join(f"{r.figure}: {r.measured}, where {r.estimate} was expected" for r in off),
            why="; ".join(dict.fromkeys(f"{r.figure}: {r.basis}" for r in off)),
            source="the plan's estimate beside the measurement",
            advice="measure again where the machine was busy; later estimates lean on this run",
            commands=(commands.verify(run.plan, run.folder), commands.recommend(run.plan)),
        )


def uncertain(run: Run) -> Iterator[Diagnosis]:
    """A speed-up that cannot be told from none."""
    speedup = run.verification["speedup"]
    if run.plan.stages and speedup["low"] <= 1 <= speedup["high"]:
        yield Diagnosis(
            id="speedup-uncertain",
            level="note",
            about="file",
            seen=f"{speed_text(speedup)}: this cannot be told from no difference",
            why="the same file measured twice differs by about 4 % on a shared machine",
            source="measured",
            advice="measure again while nothing else runs",
            commands=(commands.verify(run.plan, run.folder),),
        )

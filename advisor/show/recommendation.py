"""A recommendation as a person reads it: what was asked and assumed, the chains, why, and what was refused."""

from __future__ import annotations

from collections.abc import Callable

import click

from advisor.rules import OWN_SOURCE
from advisor.show.console import heading, pairs, paragraph, table
from advisor.texts import Json, chain_text, flat_text, params_text, warning_text
from advisor.units import bytes_text, count_text, interval_text, ms_text, ratio_text, seconds_text


def show_recommendation(advice: Json) -> None:
    """Print the JSON of a recommendation."""
    click.secho(about(advice["profile"]), bold=True)
    pairs(asked(advice["request"]), indent="  ")
    show_chains(advice["chains"])
    show_left_out(advice)
    show_misses(advice)
    if advice["chains"]:
        show_cost(advice["chains"][0])
        show_reasons(advice["chains"][0])
    show_changes(advice["changes"])
    show_refused(advice["refused"])


def show_chains(chains: list[Json]) -> None:
    heading("Chains, best first (estimates)")
    rows = [
        (
            str(chain["rank"]),
            chain_text(chain["stages"]),
            interval_text(chain["estimate"]["size_bytes"], bytes_text),
            interval_text(chain["estimate"]["compression"], ratio_text),
            interval_text(chain["estimate"]["speedup"], ratio_text),
            interval_text(chain["estimate"]["quality_drop"]),
            "yes" if chain["fits"] else "no",
        )
        for chain in chains
    ]
    right = ("size", "smaller", "faster", "quality lost")
    table(("", "chain", "size", "smaller", "faster", "quality lost", "fits"), rows, right, fold="chain")


def show_left_out(advice: Json) -> None:
    """That some chains were not estimated, where that is so."""
    if not advice["all_estimated"]:
        count = advice["chains_estimated"]
        paragraph(f"{count} chains were estimated, the most promising first; others were not looked at.")


def show_cost(chain: Json) -> None:
    """What carrying out the first chain takes."""
    cost = chain["cost"]
    if not chain["stages"] or cost is None:
        return
    heading("What the first costs to carry out (estimates)")
    seconds, memory = cost["training_seconds"], cost["peak_memory_bytes"]
    training = f"{interval_text(seconds, seconds_text)} per thousand samples" if seconds["mid"] else "none"
    peak = f"{interval_text(memory, bytes_text)} at its peak; this machine has {bytes_text(cost['memory_bytes'])}"
    starts = "; ".join(f"{s['technique']}: {start_text(s)}" for s in chain["stages"] if s["params"])
    rows = [("data", cost["data"]), ("training", training), ("memory", peak)]
    pairs([*rows, ("start with", starts)] if starts else rows, indent="  ")
    if not cost["fits_memory"]:
        paragraph("That is more memory than this machine has.", first="  - ")


def start_text(stage: Json) -> str:
    """`ratio 0.5 (0.1 to 0.7), importance l2 (or l1, taylor)`: where to start, and what search tries."""
    parts = []
    for name, value in stage["params"].items():
        tried = [v for v in stage["ranges"].get(name, ()) if isinstance(v, str | bool) and v != value]
        numbers = [v for v in stage["ranges"].get(name, ()) if isinstance(v, int | float) and not isinstance(v, bool)]
        span = f" ({min(numbers):g} to {max(numbers):g})" if len(numbers) > 1 else ""
        others = f" (or {', '.join(flat_text(v) for v in tried)})" if tried else ""
        parts += [f"{params_text({name: value})}{span}{others}"] if value is not None else []
    return ", ".join(parts)


def show_changes(changes: list[Json]) -> None:
    """What would make the answer another one."""
    if changes:
        heading("What would change the answer")
        for change in changes:
            option = f" ({change['option']})" if change["option"] else ""
            text = change["text"]
            paragraph(f"{text[:1].upper()}{text[1:].removesuffix('.')}{option}.", first="  - ")


def show_reasons(chain: Json) -> None:
    if chain["reasons"]:
        heading("Why the first")
        for number, reason in enumerate(chain["reasons"], 1):
            paragraph(with_source(reason), first=f"{number:3}. ")
    if chain["warnings"]:
        heading("Warnings")
        for warning in chain["warnings"]:
            paragraph(warning_text(warning), first="  - ")


def show_refused(refused: list[Json]) -> None:
    """Each reason once, with all the techniques that it refuses."""
    if not refused:
        return
    heading("Refused")
    groups: dict[tuple[str, str, str], list[str]] = {}
    for no in refused:
        own = no["source"].startswith(OWN_SOURCE)  # each technique names its paper: the list would be of papers
        reason = (no["text"], OWN_SOURCE if own else no["source"], no.get("remedy") or "")
        groups.setdefault(reason, []).append(no["technique"])
    for (text, source, remedy), names in groups.items():
        paragraph(f"{', '.join(names)}: {text} [{source}]", first="  - ")
        if remedy:
            paragraph(f"instead: {remedy}", first="    ")


def with_source(said: Json) -> str:
    return f"{said['text']} [{said['source']}]" if said.get("source") else str(said["text"])


def show_misses(advice: Json) -> None:
    """Nothing fits: by how much the nearest chain misses."""
    nearest = next((c for c in advice["chains"] if c["id"] == advice["nearest"]), None)
    if nearest is None:
        return
    click.echo()
    click.secho("None fits.", fg="red", nl=False)
    click.echo(f" Nearest: {chain_text(nearest['stages'])}")
    for miss in nearest["misses"]:
        paragraph(miss_text(miss), first="  - ")


def miss_text(miss: Json) -> str:
    """`size: 5.80 MB expected where 1.00 MB is asked for`."""
    estimated, required = (in_unit(miss[name], miss["unit"]) for name in ("estimated", "required"))
    return f"{miss['limit']}: {estimated} expected where {required} is asked for"


def in_unit(value: float, unit: str) -> str:
    known: dict[str, Callable[[float], str]] = {"bytes": bytes_text, "ms": ms_text, "×": ratio_text}
    return known[unit](value) if unit in known else f"{value:.2f} {unit}"


def about(profile: Json) -> str:
    """The model in a line."""
    name = f"{profile['name']}, a typical {profile['family']}" if profile["typical"] else profile["name"]
    kind = profile["subfamily"] or profile["family"]
    size = f"{count_text(profile['parameters'])} weights, {bytes_text(profile['size_bytes'])} in fp32"
    return f"{name}: {kind}, {profile['task']}; {size}"


def asked(request: Json) -> list[tuple[str, str]]:
    """What was asked for, and every default that mattered."""
    limits = [
        ("file", request["max_size_bytes"], bytes_text),
        ("latency", request["max_latency_ms"], ms_text),
        ("memory", request["max_memory_bytes"], bytes_text),
    ]
    budget = [f"lose at most {request['max_drop']:g} {request['max_drop_unit']}"]
    budget += [f"{name} up to {show(value)}" for name, value, show in limits if value]
    if request["min_speedup"]:
        budget.append(f"at least {ratio_text(request['min_speedup'])} faster")
    rows = [("target", request["target"]), ("budget", ", ".join(budget))]
    return rows + ([("assumed", "; ".join(request["assumed"]))] if request["assumed"] else [])

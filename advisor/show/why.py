"""A chain, questioned, on the terminal: why this, why in this order, why not another."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

import click

from advisor.show.console import clean, heading, pairs, paragraph, table, width
from advisor.show.recommendation import in_unit, miss_text, show_refused, with_source
from advisor.standing import number_text, weight_text
from advisor.texts import Json, chain_text, params_text, warning_text
from advisor.units import bytes_text, interval_text, ratio_text


def show_chain(explained: Json) -> None:
    """Why this, why in this order, why not that."""
    chain = explained["chain"]
    where = f"{explained['model']} on {explained['target']}"
    rank = rank_text(explained["standing"], explained["ranked"])
    title(f"{chain_text(chain['stages'])} for {where}: {rank}")
    _show_figures(chain)
    heading("Why this")
    for number, reason in enumerate(chain["reasons"], 1):
        paragraph(f"{reason['rule']}: {with_source(reason)}", first=f"{number:3}. ")
    for warning in chain["warnings"]:
        paragraph(f"but: {warning_text(warning)}", first="     ")
    if explained["order"]:
        heading("Why in this order")
    for step in explained["order"]:
        _show_step(step)
    _show_behind(explained)
    show_refused([other["refused"] for other in explained["alternatives"] if other["refused"]])


def _show_figures(chain: Json) -> None:
    """The estimates, the limits that they miss, and the parameters to start from."""
    estimate = chain["estimate"]
    smaller = interval_text(estimate["compression"], ratio_text)
    starts = [f"{stage['technique']}: {params_text(stage['params'])}" for stage in chain["stages"] if stage["params"]]
    rows = [
        ("size", f"{interval_text(estimate['size_bytes'], bytes_text)}, {smaller} smaller"),
        ("speed", f"{interval_text(estimate['speedup'], ratio_text)} faster"),
        ("lost", interval_text(estimate["quality_drop"])),
        *column("misses", [miss_text(miss) for miss in chain["misses"]]),
        *column("start with", starts),
    ]
    pairs(rows, indent="  ")


def _show_step(step: Json) -> None:
    click.echo(f"  {step['first']} before {step['then']}")
    for reason in step["rules"]:
        paragraph(f"{reason['rule']}: {with_source(reason)}", first="    - ")
    if step["phases"]:
        paragraph(step["phases"], first="    - ")


def _show_behind(explained: Json) -> None:
    """The allowed techniques that the chain does without, with the best chain that holds each."""
    others = [other for other in explained["alternatives"] if not other["refused"]]
    held = [other for other in others if other["best"]]
    if others:
        heading("Why not another that is allowed (middle estimates)")
    if held:
        named = [("(this)", explained["standing"]), *((o["technique"], o["best"]) for o in held)]
        rows = [(name, *standing_cells(standing, explained)) for name, standing in named]
        columns = ("technique", "best chain with it", "rank", "size", "faster", "lost", "score", "rules")
        table(columns, rows, columns[2:], fold="best chain with it")
        score = f"score: doublings in what the goal, {explained['goal']}, asks for, less the quality and work they cost"
        paragraph(f"{score}; rules: the weights of all rules about the chain")
        click.echo()
    for same in _alike(held):
        _show_lag(same, explained)
    for other in others:
        if not other["best"]:
            paragraph(f"{other['technique']}: {other['text']}.", first="  - ")


def _alike(held: list[Json]) -> Iterable[list[Json]]:
    """Techniques of which the same is to be said: they miss the same limits, or share their best chain."""
    groups: dict[str, list[Json]] = {}
    for other in held:
        groups.setdefault(other["text"] if other["by"] == "limits" else other["best"]["chain"], []).append(other)
    return groups.values()


def _show_lag(same: list[Json], explained: Json) -> None:
    """How the best chains of some techniques compare, and which rules make the difference where they do."""
    first = same[0]
    names = ", ".join(other["technique"] for other in same)
    told = opinions_text(first["opinions"]) if first["by"] in ("rule", "weights") else ""
    missed = first["best"]["misses"] or explained["standing"]["misses"] if first["by"] == "limits" else []
    asked = [f"{miss['limit']} {in_unit(miss['required'], miss['unit'])}" for miss in missed]
    told += f" Asked for: {', '.join(asked)}." if asked else ""
    paragraph(f"{names}: {first['text']}{told}", first="  - ")


def standing_cells(standing: Json, explained: Json) -> tuple[str, ...]:
    return (
        arrows(standing["chain"]),
        str(standing["rank"] or "–"),
        bytes_text(standing["size_bytes"]),
        ratio_text(standing["speedup"]),
        f"{standing['quality_drop']:.2f} {explained['drop_unit']}",
        number_text(standing["score"]),
        weight_text(standing["preference"]),
    )


def opinions_text(opinions: Iterable[Json]) -> str:
    """The rules that speak of one of two chains only, the weightiest first."""
    ordered = sorted(opinions, key=lambda o: -abs(o["this"] - o["other"]))
    sides = [
        ("this one", [f"{o['rule']} {weight_text(o['this'])}" for o in ordered if o["this"]]),
        ("that one", [f"{o['rule']} {weight_text(o['other'])}" for o in ordered if o["other"]]),
    ]
    said = [f"on {name}: {', '.join(rules)}" for name, rules in sides if rules]
    return f" Rules {'; '.join(said)}." if said else ""


def rank_text(standing: Json, ranked: int | None = None) -> str:
    """A chain's place, and whether it keeps the limits."""
    if standing["rank"] is None:
        beaten = "another chain is nowhere worse" if standing["fits"] else "it misses the limits by too much"
        return f"not ranked, for {beaten}"
    of = f" of {ranked}" if ranked is not None else ""
    return f"ranked {standing['rank']}{of}{'' if standing['fits'] else ', over the limits'}"


def arrows(chain: str) -> str:
    return "do nothing" if chain == "nothing" else chain.replace("+", " → ")


def title(text: str) -> None:
    """Bold, wrapped."""
    click.secho(textwrap.fill(clean(text), width()), bold=True)


def column(name: str, lines: Iterable[str]) -> list[tuple[str, str]]:
    return [(name if number == 0 else "", line) for number, line in enumerate(lines)]

"""Explanations on the terminal."""

from __future__ import annotations

from collections.abc import Callable

import click

from advisor.show.console import heading, pairs, paragraph, table
from advisor.show.machine import show_technique
from advisor.show.recommendation import with_source
from advisor.show.why import arrows, column, rank_text, show_chain, title
from advisor.texts import Json, claim_text, params_text
from advisor.units import bytes_text, significant

STATUS = {
    "measured": "measured by this project",
    "paper": "read at its origin",
    "reported": "reported by somebody else",
    "corrected": "a common figure, corrected",
    "unsourced": "named without a source: weaker than any other",
}
WHOLE = 100  # figures from here on are shown without decimals


def show_explanation(explained: Json) -> None:
    """Print the JSON of an explanation."""
    shows: dict[str, Callable[[Json], None]] = {
        "technique": show_technique_explained,
        "rule": show_rule,
        "claim": show_claim,
        "target": show_target,
        "chain": show_chain,
    }
    shows[explained["kind"]](explained)


def show_technique_explained(explained: Json) -> None:
    """What it does, what becomes of it in the request, then its rules and figures; `explain RULE` says why."""
    show_technique(explained["technique"])
    if explained["here"]:
        _show_here(explained["here"])
    titles = {
        None: "Rules about it",
        True: "Rules about it that fire here",
        False: "Rules about it that do not fire here",
    }
    for fires, words in titles.items():
        if mentions := [m for m in explained["rules"] if m["fires"] is fires]:
            heading(words)
            _show_mentions(mentions)
    heading("Figures about it")
    rows = [
        (c["id"], c["model"], params_text(c["params"]), claim_text(c), c["status"], _used(c))
        for c in explained["claims"]
    ]
    if rows:
        table(("claim", "model", "parameters", "figure", "status", "counts"), rows, ("figure",), fold="model")
    else:
        paragraph("No figure is known.", first="  ")


def _show_mentions(mentions: list[Json]) -> None:
    for mention in mentions:
        click.secho(f"  {mention['rule']}", bold=True)
        paragraph("; ".join(mention["says"]), first="    ")
        paragraph(f"when {mention['when']}" if mention["when"] != "always" else "always", first="    ")


def _used(claim: Json) -> str:
    return "yes" if claim["estimate"] else "no"


def _show_here(here: Json) -> None:
    heading(f"For {here['model']} on {here['target']}")
    if here["refused"]:
        no = here["refused"]
        paragraph(f"refused by {no['rule']}: {with_source(no)}", first="  ")
        if no["remedy"]:
            paragraph(f"instead: {no['remedy']}", first="  ")
    elif here["best"]:
        best = here["best"]
        paragraph(f"allowed; the best chain with it is {arrows(best['chain'])}, {rank_text(best)}.", first="  ")
    else:
        paragraph("allowed, but no stage of this request's chains calls for it.", first="  ")


def show_rule(rule: Json) -> None:
    """A rule in words, and where it is written."""
    title(f"{rule['id']} ({rule['tree']})" if rule["tree"] else rule["id"])
    paragraph(rule["text"])
    if rule["departs"]:
        paragraph(rule["departs"])
    conditions = [f"{c['text']} ({c['meaning']})" for c in rule["when"]] or ["always"]
    rows = [
        *column("when", conditions),
        *column("then", rule["then"]),
        ("source", rule["source"]),
        ("instead", rule["remedy"]),
        ("file", rule["place"]),
    ]
    if rule["facts"] is not None:
        seen = ", ".join(f"{name} {value}" for name, value in rule["facts"].items())
        rows.append(("here", f"{'fires' if rule['fires'] else 'does not fire'}{': ' if seen else ''}{seen}"))
    click.echo()
    pairs((row for row in rows if row[1]), indent="  ")


def show_claim(explained: Json) -> None:
    """A figure with its protocol and its standing."""
    claim = explained["claim"]
    title(f"{claim['id']}: what {claim['technique']} did to one model")
    known = f", from a baseline of {claim['baseline']:g}" if claim["baseline"] is not None else ""
    rows = [
        ("model", f"{claim['model']} ({claim['arch']})"),
        ("chain", " → ".join(claim["chain"])),
        ("parameters", params_text(claim["params"])),
        ("protocol", claim["protocol"]),
        ("figure", f"{claim['metric']}: {claim_text(claim)}{known}"),
        ("recovery", "training followed" if claim["recovered"] else "no training followed"),
        ("status", f"{claim['status']}: {STATUS[claim['status']]}"),
        ("estimates", "use it" if claim["estimate"] else "do not use it: it is kept for the record"),
        ("note", claim["note"]),
        ("source", claim["source"]),
        ("file", explained["place"]),
    ]
    pairs((row for row in rows if row[1]), indent="  ")


def show_target(target: Json) -> None:
    """A target's abilities and figures, each with its source."""
    title(f"{target['id']}: {target['about']}")
    pairs([*((n.replace("_", " "), v) for n, v in target["facts"].items()), ("file", target["place"])], indent="  ")
    for name, abilities in target["abilities"].items():
        heading(name.capitalize())
        pairs(abilities.items() or [("nothing", "")], indent="  ")
    heading("Figures")
    rows = [(f["name"], figure_text(f["name"], f["value"]), f["source"]) for f in target["figures"]]
    table(("", "value", "source"), rows, ("value",), fold="source")


def figure_text(name: str, value: float) -> str:
    return bytes_text(value) if name.endswith("_bytes") else significant(value) if value < WHOLE else f"{value:,.0f}"

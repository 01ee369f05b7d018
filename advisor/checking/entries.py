"""Entries that cannot be trusted: figures without protocol or origin, models that do not add up, stray techniques."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from advisor.checking.findings import Finding
from advisor.checking.possible import Situation
from knowledge.load import KINDS, Knowledge
from knowledge.schema import Claim, Selector, Setting
from knowledge.techniques.catalog import CATALOG
from knowledge.typical import build
from knowledge.values import InputError

# an address, a command that measured it, a guess that says so, or a document with the place in it
ORIGIN = re.compile(r"https?://|arXiv:|^measured\b|^estimated\b|^projected\b|^arithmetic\b|, ", re.I)
BASELINE_MARGIN = 0.02  # of a model's score before compression: the same protocol gives the same, but for rounding
SIZE_MARGIN = 0.005
UNNAMED = "not named"


def claims(knowledge: Knowledge) -> Iterator[Finding]:
    """Figures that estimates lean on and that cannot share a curve as they stand."""
    leaned_on = [claim for claim in knowledge.claims.values() if claim.estimate]
    protocols: dict[str, Claim] = {}
    first: dict[tuple[object, ...], Claim] = {}
    for claim in leaned_on:
        place = knowledge.origin.get(f"claims/{claim.id}", "")
        if claim.protocol == UNNAMED:
            if claim.status != "unsourced":
                text = f"a {claim.status} figure that estimates lean on, by a protocol that is not named"
                yield Finding(
                    kind="no-protocol", id=claim.id, place=place, text=text, remedy="name it, or estimate: false"
                )
            continue
        known = protocols.setdefault(_plain(claim.protocol), claim)
        if known.protocol != claim.protocol:
            text = f"its protocol {claim.protocol!r} is written {known.protocol!r} elsewhere: they share no curve"
            yield Finding(
                kind="mixed-protocols",
                id=claim.id,
                place=place,
                text=text,
                remedy="write both alike",
                others=(known.id,),
            )
        same = first.setdefault((claim.model, claim.metric, claim.protocol), claim)
        if same.baseline and claim.baseline and abs(claim.baseline / same.baseline - 1) > BASELINE_MARGIN:
            text = f"{claim.model} has {claim.baseline:g} by this protocol here and {same.baseline:g} there"
            remedy = "tell the two protocols apart: figures of different ones share no curve"
            yield Finding(kind="mixed-protocols", id=claim.id, place=place, text=text, remedy=remedy, others=(same.id,))


def _plain(protocol: str) -> str:
    return re.sub(r"[\W_]+", " ", protocol.casefold()).strip()


def targets(knowledge: Knowledge) -> Iterator[Finding]:
    """Figures whose source names no origin."""
    for target in knowledge.targets.values():
        place = knowledge.origin.get(f"targets/{target.id}", "")
        for name in type(target).model_fields:
            figure = getattr(target, name)
            source = getattr(figure, "source", None)
            if source is not None and not ORIGIN.search(source):
                text = f"{name}: {source!r} is no origin"
                remedy = "give an address, `measured: …`, `estimated`, or a document and the place in it"
                yield Finding(kind="no-origin", id=target.id, place=place, text=text, remedy=remedy)


def models(knowledge: Knowledge) -> Iterator[Finding]:
    """Typical models whose sizes do not give the parameters of the original."""
    for model in knowledge.models.values():
        place = knowledge.origin.get(f"models/{model.id}", "")
        built = build(model).parameters
        if abs(built / model.parameters - 1) > SIZE_MARGIN:
            text = f"its sizes give {built:,} parameters, and the original has {model.parameters:,}"
            yield Finding(kind="size", id=model.id, place=place, text=text, remedy="mend a size or `parameters`")


def techniques(known: Sequence[Situation]) -> Iterator[Finding]:
    """Techniques that no rule is about; orders alone do not count."""
    named: set[str] = set()
    by_kind: set[str] = set()
    for about in _subjects(known):
        if isinstance(about, str):
            named.add(about)
        elif about.technique is not None:
            named.add(about.technique)
        elif about.chain is not None:
            by_kind |= {name for name, cls in CATALOG.items() if cls.family in about.chain}
        else:
            by_kind |= {name for name in CATALOG if about.covers(name)}
    for name, cls in CATALOG.items():
        if name not in named | by_kind:
            remedy = "say when it is worth using: `advisor knowledge new rule`"
            yield Finding(kind="unreached", id=name, text="no rule is about it", remedy=remedy)
        elif name not in named:
            text = f"no rule names it, only rules about all of {cls.family.value}"
            yield Finding(kind="unreached", id=name, text=text, note=True)


def _subjects(known: Sequence[Situation]) -> dict[Selector | str, None]:
    """What the rules that can fire are about, each once."""
    found: dict[Selector | str, None] = {}
    for one in known:
        for conclusion in one.rule.then if one.terms else ():
            for about in (conclusion.prefer, conclusion.avoid, conclusion.refuse, conclusion.set, conclusion.require):
                if isinstance(about, Selector):
                    found[about] = None
                elif isinstance(about, Setting):
                    found[about.technique] = None
                elif about is not None:
                    found[about.technique] = None
                    found[about.after] = None
            if isinstance(conclusion.warn, Selector):
                found[conclusion.warn] = None
    return found


def folders(extra: Path) -> Iterator[Finding]:
    """Folders that are not read, though their names come near to one that is."""
    try:
        names = sorted(path.name for path in extra.iterdir() if path.is_dir() and path.name not in KINDS)
    except OSError as error:
        raise InputError("knowledge", extra, f"cannot be read ({error.strerror})", "make it readable") from None
    for name in names:
        near = difflib.get_close_matches(name, KINDS, n=1, cutoff=0.8)
        if near:
            text = f"this folder is not read; {near[0]}/ would be"
            yield Finding(kind="unread", id=name, place=str(extra / name), text=text, remedy="rename it", note=True)

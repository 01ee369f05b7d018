"""Where chains stand among each other: why the best one with a technique is behind another, or ahead of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import networkx as nx

from advisor.exploration import Candidate, explore
from advisor.ranking import Ranked, Ranking, ready
from advisor.recommendation import Miss
from advisor.verdicts import Refused, concerns
from advisor.words import listed
from knowledge.values import Value

if TYPE_CHECKING:
    from advisor.advise import Deliberation

Decider = Literal["refusal", "limits", "rule", "score", "weights", "nothing"]  # what keeps a technique out
READY = "can-be-carried-out"  # no rule: the ranking's own preference
TIE = 6  # decimals in which preferences are compared, as the ranking does


class Standing(Value):
    """Where a chain stands among all chains of a request, by its middle estimates."""

    chain: str
    rank: int | None  # None: it misses the limits by too much, or another chain is nowhere worse
    fits: bool
    size_bytes: float
    compression: float
    speedup: float
    quality_drop: float
    score: float
    score_low: float
    score_high: float
    preference: float  # the weights of the rules that concern it, added up
    misses: tuple[Miss, ...] = ()


class Opinion(Value):
    """What a rule adds to the preference of two chains, where it does not speak of both alike."""

    rule: str
    this: float
    other: float


class Alternative(Value):
    """A technique that a chain does without: refused, or where the best chain that holds it stands."""

    technique: str
    by: Decider
    text: str
    refused: Refused | None = None
    best: Standing | None = None
    opinions: tuple[Opinion, ...] = ()  # on the chain in question and on `best`


def chain_id(candidate: Candidate) -> str:
    return "+".join(candidate.ids) or "nothing"


def rank_of(ranked: Ranked, thought: Deliberation) -> int | None:
    """Its place among all ranked chains, from 1."""
    ids = [r.candidate.ids for r in thought.ranked]
    return ids.index(ranked.candidate.ids) + 1 if ranked.candidate.ids in ids else None


def standing(ranked: Ranked, thought: Deliberation) -> Standing:
    """A ranked chain in figures."""
    outlook = ranked.candidate.outlook
    return Standing(
        chain=chain_id(ranked.candidate),
        rank=rank_of(ranked, thought),
        fits=ranked.fits,
        size_bytes=outlook.bytes,
        compression=outlook.compression,
        speedup=outlook.speedup,
        quality_drop=outlook.drop.mid,
        score=ranked.mid,
        score_low=ranked.low,
        score_high=ranked.high,
        preference=ranked.preference,
        misses=tuple(thought.answer.miss(limit, *pair) for limit, pair in ranked.misses.items()),
    )


def alternative(technique: str, chosen: Ranked, thought: Deliberation) -> Alternative:
    """Why a chain does without a technique."""
    refused = next((r for r in thought.verdicts.refused if r.technique == technique), None)
    if refused is not None:
        return Alternative(technique=technique, by="refusal", text=f"refused by {refused.rule}", refused=refused)
    best = best_with(technique, thought)
    if best is None:
        text = "no stage of this request's chains calls for it"
        return Alternative(technique=technique, by="nothing", text=text)
    by, text = compared(chosen, best, thought)
    return Alternative(
        technique=technique,
        by=by,
        text=text,
        best=standing(best, thought),
        opinions=tuple(opinions(chosen, best, thought)),
    )


def best_with(technique: str, thought: Deliberation) -> Ranked | None:
    """The first chain that holds a technique and fits; where none is ranked, the best of all that can hold it."""
    for ranked in thought.ranked:
        if technique in ranked.candidate.ids and ranked.fits:
            return ranked
    ranking = Ranking(thought.request, thought.predictor, thought.verdicts)
    found = ranking.order([c for c in thought.candidates if technique in c.ids])
    if found and set(found[0].misses) == {"quality"}:
        return found[0]  # losses add up: no further stage brings it back
    way = through(technique, thought.graph)
    if way is not None:  # chains that others beat at every step were not followed to their ends
        followed = explore(way, thought.verdicts, thought.predictor, ranking.score)
        found = ranking.order([*(r.candidate for r in found), *(c for c in followed.candidates if technique in c.ids)])
    return found[0] if found else None


def through(technique: str, graph: nx.DiGraph) -> nx.DiGraph | None:
    """The part of the graph whose chains all hold a technique; None where it stands at no place or at several."""
    places = [node for node, held in graph.nodes(data="technique") if held == technique]
    if len(places) != 1:
        return None
    before, behind = nx.ancestors(graph, places[0]), nx.descendants(graph, places[0])
    way = graph.subgraph({*before, *places, *behind}).copy()
    way.remove_edges_from([(first, then) for first, then in way.edges if first in before and then in behind])
    return way


def compared(this: Ranked, other: Ranked, thought: Deliberation) -> tuple[Decider, str]:
    """Why the best chain with a technique stands behind this one, or ahead of it: what decides, and a sentence."""
    if _place(this, thought) <= _place(other, thought):
        by, text = _lag(other, this, "this one", thought)
        return by, f"Its best chain {text}."
    by, text = _lag(this, other, "that one", thought)
    return by, f"Its best chain is ahead: this one {text}."


def _place(ranked: Ranked, thought: Deliberation) -> tuple[bool, float, float]:
    """Smaller is better, for chains that are not ranked, too."""
    return not ranked.fits, rank_of(ranked, thought) or math.inf, ranked.shortfall


def _lag(behind: Ranked, ahead: Ranked, name: str, thought: Deliberation) -> tuple[Decider, str]:
    """What a chain falls short of, in the order in which the ranking decides: limits, deciding rules, scores, weights.

    `name` is what to call the chain ahead.
    """
    if not behind.fits:
        limits = f"misses {listed(list(behind.misses), 'and')}"
        return "limits", limits if ahead.fits else f"{limits}, and by more than {name}"
    if ahead.decisive and not behind.decisive:
        return "rule", f"fits, but a rule puts {name} first wherever it fits"
    if behind.high < ahead.low:
        return "score", f"scores at most {number_text(behind.high)}, {name} at least {number_text(ahead.low)}"
    if round(ahead.preference - behind.preference, TIE) > 0:
        sums = f"{weight_text(ahead.preference)} against {weight_text(behind.preference)}"
        return "weights", f"scores alike within the estimates, and rules speak more for {name}: {sums}"
    if ahead.mid >= behind.mid:
        mids = f"scores {number_text(behind.mid)} in the middle, {name} {number_text(ahead.mid)}"
        return "score", f"{mids}, and no rule overturns that"
    leader = next((r for r in thought.ranked if r.fits and r.low > behind.high), None)
    if leader is None:
        return "score", "was left on the way: other chains through the same stages are nowhere worse"
    best = f"{chain_id(leader.candidate)} at least {number_text(leader.low)}"
    return "score", f"scores at most {number_text(behind.high)}, and {best}"


def number_text(number: float) -> str:
    """
    >>> number_text(-0.314), number_text(2)
    ('−0.31', '2.00')
    """
    return f"{number:.2f}".replace("-", "−")


def weight_text(weight: float) -> str:
    """A signed weight.

    >>> weight_text(0.4), weight_text(-1.0), weight_text(0.0)
    ('+0.4', '−1', '0')
    """
    rounded = round(weight, TIE) or 0.0
    return f"{rounded:+g}".replace("-", "−") if rounded else "0"


def opinions(this: Ranked, other: Ranked, thought: Deliberation) -> Iterator[Opinion]:
    """The rules whose weights for two chains differ, and whether only one of them can be carried out today."""
    sums: dict[str, list[float]] = {READY: [ready(this.candidate.ids), ready(other.candidate.ids)]}
    for rule, about, weight in thought.verdicts.preferences():
        for side, ranked in enumerate((this, other)):
            if concerns(about, ranked.candidate.ids, ranked.candidate.outlook.compression):
                sums.setdefault(rule.id, [0.0, 0.0])[side] += weight
    for rule_id, (mine, theirs) in sums.items():
        if round(mine - theirs, TIE):
            yield Opinion(rule=rule_id, this=mine, other=theirs)

"""A chain of a recommendation, questioned: why this, why in this order, why not that."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from advisor.entries import Explained
from advisor.ranking import Ranked, Ranking
from advisor.recommendation import Chain, Reason
from advisor.standing import Alternative, Standing, alternative, chain_id, rank_of, standing
from knowledge.names import nearest
from knowledge.techniques.base import Level, Technique
from knowledge.techniques.catalog import CATALOG
from knowledge.values import InputError, Value

if TYPE_CHECKING:
    from advisor.advise import Deliberation

LONGEST_RANK = 9  # digits


class Step(Value):
    """Why one stage of a chain stands before the next: the rules that say so, and the phases they declare."""

    first: str
    then: str
    rules: tuple[Reason, ...]
    phases: str


class ChainExplained(Explained):
    """The answer to "why this, why in this order, why not that"."""

    kind: Literal["chain"] = "chain"
    model: str
    target: str
    goal: str
    drop_unit: str
    ranked: int  # how many chains are
    chain: Chain
    standing: Standing
    order: tuple[Step, ...]
    alternatives: tuple[Alternative, ...]


def explain_chain(name: str, thought: Deliberation) -> ChainExplained:
    """Question a chain by its id (`distill+int8_dynamic`) or its rank; raises InputError with the nearest ids."""
    chosen = find_chain(name, thought)
    rank = rank_of(chosen, thought)
    ids = chosen.candidate.ids
    return ChainExplained(
        id=chain_id(chosen.candidate),
        model=thought.predictor.layers.info.name,
        target=thought.predictor.target.id,
        goal=thought.request.goal,
        drop_unit=thought.request.max_drop_unit or "pp",
        ranked=len(thought.ranked),
        chain=thought.answer.chain(rank or len(thought.ranked) + 1, chosen),
        standing=standing(chosen, thought),
        order=tuple(steps(chosen.candidate.techniques, thought)),
        alternatives=tuple(alternative(other, chosen, thought) for other in CATALOG if other not in ids),
    )


def find_chain(name: str, thought: Deliberation) -> Ranked:
    """The chain of an id or a rank."""
    if name.isdecimal():
        rank = int(name) if len(name) <= LONGEST_RANK else 0
        if not 1 <= rank <= len(thought.ranked):
            remedy = f"ranks go from 1 to {len(thought.ranked)}" if thought.ranked else "no chain is possible here"
            raise InputError("chain", name, "no chain has this rank", remedy)
        return thought.ranked[rank - 1]
    known = {chain_id(r.candidate): r for r in thought.ranked}
    if name not in known:
        ranking = Ranking(thought.request, thought.predictor, thought.verdicts)
        unranked = [c for c in thought.candidates if chain_id(c) == name]
        if unranked:
            return ranking.order(unranked)[0]
        raise _no_such_chain(name, thought)
    return known[name]


def _no_such_chain(name: str, thought: Deliberation) -> InputError:
    """Why there is no chain of this id, and which ones come near."""
    refused = {r.technique: r for r in thought.verdicts.refused}
    for part in name.split("+"):
        if part not in CATALOG and part != "nothing":
            return InputError("chain", name, f"unknown technique {part}".strip(), nearest(part, CATALOG))
        if part in refused:
            problem = f"{part} is refused by {refused[part].rule}: {refused[part].text}"
            return InputError("chain", name, problem, refused[part].remedy)
    ids = dict.fromkeys(chain_id(c) for c in (*(r.candidate for r in thought.ranked), *thought.candidates))
    holding = [known for known in ids if {*name.split("+")} <= {*known.split("+")}]
    near = holding[:3] or difflib.get_close_matches(name, ids, n=3, cutoff=0.3) or list(ids)[:3]
    return InputError("chain", name, "no such chain was worth comparing here", f"did you mean {', '.join(near)}?")


def steps(techniques: Sequence[Technique], thought: Deliberation) -> Iterator[Step]:
    """For each consecutive pair, what puts the first before the second."""
    leader: Technique | None = None  # the last stage that has a phase: what follows it is its recovery
    for first, then in itertools.pairwise(techniques):
        leader = first if first.phase is not None else leader
        found = [*thought.verdicts.required_after(first.id).get(then.id, ())]
        if leader is not None and leader is not first:
            found += thought.verdicts.required_after(leader.id).get(then.id, ())
        before = {first.id, *([leader.id] if leader else ())}
        found += [rule for rule, one, other in thought.verdicts.orders() if one in before and other == then.id]
        rules = tuple(thought.answer.reason(thought.knowledge.rules[rule]) for rule in dict.fromkeys(found))
        yield Step(first=first.id, then=then.id, rules=rules, phases=phases_text(leader or first, first, then))


def phases_text(leader: Technique, first: Technique, then: Technique) -> str:
    """What the declarations alone say about the order of two stages."""
    if then.phase is None:
        return f"{then.id} is recovery: it follows the stage whose loss it wins back, before anything else changes."
    said = []
    if leader.phase is not None:
        of = leader.id if leader is first else f"{leader.id}, which {first.id} recovers,"
        said.append(f"{of} stands in the phase {leader.phase.name.lower()}, {then.id} in {then.phase.name.lower()}")
    if first.level is Level.MODEL and then.level is Level.GRAPH:
        said.append(f"{first.id} changes the torch model, {then.id} the file that is exported from it")
    return f"{'; '.join(said)}." if said else ""

"""What a drawing of the graph shows: techniques at their phases, steps with their rules, ranked chains, refusals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import networkx as nx
from pydantic import ConfigDict, Field

from advisor.graph import EXPORT, START
from advisor.ranking import Ranked
from advisor.units import bytes_text, ratio_text
from advisor.verdicts import Refused
from knowledge.conditions import fill
from knowledge.techniques.base import Phase
from knowledge.techniques.catalog import CATALOG
from knowledge.values import Value

if TYPE_CHECKING:
    from advisor.advise import Deliberation

State = Literal["end", "first", "ranked", "allowed", "idle", "refused"]
RECOVERY_PHASE = int(Phase.PRUNE) + 1  # where a recovery that follows no stage is drawn
IDLE = "It is allowed, but no stage of this request's chains calls for it."
FREE = "No rule asks for this step, and none forbids it."


class Node(Value):
    """A technique at its phase, or an end of the graph. `ranks` are those of the shown chains that hold it."""

    id: str
    technique: str
    family: str
    phase: int
    state: State
    ranks: tuple[int, ...] = ()
    about: str  # what to say of it, in lines

    @property
    def label(self) -> str:
        return self.technique or self.id


class Edge(Value):
    """`then` may follow `first`: the rules that ask for it, and the ranks of the shown chains that go this way."""

    first: str
    then: str
    rules: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()


class DrawnChain(Value):
    """A ranked chain with its middle estimates."""

    rank: int
    id: str
    path: tuple[str, ...]
    size_bytes: float
    compression: float
    speedup: float
    quality_drop: float
    fits: bool

    @property
    def text(self) -> str:
        return "do nothing" if self.id == "nothing" else self.id.replace("+", " → ")


class Drawing(Value):
    """The explored graph of one request. `path` is that of the first-ranked chain; `rules` has each rule's sentence."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_version: Literal["advisor.graph/1"] = Field("advisor.graph/1", alias="schema")
    model: str
    target: str
    budget: str
    drop_unit: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    path: tuple[str, ...]
    chains: tuple[DrawnChain, ...]
    refused: tuple[Refused, ...]
    rules: dict[str, str]

    @property
    def title(self) -> str:
        return f"{self.model} on {self.target}"

    def phase_title(self, phase: int) -> str:
        """The phase's name, or the families of what follows in it; ends have none."""
        if phase in {int(p) for p in Phase}:
            return Phase(phase).name.lower()
        return " and ".join(dict.fromkeys(n.family for n in self.nodes if n.phase == phase and n.family))

    def about_edge(self, edge: Edge) -> str:
        """The rules behind a step, in lines."""
        names = {node.id: node.label for node in self.nodes}
        lines = [f"{rule}: {self.rules[rule]}" for rule in edge.rules] or [FREE]
        if edge.ranks:
            lines.append(f"On the way of {_chains_text(edge.ranks)}.")
        return "\n".join([f"{names[edge.first]} → {names[edge.then]}", *lines])


def drawing_of(thought: Deliberation) -> Drawing:
    """The drawing of a deliberation, with as many chains marked as the request asks to see."""
    graph, request = thought.graph, thought.request
    shown = thought.ranked[: request.top]
    chains = tuple(_chain(rank, ranked, graph) for rank, ranked in enumerate(shown, 1))
    edges = tuple(_edges(graph, chains))
    named = {rule for edge in edges for rule in edge.rules}
    return Drawing(
        model=thought.predictor.layers.info.name,
        target=thought.predictor.target.id,
        budget=f"{request.max_drop:g} {request.max_drop_unit}",
        drop_unit=request.max_drop_unit or "pp",
        nodes=tuple(_nodes(thought, chains)),
        edges=edges,
        path=chains[0].path if chains else (),
        chains=chains,
        refused=thought.verdicts.refused,
        rules={r.id: fill(r.text, thought.facts) for r in thought.verdicts.fired if r.id in named},
    )


def _chain(rank: int, ranked: Ranked, graph: nx.DiGraph) -> DrawnChain:
    outlook = ranked.candidate.outlook
    return DrawnChain(
        rank=rank,
        id="+".join(ranked.candidate.ids) or "nothing",
        path=tuple(path_of(ranked.candidate.ids, graph)),
        size_bytes=outlook.bytes,
        compression=outlook.compression,
        speedup=outlook.speedup,
        quality_drop=outlook.drop.mid,
        fits=ranked.fits,
    )


def path_of(ids: Sequence[str], graph: nx.DiGraph) -> Iterator[str]:
    """The nodes that a chain goes through: from each, the one successor that is the next technique."""
    node = START
    yield node
    for technique in ids:
        node = next(n for n in graph.successors(node) if graph.nodes[n]["technique"] == technique)
        yield node
    yield EXPORT


def _edges(graph: nx.DiGraph, chains: Sequence[DrawnChain]) -> Iterator[Edge]:
    steps = {chain.rank: set(zip(chain.path, chain.path[1:], strict=False)) for chain in chains}
    for first, then, rules in graph.edges(data="rules"):
        ranks = tuple(rank for rank, pairs in steps.items() if (first, then) in pairs)
        yield Edge(first=first, then=then, rules=rules, ranks=ranks)


def _nodes(thought: Deliberation, chains: Sequence[DrawnChain]) -> Iterator[Node]:
    """What the graph holds, then the techniques that it does not."""
    graph = thought.graph
    behind = max(*(int(phase) for _, phase in graph.nodes(data="phase")), *Phase) + 1  # what is refused, too
    for name, data in graph.nodes(data=True):
        ranks = tuple(chain.rank for chain in chains if name in chain.path)
        if data["technique"]:
            yield _placed(name, data["technique"], data["phase"], ranks)
        else:
            phase, about = (0, _model_text(thought)) if name == START else (behind, "The ONNX file that ships.")
            yield Node(id=name, technique="", family="", phase=phase, state="end", ranks=ranks, about=about)
    held = {technique for _, technique in graph.nodes(data="technique")}
    refused = {r.technique: r for r in thought.verdicts.refused}
    for technique in CATALOG:
        if technique not in held:
            yield _left_out(technique, refused.get(technique))


def _placed(name: str, technique: str, phase: int, ranks: tuple[int, ...]) -> Node:
    """A technique in the graph."""
    state: State = "first" if 1 in ranks else "ranked" if ranks else "allowed"
    about = _about(technique, f"In {_chains_text(ranks)}." if ranks else "In none of the chains shown.")
    family = CATALOG[technique].family.value
    return Node(id=name, technique=technique, family=family, phase=phase, state=state, ranks=ranks, about=about)


def _left_out(technique: str, no: Refused | None) -> Node:
    """A technique that the graph does not hold."""
    cls = CATALOG[technique]
    phase = RECOVERY_PHASE if cls.phase is None else int(cls.phase)
    state: State = "refused" if no else "idle"
    about = _refusal(no) if no else _about(technique, IDLE)
    return Node(id=technique, technique=technique, family=cls.family.value, phase=phase, state=state, about=about)


def _model_text(thought: Deliberation) -> str:
    return f"The uncompressed model: {bytes_text(thought.predictor.baseline.bytes)}."


def _about(technique: str, *lines: str) -> str:
    return "\n".join([f"{technique}: {CATALOG[technique].summary()}", *lines])


def _refusal(no: Refused) -> str:
    lines = [f"{no.technique} is refused by {no.rule}: {no.text}", f"Source: {no.source}"]
    return "\n".join([*lines, *([f"Instead: {no.remedy}"] if no.remedy else [])])


def _chains_text(ranks: Sequence[int]) -> str:
    return f"chain {ranks[0]}" if len(ranks) == 1 else f"chains {', '.join(map(str, ranks))}"


def figures_text(chain: DrawnChain, unit: str) -> str:
    """A chain's middle estimates in a line."""
    figures = (
        f"{bytes_text(chain.size_bytes)}, {ratio_text(chain.compression)} smaller, {ratio_text(chain.speedup)} faster"
    )
    return f"{figures}, {chain.quality_drop:.2f} {unit} lost{'' if chain.fits else ', over the limits'}"

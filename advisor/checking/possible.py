"""What requests, models and targets can make of the facts together: some values never meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from advisor.facts import task_kind
from knowledge.conditions import SUBFAMILIES, VOCABULARY
from knowledge.load import Knowledge
from knowledge.satisfy import UNKNOWN, Domain, Held, Names, Numbers, Term, alternatives, apart, everything, met
from knowledge.schema import Rule, Target
from knowledge.tasks import TASKS

# subfamilies that a family has; one that is not named here may belong to any
OF_FAMILY = {
    "transformer": ("encoder", "decoder", "vision-transformer"),
    "moe": ("moe",),
    "cnn": ("residual-cnn", "depthwise-cnn", "plain-cnn"),
    "rnn": ("lstm",),
}
Table = Sequence[Term]  # every request agrees with one of its rows


@dataclass(frozen=True)
class Situation:
    """A rule with the ways in which it can fire; none: it never does."""

    rule: Rule
    terms: tuple[Term, ...]
    place: str
    layer: int  # 0: ours, then the user's folders
    number: int  # where it stands among all rules


def situations(knowledge: Knowledge, layers: Sequence[Path] = ()) -> list[Situation]:
    """Every rule with the ways in which it can fire. `layers`: the folders of knowledge, later ones over earlier."""
    tables = request_tables(knowledge)
    found = []
    for number, rule in enumerate(knowledge.rules.values()):
        place = knowledge.origin.get(f"rules/{rule.id}", "")
        folder = Path(place).parent.parent
        layer = layers.index(folder) if folder in layers else 0
        terms = tuple(term for term in alternatives(rule.when) if possible(term, tables))
        found.append(Situation(rule, terms, place, layer, number))
    return found


def possible(term: Term, tables: Iterable[Table]) -> bool:
    """Whether some row of every table agrees with a term."""
    return not any(apart_from(term, table) for table in tables)


def apart_from(term: Term, table: Table) -> bool:
    """Whether no row of a table agrees with a term."""
    return all(apart(term, row) for row in table)


def overlap(a: Situation, b: Situation, tables: Sequence[Table]) -> bool:
    """Whether two rules can fire for one request."""
    return any((both := met(s, t)) is not None and possible(both, tables) for s in a.terms for t in b.terms)


def families_of(one: Situation) -> frozenset[str]:
    """The architecture families for which a rule can fire."""
    rows = zip(OF_FAMILY, _architectures(), strict=True)
    return frozenset(family for family, row in rows if not all(apart(term, row) for term in one.terms))


def request_tables(knowledge: Knowledge) -> tuple[Table, ...]:
    """What goes together in every request, whatever the target."""
    return _architectures(), _tasks(), _limits(), ({"preset": _one_of(knowledge.presets)},)


def _architectures() -> Table:
    anywhere = [name for name in SUBFAMILIES if all(name not in own for own in OF_FAMILY.values())]
    rows = []
    for family, own in OF_FAMILY.items():
        row: dict[str, Domain] = {"arch": _one_of([family]), "subfamily": _one_of([*own, *anywhere])}
        rows.append(row if family == "moe" else {**row, "experts": UNKNOWN})
    return rows


def _tasks() -> Table:
    """A task decides what comes out, which quality is spent, and in which unit."""
    rows = []
    for task, (metric, _) in TASKS.items():
        spent, other = ("pp", "percent") if metric == "accuracy" else ("percent", "pp")
        rows.append(
            {
                "task": _one_of([task]),
                "task.kind": _one_of([task_kind(task)]),
                "metric": _one_of([metric]),
                f"max_drop_{spent}": everything(f"max_drop_{spent}"),
                f"max_drop_{other}": UNKNOWN,
            }
        )
    return rows


def _limits() -> Table:
    """A speed-up is wanted only where a limit was given."""
    return [{"limits": _one_of([True])}, {"limits": _one_of([False]), "wanted_speedup": UNKNOWN}]


def target_table(targets: Mapping[str, Target]) -> Table:
    """The known targets, each with its own facts."""
    return [_target_row(target) for target in targets.values()]


def _target_row(target: Target) -> Term:
    row: dict[str, Domain] = {
        "target": _one_of([target.id]),
        "target.class": _one_of([target.target_class]),
        "target.device": _one_of([target.device]),
        "target.runtime": _one_of([target.provider]),
        "target.accelerates": _held("target.accelerates", target.accelerates),
        "target.operators": _held("target.operators", target.operators),
    }
    figures = {
        "target.memory_bytes": target.max_memory_bytes,
        "target.size_limit_bytes": target.max_size_bytes,
        "target.channel_block": target.channel_block,
    }
    for name, figure in figures.items():
        row[name] = UNKNOWN if figure is None else Numbers((((figure.value, 0), (figure.value, 0)),))
    return row


def _one_of(values: Iterable[object]) -> Names:
    return Names(frozenset(values))


def _held(name: str, values: Iterable[str]) -> Held:
    """A list that holds just these."""
    own = frozenset(values)
    return Held(frozenset(frozenset({value}) for value in own), frozenset(VOCABULARY[name].values) - own)

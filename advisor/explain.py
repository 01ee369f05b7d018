"""Everything that is known of one technique, rule, claim or target, or of one chain of a recommendation."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from advisor.entries import Explained, explain_claim, explain_rule, explain_target, explain_technique
from advisor.why import explain_chain
from knowledge.load import Knowledge, load_knowledge
from knowledge.techniques.catalog import CATALOG
from knowledge.values import InputError

if TYPE_CHECKING:
    from advisor.advise import Deliberation
    from advisor.request import Request

KINDS = ("technique", "rule", "claim", "target", "chain")
OWN_PREFIX = "technique-"  # of the rule that a technique's own requirement is cited as


def explain(name: str, request: Request | None = None, knowledge: Path | str | None = None) -> Explained:
    """Explain an id; `kind:id` where an id alone could mean two things.

    With a request, rules say whether they fire, and techniques what becomes of them; chains need one. Raises InputError
    with the nearest names.
    """
    thought = _deliberated(request)
    known = thought.knowledge if thought is not None else load_knowledge(knowledge or None)
    kind, plain = resolve(name, known)
    if kind == "chain":
        return explain_chain(plain, thought if thought is not None else _no_request(name))
    if kind == "technique":
        return explain_technique(plain, known, thought)
    if kind == "rule":
        return explain_rule(known.rules[plain], known, thought)
    if kind == "claim":
        return explain_claim(known.claims[plain], known)
    return explain_target(known.target(plain), known)


def _deliberated(request: Request | None) -> Deliberation | None:
    if request is None:
        return None
    from advisor.advise import deliberate

    return deliberate(request)


def _no_request(name: str) -> NoReturn:
    problem = "is a chain of a recommendation, and there is no request"
    raise InputError("id", name, problem, "name MODEL or --arch, with the options that `advisor recommend` got")


def resolve(name: str, known: Knowledge) -> tuple[str, str]:
    """(kind, id) of what a name means; raises InputError where it means nothing, or several things."""
    ids: dict[str, Mapping[str, Any]] = {
        "technique": CATALOG,
        "rule": known.rules,
        "claim": known.claims,
        "target": known.targets,
    }
    found = [kind for kind, entries in ids.items() if name in entries]
    if len(found) > 1:
        remedy = f"write {' or '.join(f'{kind}:{name}' for kind in found)}"
        raise InputError("id", name, f"is a {' and a '.join(found)}", remedy)
    if found:
        return found[0], name
    kind, colon, plain = name.partition(":")
    if colon and kind in KINDS and (kind == "chain" or plain in ids[kind]):
        return kind, plain
    if name.isdecimal() or "+" in name or name == "nothing":
        return "chain", name
    if name.endswith((".yaml", ".yml")):
        return "target", name
    everything = list(dict.fromkeys(n for entries in ids.values() for n in entries))
    near = difflib.get_close_matches(name, everything, n=3, cutoff=0.5)
    near = near or [n for n in everything if name and (name in n or n in name)][:3]
    remedy = f"did you mean {', '.join(near)}?" if near else "see `advisor knowledge` for lists"
    if name.startswith(OWN_PREFIX):
        remedy = "such ids are requirements that techniques declare themselves: explain the technique"
    raise InputError("id", name, "no technique, rule, claim or target has this id", remedy)

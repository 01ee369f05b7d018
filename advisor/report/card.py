"""The model card that travels with the artifact: what it is, how it was made, what was measured, how to use it."""

from __future__ import annotations

from typing import Any

from advisor.report.advice import asked
from advisor.report.measured import Json, measured, verdict_of
from advisor.report.render import render_card
from advisor.texts import chain_text, flat_text, params_text
from advisor.units import bytes_text
from knowledge.sources import is_factory


def model_card(run: Json) -> str:
    """README.md of the artifact folder."""
    plan, verification = run["plan"], run["verification"]
    _, verdict, misses = verdict_of(verification)
    packed = verification.get("packed") if verification else None
    explanations = verification["explanations"] if verification else ()
    values: dict[str, Any] = {
        "model": plan["model"],
        "target": plan["target"],
        "chain": chain_text(plan["stages"]),
        "stages": [(s["technique"], params_text(s["params"])) for s in run["stages"] if s["technique"] != "export"],
        "asked": asked(plan),
        "rows": measured(verification) if verification else (),
        "packed": packed and {"file": packed["file"], "size": bytes_text(packed["size_bytes"])},
        "runs_code": is_factory(plan["model"]),
        "decodes": bool(verification and verification.get("decoding")),
        "verdict": verdict,
        "misses": misses,
        "explanations": explanations,
        "exact_integers": _exact_by_option(verification),
        "environment": [(k, flat_text(v)) for k, v in verification["environment"].items()] if verification else [],
    }
    return render_card(values)


def _exact_by_option(verification: Json | None) -> bool:
    """Whether the file loses quality unless it is opened as it was for the measurements."""
    if not verification or verification["environment"].get("integer_sums") != "exact by option":
        return False
    return any(e["rule"] == "integer-sums-overflow" for e in verification["explanations"])

"""What rules say of a plan is said in their words, and what is recommended has nothing wrong with it."""

from pathlib import Path

import pytest
from linted import CNN, LM, LSTM, MINILM, PAIRS, VIT, plan

import knowledge
from advisor.advise import advise
from advisor.lint import Finding, Patch, lint_plan
from advisor.lint.findings import sorted_findings
from advisor.plans import save_plan
from advisor.proposal import to_plan
from advisor.readiness import runnable
from advisor.request import Request


def test_what_a_rule_says_is_said_in_the_rules_words(lint):
    found = {f.rule: f for f in lint(plan("magnitude", "finetune"))}
    no = found["hardware-standard-no-unstructured"]
    assert no.level == "error"
    assert "server-cpu" in no.why  # {target} is filled
    assert "stored and multiplied" in no.why
    assert no.patch == Patch(action="drop", at=("stages", 0), value="magnitude")


def test_a_refused_stage_is_replaced_where_the_rule_names_another(lint):
    no = next(f for f in lint(plan("int8_dynamic")) if f.id == "refused")
    assert no.patch.action == "set"
    assert no.patch.value["technique"] == "int8_static"


def test_what_a_rule_fixes_has_no_start(lint, tmp_path):
    """A runtime without packed lookups: embeddings stay in float, whatever heavy embeddings ask for elsewhere."""
    ours = Path(knowledge.__file__).parent / "targets" / "edge.yaml"
    lines = ours.read_text().replace("id: edge", "id: bare").splitlines()
    (tmp_path / "bare.yaml").write_text("\n".join(line for line in lines if "GatherBlockQuantized" not in line))
    found = lint(plan(("int8_dynamic", {"embeddings": True}), model=MINILM, target=str(tmp_path / "bare.yaml")))
    patches = [f.patch for f in found if f.where.endswith("embeddings")]
    assert [p.value for p in patches] == [False]


def test_forward_kl_is_a_warning_once_the_reverse_one_runs(lint):
    found = next(f for f in lint(plan("distill", model=LM)) if f.id == "forward-kl")
    assert found.level == ("warning" if "minillm" in runnable() else "note")
    assert "minillm" in found.fix


def test_orders_carry_the_reason_of_their_rule(lint):
    found = next(f for f in lint(PAIRS["order"][0]) if f.id == "order")
    assert found.rule == "order-quantize-last"
    assert "integer grid" in found.why


def test_one_rule_speaks_once_of_one_place():
    said = {"id": "x", "where": "stages[0]", "observed": "o", "why": "w", "source": "s", "fix": "f", "rule": "r"}
    found = [Finding(level="note", **said), Finding(level="error", **said)]
    assert [f.level for f in sorted_findings(found)] == ["error"]


@pytest.mark.parametrize("model", [CNN, LSTM, VIT, LM, MINILM])
@pytest.mark.parametrize("target", ["server-cpu", "mobile"])
def test_what_is_recommended_first_has_nothing_wrong_with_it(model, target, tmp_path):
    advice = advise(Request.parse(model=model, target=target), only_runnable=True)
    save_plan(to_plan(advice.chains[0], advice), tmp_path / "plan.yaml")
    assert [f for f in lint_plan(tmp_path / "plan.yaml").findings if f.level != "note"] == []

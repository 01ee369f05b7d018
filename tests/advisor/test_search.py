"""Real searches on a small model: several processes, a deadline, trials that fail, resuming."""

import json

import optuna
import pytest

from advisor.execute import open_pipeline
from advisor.studies.space import Step
from advisor.studies.storage import Assignment, create_study
from advisor.studies.study import search_chains
from advisor.studies.trials import counted, optimize, optimize_in_processes
from knowledge.layers import LayerTable, ModelInfo
from knowledge.values import Budget, Drop, Plan, RunFailed, Workload

PLAN = Plan(
    model="zoo:digits-lstm",
    task="sequence-classification",
    target="server-cpu",
    workload=Workload(threads=1),
    budget=Budget(max_drop=Drop(amount=5, unit="pp")),
    stages=(),
)
QUANTIZED = [[Step("int8_dynamic")], [Step("fp16")]]


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVISOR_STORE", str(tmp_path / "store"))


def test_two_processes_share_a_study_and_it_goes_on(tmp_path):
    out = tmp_path / "study"
    result = search_chains(PLAN, QUANTIZED, out, trials=3, workers=2)
    numbers = [t["number"] for t in result.pareto["trials"]]
    assert len(numbers) == len(set(numbers)) >= 3
    assert {t["chain"] for t in result.pareto["trials"]} == {"int8_dynamic", "fp16"}
    assert result.run is not None
    assert result.run.within_budget
    assert result.best_plan.stages[0].technique == "int8_dynamic"
    assert json.loads((out / "pareto.json").read_text())["best"] == result.pareto["best"]
    again = search_chains(PLAN, QUANTIZED, out, trials=3)
    assert [t["number"] for t in again.pareto["trials"]] == numbers  # nothing was left to do


def test_workers_start_no_more_trials_than_asked_for(tmp_path):
    """Four processes and two trials of different chains: each counts those that the others are running."""
    chains = [[Step("magnitude", {"ratio": r}), Step("fp16")] for r in (0.2, 0.3)] + QUANTIZED
    result = search_chains(PLAN, chains, tmp_path / "study", trials=2, workers=4)
    begun = [t for t in result.pareto["trials"] if t["state"] != "waiting"]
    assert len(begun) == 2


def test_trials_of_a_search_that_was_killed_hold_no_place(tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    chains = tuple(tuple(chain) for chain in QUANTIZED)
    pipeline = open_pipeline(PLAN)
    dead, mine = (Assignment(PLAN, chains, storage, "resumed", 2, None) for _ in range(2))
    study = create_study(mine, pipeline.original_layers)
    study.ask().set_user_attr("search", dead.search)  # running, as far as anyone can tell
    optimize(mine, pipeline, study, lambda line: None)
    assert counted(study) == 2


def test_a_deadline_ends_a_search_with_what_it_has(tmp_path):
    result = search_chains(PLAN, QUANTIZED, tmp_path / "study", trials=500, time_budget_seconds=1)
    assert 1 <= len([t for t in result.pareto["trials"] if t["state"] == "complete"]) < 100
    assert result.run is not None


def test_a_diverging_trial_fails_alone_and_says_why(tmp_path):
    absurd = Step("finetune", {"learning_rate": 1e30, "epochs": 1}, {"learning_rate": [1e30, 1e30], "epochs": [1]})
    chains = [[Step("magnitude", {"ratio": 0.2}, {"ratio": [0.2, 0.2]}), absurd]]
    result = search_chains(PLAN, chains, tmp_path / "study", trials=1)
    (trial,) = result.pareto["trials"]
    assert trial["state"] == "fail"
    assert "diverged" in trial["failed"]
    assert result.run is None
    assert result.exit_code == 1


def test_a_worker_s_trouble_reaches_the_caller(tmp_path):
    broken = PLAN.model_copy(update={"model": "zoo:digits-lstmm"})
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    assignment = Assignment(broken, ((Step("fp16"),),), storage, "broken", 2, None)
    info = ModelInfo("m", "rnn", "sequence-classification")
    study = create_study(assignment, LayerTable.of([{"path": "a", "kind": "linear", "outputs": 1}], info))
    with pytest.raises(RunFailed, match="digits-lstmm"):
        optimize_in_processes(assignment, 1, study, lambda line: None)
    assert optuna.load_study(study_name="broken", storage=storage).trials  # the queued chain is still there

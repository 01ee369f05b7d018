import optuna
import pytest
from sqlalchemy import event

from advisor.studies.front import best_trial, feasible, nearest_miss, pareto_front, trial_rows
from advisor.studies.space import Step, chain_id, searched, starting_point, suggest
from advisor.studies.storage import open_storage
from knowledge.files import disk_full
from knowledge.layers import LayerTable, ModelInfo
from knowledge.techniques.catalog import CATALOG, build
from knowledge.values import InputError

ROWS = [
    {"path": "stem", "kind": "conv", "role": "stem", "outputs": 32, "inputs": 1, "kernel": 9},
    {"path": "fc", "kind": "linear", "role": "head", "outputs": 10, "inputs": 32},
]
CNN = LayerTable.of(ROWS, ModelInfo("cnn", "cnn", "image-classification"))
CHAIN = (
    Step("channels", params={"round_to": 8}),
    Step("finetune"),
    Step("magnitude"),
    Step("finetune"),
    Step("int8_static"),
)


def test_every_searchable_parameter_has_one_name():
    names = [name for *_, name, _ in searched(CHAIN, CNN)]
    assert len(names) == len(set(names))
    assert "channels.ratio" in names
    assert "finetune.epochs" in names
    assert "finetune#2.epochs" in names
    assert "int8_static.embeddings" not in names  # this model has none


def test_the_first_trial_is_the_chain_as_recommended():
    start = starting_point(CHAIN, CNN)
    trial = optuna.trial.FixedTrial(start)
    assert trial.suggest_categorical("chain", [chain_id(CHAIN)]) == chain_id(CHAIN)
    stages = suggest(trial, CHAIN, CNN)
    assert [build(s) for s in stages] == [CATALOG[s.technique].model_validate(s.params) for s in CHAIN]
    assert stages[0].params["round_to"] == 8  # what is not searched stays


def test_suggested_stages_are_always_valid():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        for stage in suggest(study.ask(), CHAIN, CNN):
            build(stage)


def test_rules_narrow_what_is_tried():
    step = Step("channels", ranges={"ratio": [0.2, 0.3], "importance": ["taylor"]})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        (stage,) = suggest(study.ask(), [step], CNN)
        assert 0.2 <= stage.params["ratio"] <= 0.3
        assert stage.params["importance"] == "taylor"
    assert starting_point([step], CNN)["channels.ratio"] == 0.3  # the usual 0.5 is outside


def trial(number, size, speed, drop, allowed=2.0, state=optuna.trial.TrialState.COMPLETE):
    made = optuna.trial.create_trial(
        state=state,
        values=[size, speed] if state is optuna.trial.TrialState.COMPLETE else None,
        user_attrs={
            "size_bytes": size,
            "speedup": speed,
            "quality_drop": drop,
            "stages": [{"technique": "fp16", "params": {}}],
        },
        system_attrs={},
    )
    made.number = number
    made.set_constraint("quality", drop - allowed)
    return made


TRIALS = [
    trial(0, 100, 1.0, 0.0),
    trial(1, 50, 2.0, 1.0),
    trial(2, 60, 1.5, 1.5),  # beaten by 1
    trial(3, 25, 3.0, 9.0),  # over the budget
    trial(4, 40, 1.0, 1.9),
    trial(5, 10, 9.0, 0.0, state=optuna.trial.TrialState.FAIL),
]


def test_the_front_holds_what_no_feasible_trial_beats():
    assert [t.number for t in pareto_front(TRIALS)] == [0, 1, 4]
    assert not feasible(TRIALS[3])
    assert not feasible(TRIALS[5])
    assert pareto_front([TRIALS[3]]) == []


@pytest.mark.parametrize(("goal", "winner"), [("size", 4), ("latency", 1), ("quality", 0), ("overall", 1)])
def test_the_best_trial_serves_the_goal(goal, winner):
    assert best_trial(TRIALS, goal).number == winner


@pytest.mark.parametrize("goal", ["latency", "overall"])
def test_gains_within_the_noise_of_timing_are_decided_by_the_loss(goal):
    fast, careful = trial(0, 50, 2.06, 1.8), trial(1, 50, 2.0, 0.2)
    assert best_trial([fast, careful], goal).number == 1
    assert best_trial([trial(0, 50, 2.2, 1.8), careful], goal).number == 0


def test_where_nothing_fits_the_nearest_miss_is_known():
    assert best_trial([TRIALS[3]], "size") is None
    assert nearest_miss([trial(0, 1, 1, 7.0), TRIALS[3]]).number == 0


def test_a_trial_that_was_stopped_early_is_no_near_miss_of_limits_it_never_met():
    stopped = trial(0, 1, 1, 2.1, state=optuna.trial.TrialState.PRUNED)
    stopped.user_attrs = {k: v for k, v in stopped.user_attrs.items() if k not in ("size_bytes", "speedup")}
    assert nearest_miss([stopped, TRIALS[3]]).number == 3
    assert nearest_miss([stopped]).number == 0


def test_rows_name_the_limit_that_a_trial_misses():
    row = trial_rows([TRIALS[3]])[0]
    assert row["feasible"] is False
    assert row["excess"] == {"quality": 7.0}


def test_a_storage_that_cannot_be_opened_is_refused():
    with pytest.raises(InputError, match="storage"):
        open_storage("sqlite:////no/such/folder/study.db")
    with pytest.raises(InputError, match="storage"):
        open_storage("nonsense://x")


def test_a_database_that_cannot_grow_is_a_full_disk(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}")
    study = optuna.create_study(storage=storage)
    engine = storage.engine if hasattr(storage, "engine") else storage._backend.engine
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 1"))
    with pytest.raises(optuna.exceptions.StorageInternalError) as caught:
        study.enqueue_trial({"x": 1}, user_attrs={"text": "x" * 100_000})
    assert "full" not in str(caught.value)  # only the error behind it says so
    assert disk_full(caught.value)

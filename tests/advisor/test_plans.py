from pathlib import Path

import pytest
import yaml

import knowledge.reading
from advisor.plans import load_plan, read_plan, save_plan
from knowledge.sources import is_factory
from knowledge.values import Budget, Drop, InputError, Plan, Stage, Workload

BUDGET = Budget(max_drop=Drop(amount=2, unit="pp"))


def plan(*stages: Stage, **values) -> Plan:
    given = {"model": "zoo:digits-cnn", "task": "image-classification", "target": "server-cpu"} | values
    return Plan(workload=Workload(), budget=BUDGET, stages=stages, **given)


def written(tmp_path, raw):
    path = tmp_path / "plan.yaml"
    path.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw))
    return path


def raw_plan(**changes):
    data = plan(Stage(technique="magnitude", params={"ratio": 0.5})).model_dump(
        mode="json", by_alias=True, exclude_none=True
    )
    return data | changes


def test_a_plan_reads_back_as_it_was_written(tmp_path):
    original = plan(
        Stage(technique="channels", params={"ratio": 0.5}),
        Stage(technique="finetune", params={"epochs": 3}),
        Stage(technique="int8_static"),
    )
    save_plan(original, tmp_path / "plan.yaml")
    assert load_plan(tmp_path / "plan.yaml") == original


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"colour": "red"}, "colour", "unknown field"),
        ({"stages": [{"technique": "wandaa"}]}, "technique", "unknown technique"),
        ({"stages": [{"technique": "magnitud"}]}, "technique", "did you mean magnitude"),
        ({"stages": [{"technique": "magnitude", "params": {"ratio": 1.5}}]}, "magnitude.ratio", "less than 1"),
        ({"stages": [{"technique": "magnitude", "params": {"ration": 0.5}}]}, "magnitude.ration", "did you mean ratio"),
        (
            {"budget": {"max_drop": {"amount": -1, "unit": "pp"}}},
            "budget.max_drop.amount",
            "greater than or equal to 0",
        ),
        (
            {"stages": [{"technique": "int8_static"}, {"technique": "channels"}]},
            "stages[1]",
            "move it before int8_static",
        ),
        ({"stages": [{"technique": "svd"}, {"technique": "layer_drop"}]}, "stages[1]", "move it before svd"),
        ({"stages": [{"technique": "finetune"}]}, "stages[0]", "nothing to recover from"),
        ({"stages": [{"technique": "int8_dynamic"}, {"technique": "int8_static"}]}, "stages[1]", "one quantize stage"),
        ({"stages": [{"technique": "fp16"}, {"technique": "int8_dynamic"}]}, "stages[1]", "leave out int8_dynamic or"),
        ({"stages": [{"technique": "graph_fusion"}, {"technique": "graph_fusion"}]}, "stages[1]", "one fuse stage"),
        ({"target": "mobil"}, "target: mobil", "did you mean mobile"),
        ({"target": "nowhere.yaml"}, "target: nowhere.yaml", "no such file"),
        ({"goal": "sizes"}, "goal: sizes", "did you mean size?"),
        ({"knowledge": "nowhere"}, "knowledge: nowhere", "no such folder"),
    ],
)
def test_a_wrong_plan_is_refused_in_one_line(tmp_path, changes, field, words):
    path = written(tmp_path, raw_plan(**changes))
    with pytest.raises(InputError) as refused:
        load_plan(path)
    line = str(refused.value)
    assert field in line
    assert words in line
    assert str(path) in line
    assert "\n" not in line


@pytest.mark.parametrize("raw", ["", "[1, 2]", "a: [", "!!python/object/apply:os.system ['true']", "seed: 2026-99-99"])
def test_what_is_not_a_plan_is_refused(tmp_path, raw):
    with pytest.raises(InputError):
        load_plan(written(tmp_path, raw))


def test_no_such_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_plan(tmp_path / "none.yaml")


def test_the_users_code_runs_only_when_allowed(tmp_path):
    path = written(tmp_path, raw_plan(model="mymodels.cnn:make"))
    with pytest.raises(InputError, match="--allow-code"):
        load_plan(path)
    assert load_plan(path, allow_code=True).model == "mymodels.cnn:make"


@pytest.mark.parametrize("metric", ["mine:score", "zoo:x", "evil-mod:f", "evil:a.b", "evil:"])
def test_every_metric_with_a_colon_is_code(tmp_path, metric):
    with pytest.raises(InputError, match="--allow-code"):
        load_plan(written(tmp_path, raw_plan(metric=metric)))


@pytest.mark.parametrize(
    ("source", "code"),
    [("zoo:minilm", False), ("a.b:make", True), ("models/bert", False), ("m.onnx", False), ("https://x.y/z:1", False)],
)
def test_which_models_are_code(source, code):
    assert is_factory(source) is code


def test_a_target_of_the_users_own_knowledge_is_known(tmp_path):
    (tmp_path / "mine" / "targets").mkdir(parents=True)
    ours = Path(knowledge.reading.HERE, "targets", "server-cpu.yaml").read_text()
    (tmp_path / "mine" / "targets" / "rack.yaml").write_text(ours.replace("id: server-cpu", "id: rack"))
    path = written(tmp_path, raw_plan(target="rack"))
    with pytest.raises(InputError, match="unknown target"):
        load_plan(path)
    assert read_plan(path).target == "rack"  # looking at a plan needs no target
    assert load_plan(written(tmp_path, raw_plan(target="rack", knowledge=str(tmp_path / "mine")))).target == "rack"

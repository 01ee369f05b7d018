"""Plans that cannot be run: one line that names the field, before anything is written."""

from pathlib import Path

import pytest
from typed import advisor, nothing_written, plan_file, refused

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": "red"}, ["colour: red: unknown field", "known fields: schema, model, task"]),
        (
            {"stages": [{"technique": "fp16", "bar": 1}]},
            ["stages.0.bar: 1: unknown field; known fields: technique, params"],
        ),
        ({"budget": {"max_drop": {"amount": 3}}}, ["budget.max_drop.unit: is missing; add `unit:`"]),
        ({"workload": {"bach": 1}}, ["workload.bach: 1: unknown field", "batch, seq_len, image_size, threads"]),
        ({"seed": -1}, ["seed: -1: input should be greater than or equal to 0"]),
        ({"task": "nosuch"}, ["task: nosuch: unknown task; known: causal-lm"]),
        ({"stages": [{"technique": "fp17"}]}, ["fp17: unknown technique", "fp16"]),
        ({"stages": [{"technique": "magnitude", "params": {"ratio": 1.5}}]}, ["magnitude.ratio: 1.5", "less than 1"]),
        ({"stages": [{"technique": "magnitude", "params": {"ratoi": 0.5}}]}, ["magnitude.ratoi", "did you mean ratio"]),
        (
            {"stages": [{"technique": "fp16"}, {"technique": "magnitude"}]},
            ["stages[1]: magnitude", "move it before fp16"],
        ),
        ({"stages": [{"technique": "finetune"}]}, ["stages[0]: finetune", "put a lossy stage before it"]),
        ({"model": "package.module:factory"}, ["model: package.module:factory", "--allow-code"]),
        ({"metric": "package.module:score"}, ["metric: package.module:score", "--allow-code"]),
        ({"budget": {"max_drop": {"amount": -1, "unit": "pp"}}}, ["budget.max_drop.amount: -1", "0"]),
        ({"budget": {"max_drop": {"amount": float("inf"), "unit": "pp"}}}, ["budget.max_drop.amount: inf", "finite"]),
        ({"workload": {"batch": 0}}, ["workload.batch: 0"]),
    ],
)
def test_plans_that_cannot_be_run(folder, changes, words):
    refused(advisor("run", plan_file(**changes), "--out", "run"), 2, "plan.yaml", *words)
    nothing_written(folder, "plan.yaml")


def test_a_plan_without_a_model(folder):
    shown = advisor("run", plan_file(model=None), "--out", "run")
    refused(shown, 2, "plan.yaml: model: None: input should be a valid string")
    Path("plan.yaml").write_text(Path("plan.yaml").read_text().replace("model: null\n", ""))
    line = refused(advisor("run", "plan.yaml", "--out", "run"), 2, "plan.yaml: model: is missing; add `model:`")
    assert "{" not in line


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "!!python/object/apply:os.system ['true']", "\x00", "[" * 200_000])
def test_plan_files_that_are_no_plans(folder, text):
    Path("plan.yaml").write_text(text)
    refused(advisor("run", "plan.yaml", "--out", "run"), 2, "plan.yaml")
    nothing_written(folder, "plan.yaml")


@pytest.mark.parametrize("command", ["run", "verify", "search"])
def test_a_typical_model_cannot_be_run(folder, command):
    """One stands in where estimates are asked for: there are no weights to compress."""
    words = ("model: bert-base: is a typical model", "has no weights; name a MODEL: a folder, zoo:NAME")
    (folder / "net.onnx").write_bytes(identity())
    plan = plan_file(model="bert-base", task="text-classification")
    given = {
        "run": (plan, "--out", "out"),
        "verify": ("net.onnx", "--plan", plan),
        "search": ("bert-base", "--out", "out"),
    }
    refused(advisor(command, *given[command]), 2, *words)
    nothing_written(folder, "net.onnx", "plan.yaml")


def identity():
    """An ONNX file that hands its input on."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return model.SerializeToString()


def test_a_plan_for_no_model_but_an_architecture_cannot_be_run(folder):
    from advisor.advise import advise
    from advisor.plans import save_plan
    from advisor.proposal import to_plan
    from advisor.request import Request

    advice = advise(Request.parse(arch="transformer"))
    save_plan(to_plan(advice.chains[0], advice), Path("plan.yaml"))
    refused(advisor("run", "plan.yaml", "--out", "out"), 2, "model: none is named", "name a MODEL")
    nothing_written(folder, "plan.yaml")


# -- stages that do not apply ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "word"),
    [
        ([{"technique": "layer_drop"}], "layer_drop: does not apply: a cnn model; needs moe or transformer"),
        ([{"technique": "distill", "params": {"compression": 1000}}], "distill: does not apply"),
    ],
)
def test_a_stage_that_does_not_apply(stages, word):
    refused(advisor("run", plan_file(stages=stages), "--out", "run"), 2, word)
    assert not Path("run").exists()


def test_a_later_stage_that_does_not_apply_to_what_is_left(folder, monkeypatch):
    monkeypatch.setenv("ADVISOR_STORE", str(folder / "store"))
    plan = plan_file(stages=[{"technique": "magnitude"}, {"technique": "int8_dynamic"}])
    refused(advisor("run", plan, "--out", "run"), 2, "int8_dynamic: does not apply: a cnn model")

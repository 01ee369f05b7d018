import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from backends.context import Context
from backends.data import Data, load_data
from backends.executors import EXECUTORS, executor
from backends.models import LoadedModel, load
from backends.profile import profile
from backends.structure import (
    STRUCTURE,
    WEIGHTS,
    changed,
    fill,
    is_checkpoint,
    load_checkpoint,
    read_weights,
    rebuild,
    save,
)
from backends.tasks import task_for
from knowledge.techniques.base import Level
from knowledge.techniques.catalog import build
from knowledge.values import Decision, InputError, RunFailed, Stage, Workload

PARAMS = {
    "distill": {"epochs": 0, "compression": 1.5},
    "finetune": {"epochs": 0},
    "svd": {"min_width": 32},
    "layer_drop": {"ratio": 0.5},
}
QUICK = ("digits-dwcnn", "digits-lstm", "digits-vit", "stdlib-gpt2")
FULL = ("digits-cnn", "stdlib-lm", "stdlib-lm-large", "stdlib-moe", "minilm")


def pairs():
    techniques = [c.id for c in EXECUTORS if c.level is Level.MODEL and c.id != "finetune"]
    for model in (*QUICK, *FULL):
        for name in techniques:
            marks = [pytest.mark.full] if model in FULL else []
            yield pytest.param(model, name, marks=marks, id=f"{model}-{name}")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def zoo():
    """Models of the zoo with their data, loaded once."""
    found = {}

    def get(name: str) -> tuple[LoadedModel, Context]:
        if name not in found:
            model = load(f"zoo:{name}")
            whole, task = load_data(model, {}, 0), task_for(model.info.task)
            data = Data(whole.train.head(32), whole.calibration.head(32), whole.search, whole.verification)
            workload = Workload(seq_len=32)
            context = Context(data, task, workload, profile(model, workload), model.inputs, teacher=model)
            found[name] = model, context
        model, context = found[name]
        return model.clone(), context

    return get


def assert_same(one: LoadedModel, other: LoadedModel, split) -> None:
    assert one.info == other.info
    batch = {name: torch.from_numpy(v[:8]) for name, v in split.inputs.items()}
    with torch.no_grad():
        assert torch.equal(one.forward(batch), other.forward(batch))
    names = [n for n, _ in one.module.named_parameters()]
    assert names == [n for n, _ in other.module.named_parameters()]  # tied weights are tied again


@pytest.mark.parametrize(("name", "technique"), pairs())
def test_what_a_technique_made_comes_back_bit_by_bit(name, technique, zoo, tmp_path):
    model, context = zoo(name)
    chosen = build(Stage(technique=technique, params=PARAMS.get(technique, {})))
    if list(chosen.refusals(context.layers)):
        pytest.skip("does not apply")
    made, _ = executor(type(chosen))(chosen, model, context)
    made.module.eval()
    save(made, tmp_path)
    assert is_checkpoint(tmp_path)
    assert_same(load(str(tmp_path)), made, context.data.calibration)


def test_a_chain_of_surgeries_comes_back(zoo, tmp_path):
    model, context = zoo("digits-vit")
    for name in ("distill", "layer_drop", "svd", "magnitude", "finetune"):
        chosen = build(Stage(technique=name, params=PARAMS.get(name, {})))
        layers = profile(model, context.workload)
        model, _ = executor(type(chosen))(chosen, model, Context(**{**vars(context), "layers": layers}))
    save(model, tmp_path)
    again = load_checkpoint(tmp_path)
    assert_same(again, model, context.data.calibration)
    assert [d.technique for d in again.structure] == ["distill", "layer_drop", "svd", "magnitude"]
    save(again, tmp_path / "second")  # what came back can be stored again
    assert (tmp_path / "second" / WEIGHTS).read_bytes() == (tmp_path / WEIGHTS).read_bytes()
    assert (tmp_path / "second" / STRUCTURE).read_text() == (tmp_path / STRUCTURE).read_text()


def test_tied_weights_are_stored_once(zoo, tmp_path):
    model, _ = zoo("stdlib-gpt2")
    save(model, tmp_path)
    with safe_open(tmp_path / WEIGHTS, "pt") as stored:
        names = set(stored.keys())
    assert "transformer.wte.weight" in names
    assert "lm_head.weight" not in names
    again = load_checkpoint(tmp_path)
    assert again.module.lm_head.weight is again.module.transformer.wte.weight


@pytest.fixture
def saved(zoo, tmp_path):
    save(zoo("digits-lstm")[0], tmp_path)
    return tmp_path


def test_a_folder_without_a_checkpoint_is_bad_input(tmp_path):
    assert not is_checkpoint(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        load_checkpoint(tmp_path)


def test_truncated_weights_are_bad_input(saved):
    data = (saved / WEIGHTS).read_bytes()
    for size in (len(data) - 100, 50, 3, 0):
        (saved / WEIGHTS).write_bytes(data[:size])
        with pytest.raises(InputError, match="unreadable"):
            load_checkpoint(saved)
    (saved / WEIGHTS).unlink()
    with pytest.raises(InputError, match="no such file"):
        load_checkpoint(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_bad_input(saved, value):
    tensors = load_file(saved / WEIGHTS)
    tensors["fc.weight"][0, 0] = value
    save_file(tensors, saved / WEIGHTS)
    with pytest.raises(InputError, match=r"fc\.weight holds NaN"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.pop("fc.bias"), "fc.bias is missing"),
        (lambda t: t.update(more=torch.zeros(1)), "more is unknown"),
        (lambda t: t.update({"fc.bias": torch.zeros(11)}), "fc.bias has a wrong shape"),
    ],
)
def test_weights_must_match_exactly(saved, change, problem):
    tensors = load_file(saved / WEIGHTS)
    change(tensors)
    save_file(tensors, saved / WEIGHTS)
    with pytest.raises(InputError, match=problem):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"schema": "advisor.structure/1"}',
        '{"schema": "other", "decisions": [], "source": "", "task": "", "info": {}}',
    ],
)
def test_a_structure_that_is_none_is_bad_input(saved, text):
    (saved / STRUCTURE).write_text(text)
    with pytest.raises(InputError, match="not a checkpoint of this version"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "decision",
    [
        {"technique": "svd", "ranks": {"nowhere.fc": 3}},
        {"technique": "svd", "ranks": {"lstm": 3}},
        {"technique": "channels", "shapes": {"fc": {"outputs": 999, "inputs": 3}}},
        {"technique": "layer_drop", "dropped_blocks": [0]},
    ],
)
def test_surgeries_that_do_not_fit_the_source_are_bad_input(saved, decision):
    described = json.loads((saved / STRUCTURE).read_text())
    (saved / STRUCTURE).write_text(json.dumps(described | {"decisions": [decision]}))
    with pytest.raises(InputError):
        load_checkpoint(saved)


def test_a_full_disk_is_a_failed_run_and_the_old_checkpoint_stays(saved, zoo, monkeypatch):
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    monkeypatch.setattr("backends.structure.save_file", full)
    with pytest.raises(RunFailed, match="disk is full"):
        save(zoo("digits-vit")[0], saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_curves_are_not_part_of_the_structure(small):
    decision = Decision.model_validate({"technique": "distill", "curve": [{"step": 0, "loss": 1.0}]})
    assert changed(small.cnn(), decision).structure[0].curve == ()


def test_a_decision_for_another_model_is_a_mistake(small):
    with pytest.raises(ValueError, match="svd"):
        rebuild(small.cnn(), [Decision(technique="svd", ranks={"residual": 2})])


def test_filling_is_in_place(small, tmp_path):
    model = small.cnn()
    save(model, tmp_path)
    weight = model.module.fc.weight
    with torch.no_grad():
        weight.zero_()
    fill(model.module, read_weights(tmp_path / WEIGHTS), tmp_path)
    assert model.module.fc.weight is weight
    assert bool((weight != 0).all())

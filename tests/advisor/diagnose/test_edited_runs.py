"""Runs with a trouble written into them: each trouble is seen, explained and comes with commands that parse."""

import copy
import json
import shutil

import yaml
from diagnosed import edited, told

from advisor.diagnose.gains import NEXT
from backends.onnx import explain


def test_an_unfinished_run_names_the_stage_and_goes_on(cut, copied):
    folder = copied(cut)
    for name in ("run.json", "verification.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "artifact")
    shutil.rmtree(folder / "stages" / "02-int8_static")
    report, found = told(folder)
    assert report.exit_code == 1
    assert "1 of 2 stages are done" in found["unfinished"].seen
    assert "the export or stage 2 (int8_static)" in found["unfinished"].seen
    assert found["unfinished"].commands == (f"advisor run {folder / 'plan.yaml'} --out {folder}",)
    shutil.rmtree(folder / "stages")
    assert "stage 1 (channels)" in told(folder)[1]["unfinished"].seen


def test_an_unfinished_run_with_all_its_stages_died_at_the_end(cut, copied):
    folder = copied(cut)
    (folder / "run.json").unlink()
    assert "writing the results" in told(folder)[1]["unfinished"].seen
    (folder / "verification.json").unlink()
    assert "the export or the verification" in told(folder)[1]["unfinished"].seen


def test_a_stage_that_needs_more_memory_than_there_is(cut, copied, monkeypatch):
    folder = copied(cut)
    (folder / "run.json").unlink()
    shutil.rmtree(folder / "stages")
    monkeypatch.setattr("advisor.diagnose.unfinished.total_memory", lambda: 10**8)
    found = told(folder)[1]["out-of-memory"]
    assert "this machine has 100 MB" in found.seen
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    plan["workload"]["batch"] = 64
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert "--batch 32" in told(folder)[1]["out-of-memory"].commands[0]


def test_the_memory_that_stages_took_is_held_against_the_machine(cut, monkeypatch):
    peaks = [s["peak_memory_bytes"] for s in json.loads((cut / "run.json").read_text())["stages"]]
    monkeypatch.setattr("advisor.diagnose.training.total_memory", lambda: max(peaks))
    assert "memory-tight" in told(cut)[1]
    monkeypatch.setattr("advisor.diagnose.training.total_memory", lambda: 100 * max(peaks))
    assert "memory-tight" not in told(cut)[1]


def test_a_slower_file_is_called_slower(cut, copied):
    def slow(run):
        run["verification"]["speedup"] = {"value": 0.6, "low": 0.5, "high": 0.7}

    found = told(edited(copied(cut), slow))[1]
    assert "another form than int8_static" in found["slower"].advice
    assert "speedup-uncertain" not in found


def test_a_speedup_that_may_be_none_is_measured_again(cut, copied):
    def unsure(run):
        run["verification"]["speedup"] = {"value": 1.02, "low": 0.97, "high": 1.06}

    folder = edited(copied(cut), unsure)
    assert told(folder)[1]["speedup-uncertain"].commands == (f"advisor verify {folder}",)


def test_layers_that_were_left_alone_are_named(cut, copied):
    no = {
        "technique": "int8_static",
        "rule": "r",
        "observed": "2 additions",
        "required": "two inputs",
        "remedy": "none",
    }
    wrong = {"technique": "channels", "rule": "effect-differs", "observed": "9 bytes", "required": "8", "remedy": "r"}

    def skip(run):
        run["stages"][-1]["decision"]["skipped"] = [no]
        run["warnings"] = [wrong]

    found = told(edited(copied(cut), skip))[1]
    assert "2 additions, needs two inputs" in found["layers-skipped"].seen
    assert found["layers-skipped"].about == "stage 2 (int8_static)"
    assert "9 bytes" in found["effect-differs"].seen


def test_a_stage_without_effect_on_the_file(half, copied):
    def nothing(run):
        run["stages"].append({**run["stages"][-1], "technique": "graph_fusion", "decision": {"kept": False}})

    found = told(edited(copied(half), nothing))[1]["no-effect"]
    assert found.about == "graph_fusion"
    assert "was not kept" in found.seen


def test_training_that_ends_too_early_is_doubled(cut, copied):
    folder = copied(cut)
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    plan["stages"].insert(1, {"technique": "finetune", "params": {"epochs": 3}})
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))

    def trained(run):
        stage = copy.deepcopy(run["stages"][0])
        curve = [{"step": n, "loss": 1.0 / (n + 1)} for n in range(30)]
        run["stages"].insert(1, {**stage, "technique": "finetune", "decision": {"curve": curve}})

    found = told(edited(folder, trained))[1]["still-learning"]
    assert "--set finetune.epochs=6" in found.commands[0]


def test_luck_on_the_search_split_is_told_from_loss(cut, copied):
    def lucky(run):
        for stage in run["stages"]:
            stage["quality"] = run["baseline"]["quality"]

    found = told(edited(copied(cut), lucky))[1]
    assert "0.00 pp lost on the search split" in found["other-split"].seen
    assert "--max-drop 0.35pp" in found["other-split"].commands[0]
    assert "quality-unspent" in found


def test_every_explanation_of_a_file_has_something_to_try(cut, copied):
    rules = [rule.__name__.replace("_", "-") for rule in explain.RULES]
    assert set(rules) == set(NEXT)

    def explain_all(run):
        run["verification"]["explanations"] = [{"rule": r, "text": f"because of {r}"} for r in [*rules, "a-new-one"]]

    found = told(edited(copied(cut), explain_all))[1]
    assert set(rules) | {"a-new-one"} <= set(found)
    assert found["bound-by-overhead"].commands[0].count("--batch 32") == 1

"""Studies in which nothing fits, trials failed, or that did not end."""

import copy
import json
import shlex
import shutil

import pytest
from diagnosed import told


@pytest.fixture
def study(tmp_path, pareto_json):
    """Writes a study folder whose pareto.json is changed; returns the folder."""

    def made(change, best=None):
        folder = tmp_path / "study"
        folder.mkdir()
        pareto = copy.deepcopy(pareto_json)
        change(pareto)
        (folder / "pareto.json").write_text(json.dumps(pareto))
        if best is not None:
            shutil.copytree(best, folder / "best")
            shutil.copyfile(best / "plan.yaml", folder / "best-plan.yaml")
        return folder

    return made


def nothing(pareto):
    pareto["best"], pareto["front"] = None, []
    trial = next(t for t in pareto["trials"] if t.get("size_bytes"))
    pareto["nearest"] = trial["number"]
    trial["excess"] = {"quality": 0.4, "size": 0.25, "speedup": -0.2}
    for trial in pareto["trials"]:
        trial["feasible"] = False


def test_a_search_in_which_nothing_fits_says_what_would(study):
    folder = study(nothing)
    report, found = told(folder)
    assert report.exit_code == 1
    near = json.loads((folder / "pareto.json").read_text())
    trial = next(t for t in near["trials"] if t["number"] == near["nearest"])
    assert "misses quality by 40 % of the limit and size by 25 % of the limit" in found["nothing-fits"].seen
    relaxed = found["nothing-fits"].commands[0]
    assert f"--max-size {trial['size_bytes']}" in relaxed
    assert float(shlex.split(relaxed)[shlex.split(relaxed).index("--max-drop") + 1]) >= trial["quality_drop"]
    assert found["nothing-fits"].commands[-1].endswith(f"--out {folder}")  # the same study goes on


def test_trials_that_were_stopped_or_failed_are_counted_by_their_trouble(study):
    def troubled(pareto):
        for trial in pareto["trials"][:2]:
            trial["failed"], trial["state"] = "finetune: the loss is not finite", "fail"
        for trial in pareto["trials"][2:4]:
            trial["stopped_at"], trial["quality_drop"] = "channels", 7.5

    _, found = told(study(troubled))
    assert "the loss is not finite" in found["trials-failed"].seen
    assert "after channels" in found["stopped-early"].seen
    assert "7.50 or more" in found["stopped-early"].seen


def test_stopped_trials_whose_loss_is_not_known_are_counted(study):
    def stopped(pareto):
        pareto["trials"] = [pareto["trials"][0] | {"stopped_at": "channels", "quality_drop": None}]

    assert told(study(stopped))[1]["stopped-early"].seen == "1 of 1 trials were stopped (1 after channels)"


def test_a_study_is_diagnosed_with_its_winner_and_its_own_options(study, cut):
    def left(pareto):
        pareto["trials"].append({**pareto["trials"][0], "number": 99, "state": "waiting"})

    folder = study(left, best=cut)
    report, found = told(folder)
    assert (report.kind, report.verdict) == ("study", "The budget is missed.")
    assert {"trials-left", "quality-lost"} <= set(found)
    assert "--max-drop 0.5pp --max-size 10000" in found["trials-left"].commands[0]
    assert f"--out {folder}-2" in found["quality-lost"].commands[1]  # beside the study, not in it


def test_a_winner_that_was_never_run(study, cut):
    folder = study(lambda _: None)
    shutil.copyfile(cut / "plan.yaml", folder / "best-plan.yaml")
    report, found = told(folder)
    assert report.exit_code == 1
    assert found["unfinished-winner"].commands == (f"advisor run {folder / 'best-plan.yaml'} --out {folder / 'best'}",)


def test_a_search_that_did_not_end_goes_on(tmp_path):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = tmp_path / "study"
    folder.mkdir()
    optuna.create_study(study_name="zoo:digits-cnn-0123456789ab", storage=f"sqlite:///{folder / 'study.db'}")
    report, found = told(folder)
    assert report.exit_code == 1
    assert found["unfinished-search"].commands == (f"advisor search zoo:digits-cnn --out {folder}",)

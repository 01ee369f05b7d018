"""Diagnose: every trouble of a real run or a study is seen, explained, and comes with commands that parse."""

import copy
import json
import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

import cli
from advisor.diagnose import OF_RUNS, OF_STUDIES, diagnose
from advisor.diagnose.gains import NEXT
from advisor.execute import run_plan
from advisor.plans import load_plan
from advisor.predict import estimate
from advisor.profile import profile_source
from advisor.request import Request
from advisor.show.options import REQUEST
from backends.onnx import explain
from backends.runner import Pipeline
from backends.store import Store
from knowledge.load import load_knowledge
from knowledge.values import Budget, Drop, InputError, Plan, Stage, Workload

SPARSE = str(Path(__file__).parents[1] / "cases" / "targets" / "sparse-engine.yaml")
DROP = Drop(amount=100, unit="pp")


def advisor(*args):
    return CliRunner().invoke(cli.main, [str(a) for a in args])


def parses(line):
    """Whether click and the request take a command as it stands; returns the command's name."""
    program, *words = shlex.split(line)
    assert program == "advisor"
    found: click.Command = cli.main
    while isinstance(found, click.Group):
        found, words = found.commands[words[0]], words[1:]
    given = found.make_context(found.name, words).params
    if "target" in given:
        options = {
            name: given[name] for name in (n.replace("-", "_") for n, _, _ in REQUEST) if not name.endswith("data")
        }
        Request.parse(model=given["model"], **options)
    return found.name


def told(folder):
    """The diagnoses of a folder by id, every command of them parsed."""
    report = diagnose(folder)
    for found in report.diagnoses:
        assert found.commands, found.id
        assert all((found.seen, found.why, found.source, found.advice)), found.id
        for line in found.commands:
            parses(line)
    return report, {d.id: d for d in report.diagnoses}


@pytest.fixture(autouse=True, scope="module")
def own_evidence(tmp_path_factory):
    """What these runs measure enters no other test's estimates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVISOR_CONFIG", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def pipelines(store):
    return {
        name: Pipeline.open(f"zoo:{name}", workload=Workload(threads=1), seed=0, store=store)
        for name in ("digits-cnn", "digits-lstm")
    }


@pytest.fixture(scope="module")
def run_of(pipelines, tmp_path_factory):
    """Carries a chain out; returns its run folder."""

    def carried_out(model, *stages, target="server-cpu", **limits):
        chain = tuple(Stage(technique=name, params=params) for name, params in stages)
        known, workload = load_knowledge(), Workload(threads=1)
        layers = profile_source(f"zoo:{model}", workload=workload)
        plan = Plan(
            model=f"zoo:{model}",
            task=layers.info.task,
            target=target,
            workload=workload,
            budget=Budget(**{"max_drop": DROP, **limits}),
            stages=chain,
            estimate=estimate(layers, chain, known.target(target), workload, known),
        )
        folder = tmp_path_factory.mktemp("runs") / "run"
        run_plan(plan, folder, pipeline=pipelines[model])
        return folder

    return carried_out


@pytest.fixture(scope="module")
def half(run_of):
    """fp16 on a CPU, wanted four times as fast in a tenth of the memory."""
    return run_of("digits-lstm", ("fp16", {}), min_speedup=4.0, max_memory_bytes=1_000_000)


@pytest.fixture(scope="module")
def zeros(run_of):
    """Single weights pruned for an engine that skips zeros, measured where none are skipped."""
    return run_of("digits-cnn", ("magnitude", {"ratio": 0.5}), target=SPARSE)


@pytest.fixture(scope="module")
def cut(run_of):
    """Channels removed and never recovered, then INT8, with hardly any quality to spend and a tiny file wanted."""
    stages = (("channels", {"ratio": 0.6}), ("int8_static", {}))
    return run_of("digits-cnn", *stages, max_drop=Drop(amount=0.5, unit="pp"), max_size_bytes=10_000)


@pytest.fixture
def copied(tmp_path):
    """A private copy of a run folder, to be edited."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "run"))


def edited(folder, change):
    """The folder with its run.json changed."""
    run = json.loads((folder / "run.json").read_text())
    change(run)
    (folder / "run.json").write_text(json.dumps(run))
    return folder


# -- real runs -------------------------------------------------------------------------------------------------------


def test_a_speed_that_fp16_cannot_give_is_missed_and_explained(half):
    report, found = told(half)
    assert report.exit_code == 1
    assert report.verdict == "The budget is missed."
    measured = json.loads((half / "verification.json").read_text())["speedup"]["value"]
    assert f"{measured:.2f} times as fast, 4 wanted" in found["speed-missed"].seen
    assert "--goal latency" in found["speed-missed"].commands[0]
    assert "single precision" in found["half-precision-on-cpu"].why
    elsewhere = found["half-precision-on-cpu"].commands[-1]
    target = shlex.split(elsewhere)[shlex.split(elsewhere).index("--target") + 1]
    assert "fp16" in load_knowledge().target(target).accelerates


def test_memory_that_is_missed_names_the_file_s_share(half):
    _, found = told(half)
    assert "allowed" in found["memory-missed"].seen
    assert "--goal memory" in found["memory-missed"].commands[0]


def test_zeros_that_pay_nowhere_are_explained_within_the_budget(zeros):
    report, found = told(zeros)
    assert report.exit_code == 0
    assert "zero" in found["zeros-stored-densely"].why
    assert parses(found["zeros-stored-densely"].commands[0]) == "recommend"
    assert "times faster" in found["off-estimate"].seen  # the engine was counted on


def test_lost_quality_is_followed_to_its_stage_and_the_recovery_put_in(cut):
    report, found = told(cut)
    assert report.exit_code == 1
    lost = found["quality-lost"]
    assert re.search(r"channels [0-9.]+ pp lost", lost.seen)
    assert "recover after channels" in lost.advice
    assert "channels.ratio" in lost.advice
    mend, again, _ = lost.commands
    assert advisor(*shlex.split(mend)[1:]).exit_code in (0, 1)
    plan_file = Path(shlex.split(again)[2])
    mended = load_plan(plan_file)
    assert [s.technique for s in mended.stages] == ["channels", "finetune", "int8_static"]
    assert mended.stages[0].params["ratio"] < 0.6
    plan_file.unlink()


def test_a_missed_size_says_what_holds_the_bytes_and_cuts_harder(cut, copied):
    _, found = told(cut)
    assert "10,000 allowed" in found["size-missed"].seen
    assert "conv in 8 bits" in found["size-missed"].seen
    assert "--max-size 10000" in found["size-missed"].commands[-1]
    assert "quality is missed too" in found["size-missed"].advice

    def only_size(run):
        verdict = run["verification"]["verdict"]
        verdict["misses"] = [miss for miss in verdict["misses"] if miss["limit"] == "size"]

    harder = told(edited(copied(cut), only_size))[1]["size-missed"].commands[0]
    ratio = next(word for word in shlex.split(harder) if word.startswith("channels.ratio="))
    assert 0.6 < float(ratio.partition("=")[2]) <= 0.7


def test_the_plan_stays_beside_its_results(cut):
    """What is suggested writes another plan: the run folder is not touched."""
    _, found = told(cut)
    for line in found["quality-lost"].commands:
        words = shlex.split(line)
        assert words[words.index("--out") + 1] not in (str(cut), str(cut / "plan.yaml"))


# -- runs with a trouble ---------------------------------------------------------------------------------------------


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


# -- studies ---------------------------------------------------------------------------------------------------------


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


# -- the command -----------------------------------------------------------------------------------------------------


def test_every_check_of_runs_and_studies_is_a_function_of_its_own():
    assert len({check.__name__ for check in (*OF_RUNS, *OF_STUDIES)}) == len(OF_RUNS) + len(OF_STUDIES)


def test_the_terminal_and_json_say_the_same(zeros, half):
    shown, found = advisor("diagnose", zeros), json.loads(advisor("diagnose", zeros, "--json").stdout)
    assert shown.exit_code == 0
    assert found["schema"] == "advisor.diagnosis/1"
    for diagnosis in found["diagnoses"]:
        for line in diagnosis["commands"]:
            assert line in shown.stdout  # in one line, to be copied
    assert advisor("diagnose", half).exit_code == 1


def test_a_suggested_recommendation_answers(zeros):
    line = told(zeros)[1]["zeros-stored-densely"].commands[0]
    assert advisor(*shlex.split(line)[1:]).exit_code == 0


UNVERIFIED = '{"schema": "advisor.run/1", "stages": [], "baseline": {}, "plan": {}, "verification": null}'


@pytest.mark.parametrize("broken", ["{", "[]", '{"schema": "other"}', '{"schema": "advisor.run/1"}', UNVERIFIED])
def test_a_folder_that_cannot_be_read_is_refused(broken, cut, copied):
    folder = copied(cut)
    (folder / "run.json").write_text(broken)
    shown = advisor("diagnose", folder)
    assert shown.exit_code == 2
    assert shown.stderr.strip().count("\n") == 0
    assert "run" in shown.stderr


def test_a_folder_without_a_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="run: "):
            diagnose(folder)
    (tmp_path / "study.db").write_text("no database")
    with pytest.raises(InputError, match=r"study\.db"):
        diagnose(tmp_path)

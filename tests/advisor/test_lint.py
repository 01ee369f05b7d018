"""Lint: every check has a plan that it objects to and one that it does not; what is mechanical is mended for good."""

import json
import random
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import cli
import knowledge
from advisor.advise import advise
from advisor.lint import Finding, Patch, lint_plan
from advisor.lint.case import legal_order
from advisor.lint.checks import FILE_CHECKS, MODEL_CHECKS
from advisor.lint.findings import sorted_findings
from advisor.lint.fix import patched
from advisor.plans import load_plan, save_plan
from advisor.proposal import to_plan
from advisor.readiness import runnable
from advisor.request import Request
from knowledge.techniques.base import Range
from knowledge.techniques.catalog import CATALOG
from knowledge.values import InputError

SPARSE = str(Path(__file__).parents[1] / "cases" / "targets" / "sparse-engine.yaml")
CNN, LSTM, VIT, LM, MINILM = (
    f"zoo:{name}" for name in ("digits-cnn", "digits-lstm", "digits-vit", "stdlib-lm", "minilm")
)
FOLDER = str(Path(cli.__file__).parent / "backends" / "zoo" / "weights" / "stdlib-lm")  # brings no data
IN_BLOCKS = {"ratio": 0.5, "round_to": 16}
INTERVAL = {"low": 1, "mid": 1.2, "high": 1.5, "unit": "×", "basis": "a guess"}


def plan(*stages, model=CNN, drop=3, unit="", budget=None, **fields):
    """The mapping of a plan file; a stage is a technique, or a technique with its parameters."""
    unit = unit or ("%" if model in (LM, MINILM, FOLDER) else "pp")
    named = [{"technique": s} if isinstance(s, str) else {"technique": s[0], "params": s[1]} for s in stages]
    return {
        "schema": "advisor.plan/1",
        "model": model,
        "task": "",
        "target": "server-cpu",
        "workload": {"batch": 1, "threads": 1},
        "budget": {"max_drop": {"amount": drop, "unit": unit}, **(budget or {})},
        "stages": named,
        **fields,
    }


def written(folder, raw):
    path = folder / "plan.yaml"
    path.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw, sort_keys=False))
    return path


@pytest.fixture(autouse=True)
def no_evidence(tmp_path, monkeypatch):
    """What other tests' runs have measured does not enter."""
    monkeypatch.setenv("ADVISOR_CONFIG", str(tmp_path / "config"))


@pytest.fixture
def lint(tmp_path):
    """The findings about a plan."""
    return lambda raw, **options: lint_plan(written(tmp_path, raw), **options).findings


def estimate(**figures):
    names = ("size_bytes", "compression", "speedup", "latency_ms", "quality_drop")
    return {name: {**INTERVAL, **figures.get(name, {})} for name in names}


# check -> (a plan that it objects to, one that it does not)
PAIRS = {
    "unreadable": (plan("int8_static", colour="red"), plan("int8_static")),
    "model": (plan("int8_static", model="zoo:nothing"), plan("int8_static")),
    "request": (plan("int8_dynamic", model=LM, unit="pp"), plan("int8_dynamic", model=LM)),
    "order": (plan("int8_static", "channels", "finetune"), plan("channels", "finetune", "int8_static")),
    "names": (plan("int8_static", goal="sizes"), plan("int8_static", goal="size")),
    "code": (plan("int8_static", metric="mine:score"), plan("int8_static", metric="f1")),
    "data": (plan("int8_static", data={"evl": "e.npz"}), plan("int8_static", data={})),
    "threads": (plan("int8_static", workload={"threads": 4096}), plan("int8_static")),
    "quality-budget": (plan("int8_static", drop=8), plan("int8_static", drop=5)),
    "trains-nothing": (plan("channels", ("finetune", {"epochs": 0})), plan("channels", ("finetune", {"epochs": 1}))),
    "too-much-at-once": (
        plan(("channels", {"ratio": 0.9}), "finetune"),
        plan(("channels", {"ratio": 0.5}), "finetune"),
    ),
    "refused": (plan("magnitude", "finetune"), plan("magnitude", "finetune", target=SPARSE)),
    "advised-against": (plan("magnitude", "finetune", model=LM, target=SPARSE), plan("int8_static")),
    "warned": (plan(("channels", IN_BLOCKS), "finetune"), plan("int8_static")),
    "setting": (plan(("distill", {"compression": 6})), plan(("distill", {"compression": 2}))),
    "required": (plan("channels", "int8_static"), plan("channels", "finetune", "int8_static")),
    "better-sibling": (plan("fp16"), plan("int8_static")),
    "another-chain": (plan("int8_static", budget={"max_size_bytes": 10**9}), plan("int8_static")),
    "applies": (plan("layer_drop", "finetune"), plan("layer_drop", "finetune", model=VIT)),
    "gains-nothing": (plan("int8_static", model=LSTM), plan("int8_dynamic", model=LSTM)),
    "widths-off-block": (
        plan(("channels", {"ratio": 0.4, "round_to": 4}), "finetune"),
        plan(("channels", IN_BLOCKS), "finetune"),
    ),
    "wide-embeddings": (plan(("qat", {"embeddings": False}), model=MINILM), plan("qat", model=MINILM)),
    "speed-not-gained": (plan("fp16", goal="latency"), plan("int8_static", goal="latency")),
    "deployment-limits": (
        plan("int8_static", target="mobile"),
        plan("int8_static", target="mobile", budget={"max_size_bytes": 10**8, "max_memory_bytes": 10**9}),
    ),
    "budget-missed": (plan("int8_static", budget={"max_size_bytes": 1000}), plan("int8_static")),
    "stale-estimate": (plan("int8_static", estimate=estimate()), plan("int8_static")),
    "one-technique": (plan("int8_static", budget={"max_size_bytes": 50_000}), plan("int8_static")),
    "teacher-gap": (plan(("distill", {"compression": 100})), plan(("distill", {"compression": 2}))),
    "forward-kl": (plan("distill", model=LM), plan("distill")),
    "untrained-quantization": (plan("int8_dynamic", model=LM, drop=0.001), plan("int8_dynamic", model=LM, drop=50)),
}
# (seed, its sentence, the check that finds the mistake or the unmet criterion, a plan in which it does)
SEEDS = [
    ("S2 pitfall", "Bad: Pruning without calibration data", "refused", plan("wanda", model=FOLDER, target=SPARSE)),
    ("S2 pitfall", "Bad: Distilling with teacher/student size ratio too large", "teacher-gap", PAIRS["teacher-gap"][0]),
    ("S2 pitfall", "Bad: Using forward KL for generation tasks", "forward-kl", PAIRS["forward-kl"][0]),
    ("S3 mistake", "Pruning works for all architectures", "advised-against", PAIRS["advised-against"][0]),
    ("S3 mistake", "More compression is always better", "setting", PAIRS["setting"][0]),
    ("S3 mistake", "Unstructured pruning speeds up inference", "refused", PAIRS["refused"][0]),
    ("S3 mistake", "Quantize and deploy immediately", "untrained-quantization", PAIRS["untrained-quantization"][0]),
    ("S3 mistake", "Single technique is enough", "one-technique", PAIRS["one-technique"][0]),
    ("S3 mistake", "Skip fine-tuning to save time", "required", PAIRS["required"][0]),
    ("S3 mistake", "Skip fine-tuning to save time", "trains-nothing", PAIRS["trains-nothing"][0]),
    ("S3 criterion", "Selected appropriate technique for architecture", "better-sibling", PAIRS["better-sibling"][0]),
    ("S3 criterion", "Selected appropriate technique for architecture", "applies", PAIRS["applies"][0]),
    ("S3 criterion", "Matched student capacity to compression target (2-4× per stage)", "setting", PAIRS["setting"][0]),
    ("S3 criterion", "Used structured pruning for standard hardware", "refused", PAIRS["refused"][0]),
    ("S3 criterion", "Used structured pruning for standard hardware", "widths-off-block", PAIRS["widths-off-block"][0]),
    ("S3 criterion", "Applied iterative/progressive compression", "too-much-at-once", PAIRS["too-much-at-once"][0]),
    ("S3 criterion", "Included accuracy recovery (QAT, fine-tuning, calibration)", "required", PAIRS["required"][0]),
    ("S3 criterion", "Achieved target compression", "budget-missed", PAIRS["budget-missed"][0]),
    ("S3 criterion", "acceptable quality loss (<5pp for most tasks)", "quality-budget", PAIRS["quality-budget"][0]),
    ("S3 criterion", "Verified deployment constraints", "deployment-limits", PAIRS["deployment-limits"][0]),
    ("S3 part 4", "assert quantized_size <= 100", "deployment-limits", PAIRS["deployment-limits"][0]),
    ("S3 part 4", "assert quantized_acc >= original_acc - 5", "quality-budget", PAIRS["quality-budget"][0]),
    ("S3 part 4", "Quantization (reduce precision last)", "order", PAIRS["order"][0]),
    ("S3 when not", "Model already fits deployment constraints", "another-chain", PAIRS["another-chain"][0]),
    ("S4 practice", "Try INT8 first, if not good then try INT4", "advised-against", plan("gptq", model=LM)),
    ("S4 practice", "Static quantization requires representative data", "data", plan("int8_static", model=FOLDER)),
    ("S4 practice", "Don't compress too much at once", "too-much-at-once", PAIRS["too-much-at-once"][0]),
    ("S4 practice", "Focus on both accuracy and latency", "speed-not-gained", PAIRS["speed-not-gained"][0]),
]


@pytest.mark.parametrize("check", PAIRS)
def test_every_check_objects_to_one_plan_and_not_to_another(check, lint):
    wrong, right = PAIRS[check]
    assert check in {f.id for f in lint(wrong)}
    assert check not in {f.id for f in lint(right)}


def test_no_check_is_left_out():
    assert {c.id for c in (*FILE_CHECKS, *MODEL_CHECKS)} - {"cannot-run"} <= set(PAIRS)
    assert {check for _, _, check, _ in SEEDS} <= set(PAIRS)


def test_a_technique_that_does_not_run_here_is_said(lint, monkeypatch):
    from advisor import readiness

    missing = lambda name: None if name == "torch_pruning" else object()  # noqa: E731
    monkeypatch.setattr(readiness.importlib.util, "find_spec", missing)
    found = [f for f in lint(plan("channels", "finetune")) if f.id == "cannot-run"]
    assert [f.where for f in found] == ["stages[0]"]
    assert "torch_pruning" in found[0].observed


@pytest.mark.parametrize(("seed", "sentence", "check", "raw"), SEEDS, ids=[f"{s}: {t}" for s, t, _, _ in SEEDS])
def test_every_mistake_and_criterion_of_the_seeds_has_its_check(seed, sentence, check, raw, lint):
    found = [f for f in lint(raw) if f.id == check]
    assert found, sentence
    assert all(f.source and f.fix and f.observed for f in found)


# -- rules -------------------------------------------------------------------------------------------------------------


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


# -- reading leniently -------------------------------------------------------------------------------------------------


def test_all_findings_are_collected_whatever_the_first_one_is(lint):
    raw = plan(
        ("int8_static", {"calibraton": "minmax"}),
        ("channels", {"ratio": 1.5}),
        "magnitud",
        ("magnitude", {"ratio": 0.5}),
        goal="sizes",
        workload={"threads": 4096},
        colour="red",
    )
    found = {(f.id, f.where) for f in lint(raw)}
    assert {
        ("unreadable", "colour"),
        ("unreadable", "stages[0].params.calibraton"),
        ("unreadable", "stages[1].params.ratio"),
        ("unreadable", "stages[2].technique"),
        ("names", "goal"),
        ("threads", "workload.threads"),
        ("order", "stages[1]"),
        ("order", "stages[3]"),
        ("refused", "stages[3]"),
        ("required", "stages[1]"),
    } <= found


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        ({"stages": None}, "stages", "is not a list"),
        ({"stages": ["fp16"]}, "stages[0]", "names no technique"),
        ({"stages": [{"technique": "fp16", "param": {}}]}, "stages[0].param", "unknown field"),
        ({"stages": [{"technique": "fp16", "params": [1]}]}, "stages[0].params", "is not a mapping"),
        ({"stages": [{"technique": "svd", "params": {"ratio": "half"}}]}, "stages[0].params.ratio", "valid number"),
        ({"budget": {}}, "budget.max_drop", "is missing"),
        ({"budget": 3}, "budget", "should be a valid"),
        ({"workload": {"threads": 0}}, "workload.threads", "greater than or equal to 1"),
        ({"model": None}, "model", "valid string"),
        ({"target": "mobil"}, "target", "unknown target"),
        ({"knowledge": "nowhere"}, "knowledge", "no such folder"),
        ({"schema": "advisor.plan/9"}, "schema", "advisor.plan/1"),
        ({"task": "segmentation"}, "task", "is not supported yet"),
        ({"data": {"eval": "./nowhere.npz"}}, "data.eval", "no such file"),
        ({"data": {"calibration": "./c.npz"}}, "data", "calibration alone cannot judge"),
        ({"data": {"train": "./a.npz", "eval": "./a.npz"}}, "data", "one file serves two parts"),
        ({"workload": {"image_size": [3, 64, 64]}}, "workload.image_size", "reads 1 channels"),
        ({1: 2}, "[1]", "keys should be strings"),
    ],
)  # fmt: skip
def test_a_field_that_says_nothing_is_a_finding(changes, where, words, lint):
    found = [f for f in lint(plan("int8_static") | changes) if f.where == where]
    assert any(words in f.observed for f in found), found
    assert all(f.level == "error" for f in found)


@pytest.mark.parametrize("raw", ["", "[1, 2]", "a: [", "!!python/object/apply:os.system ['true']", "- x: 1"])
def test_what_is_not_a_plan_is_refused(raw, tmp_path):
    with pytest.raises(InputError):
        lint_plan(written(tmp_path, raw))


def test_the_users_code_is_not_run_unasked(lint, tmp_path, monkeypatch):
    (tmp_path / "spying.py").write_text("open('imported', 'w').close()\ndef make(): ...\n")
    monkeypatch.chdir(tmp_path)
    found = {f.id: f for f in lint(plan("int8_static", model="spying:make", data={"eval": "zoo:digits-cnn"}))}
    assert found["model"].level == "note"
    assert "--allow-code" in found["model"].fix
    assert not (tmp_path / "imported").exists()


def test_a_recovery_goes_where_there_is_something_to_recover():
    def built(*names):
        return {number: CATALOG[name]() for number, name in enumerate(names)}

    assert legal_order(built("finetune", "int8_static", "channels")) == [2, 0, 1]
    assert legal_order(built("channels", "finetune", "magnitude", "finetune")) == [0, 1, 2, 3]
    assert legal_order(built("int8_static", "finetune")) == [0]
    assert legal_order(built("fp16", "int8_static")) == [0]


# -- mending -----------------------------------------------------------------------------------------------------------

MESSY = """\
# my plan
schema: advisor.plan/1
model: zoo:digits-cnn
task: image-classification
target: mobile
colour: red
workload: {batch: 1, threads: 4096}
budget: {max_drop: {amount: 3, unit: pp}, max_size_byte: 100000}
stages:
- {technique: int8_dynamic, params: {embedings: false}}
- {technique: finetune, params: {epochs: 0}}
- {technique: channels, params: {ratio: 1.2}}
- {technique: magnitude, params: {ratio: 0.95}}
"""


def test_fixing_leaves_nothing_that_could_be_fixed_and_a_plan_that_loads(tmp_path):
    path = written(tmp_path, MESSY)
    said = []
    report = lint_plan(path, fix=True, say=said.append)
    mended = load_plan(path)
    assert [s.technique for s in mended.stages] == ["channels", "finetune", "int8_static"]
    assert mended.stages[1].params["epochs"] > 0
    assert mended.budget.max_size_bytes == 100_000
    assert mended.budget.max_memory_bytes == 10**9  # the target's
    assert not [f for f in report.findings if f.patch is not None]
    assert Path(report.original).read_text() == MESSY
    assert "comments are not kept" in said[0]
    assert any("magnitude was left out" in change for change in report.changes)
    again = lint_plan(path, fix=True)
    assert (again.changes, again.original) == ((), "")
    assert again.findings == report.findings == lint_plan(path).findings


@pytest.mark.parametrize("check", PAIRS)
def test_what_is_mended_stays_mended(check, tmp_path):
    path = written(tmp_path, PAIRS[check][0])
    before = path.read_bytes()
    report = lint_plan(path, fix=True)
    assert not [f for f in report.findings if f.patch is not None]
    assert (path.read_bytes() != before) == bool(report.changes)
    assert lint_plan(path).findings == report.findings


@pytest.mark.parametrize("seed", range(8))
def test_any_chain_can_be_mended_at_once(seed, tmp_path):
    """Techniques at random, in any order, with parameters in and out of their ranges."""
    draw = random.Random(seed)
    chain = []
    for name in draw.sample(list(CATALOG), 4):
        spaces = {n: s for n, s in CATALOG[name].space().items() if draw.random() < 0.5}
        values = {
            n: (s.low, s.high, 2 * s.high, -1) if isinstance(s, Range) else (*s, "odd") for n, s in spaces.items()
        }
        chain.append((name, {n: draw.choice(among) for n, among in values.items()}))
    model, target = draw.choice([CNN, LSTM, VIT, LM]), draw.choice(["server-cpu", "mobile", "a100", SPARSE])
    path = written(tmp_path, plan(*chain, model=model, target=target))
    report = lint_plan(path, fix=True)
    assert not [f for f in report.findings if f.patch is not None]
    assert lint_plan(path).findings == report.findings


def test_an_earlier_original_is_never_overwritten(tmp_path):
    path = written(tmp_path, MESSY)
    first = lint_plan(path, fix=True).original
    path.write_text(MESSY)
    second = lint_plan(path, fix=True).original
    assert first != second
    assert Path(first).read_text() == Path(second).read_text() == MESSY


def test_a_mended_plan_gets_a_fresh_estimate_and_loses_stale_reasons(tmp_path):
    raw = plan("int8_static", ("channels", IN_BLOCKS), estimate=estimate(), reasons=["because"])
    path = written(tmp_path, raw)
    lint_plan(path, fix=True)
    mended = yaml.safe_load(path.read_text())
    assert [s["technique"] for s in mended["stages"]] == ["channels", "finetune", "int8_static"]
    assert "reasons" not in mended
    assert mended["estimate"]["size_bytes"]["mid"] > 10_000


def test_a_choice_is_left_to_the_user(tmp_path):
    path = written(tmp_path, plan("fp16", "int8_static"))
    report = lint_plan(path, fix=True)
    assert report.changes == ()
    assert [f.fix for f in report.findings if f.id == "order"] == ["leave out int8_static or fp16"]
    assert report.exit_code == 1


def test_parameters_are_tried_without_being_written(tmp_path):
    path = written(tmp_path, plan("distill", ("distill", {"compression": 3})))
    before = path.read_bytes()
    report = lint_plan(path, settings=["distill.compression=6", "distill#2.epochs=9"])
    assert [f.where for f in report.findings if f.rule == "distill-capacity"] == ["stages[0].params.compression"]
    assert path.read_bytes() == before
    lint_plan(path, settings=["distill#2.epochs=9"], fix=True, out=tmp_path / "next.yaml")
    assert path.read_bytes() == before
    assert (report.written, report.original) == ("", "")
    assert yaml.safe_load((tmp_path / "next.yaml").read_text())["stages"][1]["params"]["epochs"] == 9


@pytest.mark.parametrize("setting", ["distill", "distill=3", "svd.ratio=0.5", "distill#2.epochs=3", "distill.epochs=["])
def test_a_setting_that_means_nothing_is_refused(setting, tmp_path):
    with pytest.raises(InputError, match="set: "):
        lint_plan(written(tmp_path, plan("distill")), settings=[setting])


def test_patches_count_stages_as_they_were():
    raw = {"stages": ["a", "b", "c", "d"]}
    patches = [
        Patch(action="drop", at=("stages", 1), value="b"),
        Patch(action="insert", at=("stages", 2), value="after c"),
        Patch(action="order", value=[3, 2, 1, 0]),
    ]
    assert patched(raw, patches)["stages"] == ["d", "c", "after c", "a"]
    assert raw == {"stages": ["a", "b", "c", "d"]}


# -- the command -------------------------------------------------------------------------------------------------------


def advisor(*args):
    return CliRunner().invoke(cli.main, [str(a) for a in args])


@pytest.mark.parametrize(("raw", "code"), [(plan("int8_static"), 0), (plan("fp16"), 0), (plan("magnitude"), 1)])
def test_the_exit_code_says_whether_something_is_left(raw, code, tmp_path):
    path = written(tmp_path, raw)
    assert advisor("lint", path).exit_code == code
    found = json.loads(advisor("lint", path, "--json").stdout)
    assert found["schema"] == "advisor.lint/1"
    assert bool([f for f in found["findings"] if f["level"] != "note"]) == bool(code)


def test_the_terminal_shows_what_why_and_how(tmp_path):
    path = written(tmp_path, MESSY)
    shown = advisor("lint", path)
    assert "error" in shown.stdout
    assert "(--fix does it)" in shown.stdout
    assert max(map(len, shown.stdout.splitlines()[1:])) <= 100  # the first names the file
    mended = advisor("lint", path, "--fix")
    assert "changed" in mended.stdout
    assert ".orig" in mended.stderr
    assert mended.exit_code == advisor("lint", path).exit_code


@pytest.mark.parametrize("args", [["nowhere.yaml"], ["plan.yaml", "--out", "x.yaml"]])
def test_bad_input_is_one_line(args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, plan("int8_static"))
    shown = advisor("lint", *args)
    assert shown.exit_code == 2
    assert shown.stdout == ""
    assert shown.stderr.strip().count("\n") == 0
    assert not (tmp_path / "x.yaml").exists()

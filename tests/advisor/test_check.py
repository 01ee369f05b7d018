"""The self-check: ours is clean, every kind of fault is found where it is, and templates are none."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import cli
from advisor.check import check_knowledge
from advisor.checking.cases import case_facts, read_cases
from advisor.templates import FOLDERS, write_template
from knowledge.conditions import VOCABULARY
from knowledge.load import load_knowledge
from knowledge.techniques.catalog import CATALOG
from knowledge.values import InputError

ROOT = Path(cli.__file__).parent
CASES = ROOT / "tests" / "cases"
RULE = "- id: {}\n  when: {}\n  then: [{}]\n  text: So.\n  source: me\n"


def advisor(*args):
    return CliRunner().invoke(cli.main, [str(a) for a in args])


@pytest.fixture
def mine(tmp_path):
    """Write entries of the user's own and check them."""

    def checked(kind="rules", text="", cases=None, **options):
        (tmp_path / kind).mkdir(exist_ok=True)
        (tmp_path / kind / "a.yaml").write_text(text)
        if cases is not None:
            (tmp_path / "cases").mkdir(exist_ok=True)
            (tmp_path / "cases" / "a.json").write_text(json.dumps(cases))
        report = check_knowledge(tmp_path, **options)
        found = [f for f in (*report.findings, *report.notes) if f.place.startswith(str(tmp_path)) or not f.place]
        return {(f.kind, f.id): f for f in found}

    return checked


def rules(*said):
    return "rules:\n" + "".join(RULE.format(f"r{n}", when, then) for n, (when, then) in enumerate(said))


def test_ours_is_clean():
    report = check_knowledge(cases=CASES)
    assert [f"{f.place}: {f.id}: {f.text}" for f in report.findings] == []
    assert report.exit_code == 0
    assert report.cases == sum(len(json.loads(path.read_text())) for path in CASES.glob("*.json"))


PREFER = "{prefer: {technique: channels}}"


@pytest.mark.parametrize(
    "when",
    [
        "{max_drop_pp: {lt: 1, gt: 2}}",
        "{embedding_share: {gt: 1}}",
        "{arch: cnn, subfamily: encoder}",
        "{arch: rnn, experts: {gt: 1}}",
        "{task: causal-lm, max_drop_pp: {lt: 2}}",
        "{max_drop_pp: {lt: 2}, max_drop_percent: {lt: 2}}",
        "{metric: perplexity, task.kind: classification}",
        "{limits: false, wanted_speedup: {gt: 1}}",
        "{preset: no-such-preset}",
        "{arch: cnn, any: [{arch: rnn}, {subfamily: lstm}]}",
        "{target.accelerates: {in: [fp16], not: [fp16]}}",
    ],
)
def test_rules_that_never_fire(mine, when):
    found = mine(text=rules((when, PREFER)))
    assert ("never-fires", "r0") in found
    assert found["never-fires", "r0"].place.endswith("rules/a.yaml:2")


@pytest.mark.parametrize(
    "when",
    [
        "{}",
        "{arch: cnn, subfamily: depthwise-cnn}",
        "{arch: transformer, subfamily: complex}",
        "{experts: {gt: 1}}",
        "{task: causal-lm, max_drop_percent: {lt: 2}}",
        "{limits: true, wanted_speedup: {gt: 1}}",
        "{preset: balanced}",
        "{target.class: on-premises}",
    ],
)
def test_rules_that_can_fire(mine, when):
    assert ("never-fires", "r0") not in mine(text=rules((when, PREFER)))


def test_a_condition_that_no_known_target_meets_is_a_note(mine):
    found = mine(text=rules(("{target.class: mobile, target.accelerates: '2:4'}", "{warn: all}")))
    assert found["target", "r0"].note
    assert ("target", "r0") not in mine(text=rules(("{target.class: mobile}", "{warn: all}")))


def test_conclusions_without_effect(mine):
    found = mine(
        text=rules(
            ("{arch: cnn}", "{prefer: {technique: layer_drop}}"),
            ("{subfamily: lstm}", "{set: {technique: channels, param: ratio, start: 0.3}}"),
            ("{arch: [cnn, rnn]}", "{avoid: {technique: channels}}"),
            ("{arch: cnn, goal: size}", "{prefer: {technique: magnitude}}"),
            ("{arch: cnn}", "{refuse: {family: prune}}"),
        )
    )
    faults = {name for kind, name in found if kind == "no-effect" and not found[kind, name].note}
    assert faults == {"r0", "r1", "r3"}
    assert "cnn" in found["no-effect", "r0"].text
    assert found["no-effect", "r3"].others == ("r4",)


def test_a_preference_that_an_exception_takes_away_is_a_note(mine):
    found = mine(
        text=rules(
            ("{arch: cnn}", PREFER),
            ("{training: none, goal: size}", "{refuse: {technique: channels}}"),
            ("{arch: cnn, training: [light, full], goal: [size, latency]}", PREFER),
        )
    )
    assert found["no-effect", "r0"].note
    assert "r1" in found["no-effect", "r0"].others
    assert "r1" not in getattr(found.get(("no-effect", "r2")), "others", ())


def contradictions(found):
    """Pairs of the rules above, whatever they have with ours."""
    faults = {name: f for (kind, name), f in found.items() if kind == "contradiction"}
    return {(name, other) for name, f in faults.items() for other in f.others if re.fullmatch(r"r\d", other)}


def test_what_is_required_must_not_be_refused(mine):
    require = "{require: {technique: graph_fusion, after: {technique: fp16}}}"
    refuse = "{refuse: {technique: graph_fusion}}"
    assert contradictions(mine(text=rules(("{arch: cnn}", require), ("{limits: true}", refuse)))) == {("r0", "r1")}
    assert not contradictions(mine(text=rules(("{arch: cnn}", require), ("{arch: rnn}", refuse))))
    both = "{refuse: {technique: graph_fusion}}, {refuse: {technique: fp16}}"
    assert not contradictions(mine(text=rules(("{arch: cnn}", require), ("{limits: true}", both))))


def test_what_is_required_behind_must_not_stand_before(mine):
    require = "{require: {technique: finetune, after: {technique: svd}}}"
    found = mine(text=rules(("{arch: cnn}", require), ("{goal: size}", "{before: {first: recover, then: factorize}}")))
    assert ("r0", "r1") in contradictions(found)


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ("value: 0.3", "value: 0.3", False),
        ("value: 0.3", "value: 0.4", True),
        ("value: 0.3", "low: 0.2", False),
        ("value: 0.3", "low: 0.4", True),
        ("high: 0.3", "low: 0.4", True),
        ("high: 0.4", "low: 0.3", False),
        ("start: 0.3", "start: 0.4", True),
        ("start: 0.3", "high: 0.4", False),
        ("value: 0.3", "start: 0.4", False),
    ],
)
def test_one_parameter_set_twice(mine, one, other, clash):
    def setting(said):
        return f"{{set: {{technique: svd, param: ratio, {said}}}}}"

    overlapping = rules(("{arch: cnn, goal: size}", setting(one)), ("{goal: size, limits: true}", setting(other)))
    assert bool(contradictions(mine(text=overlapping))) is clash
    apart = rules(("{arch: cnn, goal: size}", setting(one)), ("{goal: latency}", setting(other)))
    assert not contradictions(mine(text=apart))


def test_an_exception_may_start_elsewhere_where_it_comes_later(mine):
    general = ("{arch: cnn}", "{set: {technique: svd, param: ratio, start: 0.3}}")
    special = ("{arch: cnn, goal: size}", "{set: {technique: svd, param: ratio, start: 0.5}}")
    assert not contradictions(mine(text=rules(general, special)))
    assert contradictions(mine(text=rules(special, general))) == {("r0", "r1")}


def test_a_users_setting_may_overrule_ours(mine):
    ours = next(
        r for r in load_knowledge().rules.values() for c in r.then if c.set is not None and c.set.start is not None
    )
    setting = next(c.set for c in ours.then if c.set is not None and c.set.start is not None)
    space = CATALOG[setting.technique].space()[setting.param]
    start = next(v for v in (space if isinstance(space, tuple) else (space.low, space.high)) if v != setting.start)
    text = f"{{set: {{technique: {setting.technique}, param: {setting.param}, start: {str(start).lower()}}}}}"
    assert not contradictions(mine(text=rules(("{}", text))))


def test_rules_that_say_the_same(mine):
    found = mine(text=rules(("{arch: cnn}", PREFER), ("{arch: cnn}", PREFER), ("{arch: rnn}", "{warn: all}")))
    assert {name for kind, name in found if kind == "duplicate"} == {"r1"}


def test_cases_exercise_the_rules_of_the_folder(mine, tmp_path):
    text = rules(("{arch: cnn}", PREFER), ("{arch: rnn}", "{warn: all}"))
    assert not {kind for kind, _ in mine(text=text)} & {"unexercised"}
    case = {"id": "c", "request": {"arch": "cnn"}, "rules": ["r0"], "fired": ["r9"]}
    found = mine(text=text, cases=[case])
    assert {name for kind, name in found if kind == "unexercised"} == {"r1"}
    assert found["unknown-rule", "r9"].place.endswith("cases/a.json")
    (tmp_path / "cases").rename(tmp_path / "elsewhere")
    assert not {name for kind, name in mine(text=text) if kind == "unexercised"}
    told = check_knowledge(tmp_path, tmp_path / "elsewhere").findings
    assert [f.id for f in told if f.kind == "unexercised"] == ["r1"]  # ours are not asked about


def test_cases_may_name_targets_tables_and_evidence():
    known, path = load_knowledge(), CASES / "x.json"
    request = {"arch": "transformer", "target": "rack.yaml"}
    facts = case_facts(known, path, {"id": "c", "request": request, "evidence": 3})
    assert (facts["target"], facts["evidence"]) == ("rack", 3)
    exported = {"id": "c", "request": {"model": "model.onnx", "task": "causal-lm"}, "table": "complex-core.json"}
    assert case_facts(known, path, exported)["subfamily"] == "complex"
    assert case_facts(known, path, exported)["model.file"] is True


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[", "cannot be read"),
        ("{}", "is not a list of cases"),
        ('[{"id": "c"}]', "is not a list of cases"),
        ('[{"id": "c", "request": 5}]', "is not a list of cases"),
        ('[{"id": "c", "request": {}, "rules": 5}]', "is not a list of cases"),
        ('[{"id": "c", "request": {}, "fired": [["r1"]]}]', "is not a list of cases"),
        ('[{"id": "c", "request": {}, "evidence": "x"}]', "is not a list of cases"),
        ('[{"id": "c", "request": {}, "table": 5}]', "is not a list of cases"),
    ],
)
def test_cases_that_cannot_be_read(tmp_path, text, problem):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=problem):
        read_cases(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        read_cases(tmp_path / "missing")


def test_a_case_whose_request_is_wrong_is_named(mine):
    with pytest.raises(InputError, match=r"a\.json: c: arch: cnnn: unknown name"):
        mine(text=rules(("{}", PREFER)), cases=[{"id": "c", "request": {"arch": "cnnn"}}])


CLAIM = (
    "claims:\n- {{id: a, technique: svd, params: {{ratio: 0.5}}, arch: cnn, model: m, protocol: {}, metric: accuracy,"
    " baseline: 76.1, drop: 1, unit: pp, source: me, status: paper}}\n"
    "- {{id: b, technique: svd, params: {{ratio: 0.6}}, arch: cnn, model: {}, protocol: {}, metric: accuracy,"
    " baseline: {}, drop: 1, unit: pp, source: me, status: paper{}}}\n"
)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (("ImageNet top-1", "m", "ImageNet top-1", 76.2, ""), set()),
        (("ImageNet top-1", "m", "ImageNet top-1", 60, ""), {("mixed-protocols", "b")}),
        (("ImageNet top-1", "m", "ImageNet top-1", 60, ", estimate: false"), set()),
        (("ImageNet top-1", "n", "ImageNet top-1", 60, ""), set()),
        (("ImageNet top-1", "n", "imagenet  Top 1", 60, ""), {("mixed-protocols", "b")}),
        (("not named", "n", "ImageNet top-1", 60, ""), {("no-protocol", "a")}),
    ],
)
def test_figures_that_cannot_share_a_curve(mine, said, found):
    assert {key for key in mine("claims", CLAIM.format(*said)) if key[1] in ("a", "b")} == found


def test_a_figure_without_an_origin(mine):
    text = (CASES / "targets" / "rack.yaml").read_text()
    assert not mine("targets", text)
    found = mine("targets", text.replace("{value: 40, source: estimated}", "{value: 40, source: somebody}"))
    assert found["no-origin", "rack"].text == "bandwidth_gbps: 'somebody' is no origin"


def test_a_model_that_does_not_add_up(mine):
    text = (ROOT / "knowledge" / "templates" / "model.yaml").read_text()
    assert not mine("models", text)
    found = mine("models", text.replace("parameters: 22713986", "parameters: 33000000"))
    assert "22,713,986" in found["size", "my-model"].text


def test_techniques_that_no_rule_reaches(mine, tmp_path):
    report = check_knowledge()
    assert not [f for f in report.findings if f.kind == "unreached"]
    for path in (ROOT / "knowledge" / "rules").glob("*.yaml"):  # each of ours replaced by one about nothing
        names = [name for name, place in load_knowledge().origin.items() if place.startswith(str(path))]
        said = "".join(RULE.format(name.partition("/")[2], "{}", "{warn: all}") for name in names)
        (tmp_path / "rules").mkdir(exist_ok=True)
        (tmp_path / "rules" / path.name).write_text(f"rules:\n{said}")
    found = mine(text=rules(("{}", PREFER), ("{}", "{before: {first: svd, then: quantize}}")))
    assert {name for kind, name in found if kind == "unreached"} == set(CATALOG) - {"channels"}


def test_a_folder_that_is_not_read_is_told(mine, tmp_path):
    (tmp_path / "rule").mkdir()
    (tmp_path / "notes").mkdir()
    found = mine(text=rules(("{}", PREFER)))
    assert {name for kind, name in found if kind == "unread"} == {"rule"}
    assert "rules/" in found["unread", "rule"].text


# -- templates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_template_loads_passes_the_check_and_names_every_field_that_is_required(tmp_path, kind):
    path = write_template(kind, "of-mine", tmp_path)
    assert path == tmp_path / FOLDERS[kind] / "of-mine.yaml"
    entry = getattr(load_knowledge(tmp_path), FOLDERS[kind])["of-mine"]
    assert f"my-{kind}" not in path.read_text()
    report = check_knowledge(tmp_path)
    assert not [f for f in report.findings if f.place.startswith(str(tmp_path))]
    fields = {info.alias or name for name, info in type(entry).model_fields.items() if info.is_required()}
    assert all(f"{name}:" in path.read_text() for name in fields)


@pytest.mark.parametrize("kind", FOLDERS)
def test_nothing_is_overwritten_or_replaced(tmp_path, kind):
    path = write_template(kind, out=tmp_path)
    path.write_text(path.read_text() + "# mine\n")
    with pytest.raises(InputError, match="is there already"):
        write_template(kind, out=tmp_path)
    assert path.read_text().endswith("# mine\n")
    path.rename(path.with_name("other.yaml"))
    with pytest.raises(InputError, match=r"other\.yaml:"):
        write_template(kind, out=tmp_path)
    ours = next(iter(getattr(load_knowledge(), FOLDERS[kind])))
    with pytest.raises(InputError, match=ours):
        write_template(kind, ours, tmp_path)
    with pytest.raises(InputError, match="is no id"):
        write_template(kind, "No Id", tmp_path)


def test_a_template_goes_into_the_users_own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVISOR_CONFIG", str(tmp_path / "own"))
    shown = advisor("knowledge", "new", "preset", "--json")
    assert json.loads(shown.stdout) == {
        "schema": "advisor.new/1",
        "kind": "preset",
        "id": "my-preset",
        "file": f"{tmp_path}/own/presets/my-preset.yaml",
    }
    assert "my-preset" in load_knowledge().presets
    (tmp_path / "file").write_text("")
    refused = advisor("knowledge", "new", "rule", "--out", tmp_path / "file")
    assert refused.exit_code == 2
    assert refused.stdout == ""


# -- the command line ------------------------------------------------------------------------------


def test_the_command_says_what_is_wrong_and_where(tmp_path):
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "a.yaml").write_text(rules(("{arch: cnn, subfamily: encoder}", PREFER)))
    shown = advisor("knowledge", "check", "--knowledge", tmp_path)
    assert shown.exit_code == 1
    assert "finding r0" in shown.stdout
    assert "a.yaml:2" in shown.stdout
    told = json.loads(advisor("knowledge", "check", "--knowledge", tmp_path, "--json").stdout)
    assert next(iter(told)) == "schema"
    assert {"kind", "id", "place", "text", "remedy", "others", "note"} == set(told["findings"][0])
    assert len(advisor("knowledge", "check", "--notes").stdout) > len(advisor("knowledge", "check").stdout)
    (tmp_path / "rules" / "a.yaml").write_text("rules: [")
    shown = advisor("knowledge", "check", "--knowledge", tmp_path)
    assert (shown.exit_code, shown.stdout) == (2, "")


def test_facts_are_all_listed():
    rows = json.loads(advisor("knowledge", "facts", "--json").stdout)["facts"]
    assert [row["fact"] for row in rows] == list(VOCABULARY)
    listed = advisor("knowledge", "facts").stdout
    assert all(name in listed for name in VOCABULARY)

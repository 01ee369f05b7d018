"""Loading knowledge: ours is sound, a user's folder is laid over it, mistakes are named with file, line and remedy."""

from pathlib import Path

import pytest
import yaml

from knowledge.conditions import VOCABULARY, ConditionError, check, fill, holds, reads
from knowledge.load import KINDS, load_knowledge, load_target
from knowledge.schema import STATUSES, Setting
from knowledge.techniques.base import Choices, Range
from knowledge.techniques.catalog import CATALOG
from knowledge.values import InputError

KNOWN = load_knowledge()
RULE = "- id: mine\n  when: {arch: cnn}\n  then: [{prefer: {technique: channels}}]\n  text: Because.\n  source: me\n"


def write(folder: Path, kind: str, text: str, name: str = "a.yaml") -> Path:
    (folder / kind).mkdir(exist_ok=True)
    path = folder / kind / name
    path.write_text(text)
    return path


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        load_knowledge(folder)
    line = str(error.value)
    assert "\n" not in line
    return line


def test_ours_loads_and_covers_what_is_promised():
    assert {"mobile", "edge", "server-cpu", "server-gpu", "a100", "browser"} <= set(KNOWN.targets)
    assert len(KNOWN.rules) >= 50
    assert len(KNOWN.claims) >= 40
    assert {kind: sum(k.startswith(kind) for k in KNOWN.origin) for kind in KINDS} == {
        "rules": len(KNOWN.rules), "claims": len(KNOWN.claims), "targets": len(KNOWN.targets)
    }  # fmt: skip


def test_every_entry_says_where_it_comes_from():
    assert all(rule.source and rule.text and rule.tree for rule in KNOWN.rules.values())
    assert all(claim.source and claim.status in STATUSES for claim in KNOWN.claims.values())
    for target in KNOWN.targets.values():
        figures = [v for v in vars(target).values() if hasattr(v, "source")]
        assert len(figures) >= 6
        for figure in figures:
            assert (
                figure.source.startswith(("https://", "measured: ", "Model Compression Techniques, "))
                or figure.source == "estimated"
            )


def test_every_lossy_technique_but_svd_has_a_figure():
    without = {t for t, c in CATALOG.items() if not c.lossless and c.phase is not None} - set(KNOWN.claims_by_technique)
    assert without == {"svd"}


def test_yaml_ships_with_the_package():
    declared = Path(__file__).parent.parent.parent / "pyproject.toml"
    assert 'knowledge = ["**/*.yaml"]' in declared.read_text()


def test_sentences_end_and_fill():
    for rule in KNOWN.rules.values():
        assert rule.text.endswith("."), rule.id
        assert not rule.departs or rule.departs.endswith("."), rule.id
    assert fill(
        "{arch} on {target}: {embedding_share}", {"arch": "cnn", "target": "edge", "embedding_share": 0.532}
    ) == ("cnn on edge: 53 %")
    assert fill("{arch.__class__} {0}", {"arch": "cnn"}) == "unknown unknown"


def test_a_user_entry_replaces_ours_and_others_stay(tmp_path):
    write(tmp_path, "rules", f"rules:\n{RULE.replace('mine', 'cnn-secondary-int8')}")
    merged = load_knowledge(tmp_path)
    assert merged.rules["cnn-secondary-int8"].source == "me"
    assert len(merged.rules) == len(KNOWN.rules)
    assert merged.origin["rules/cnn-secondary-int8"].startswith(str(tmp_path))


def test_a_user_target_from_a_file_or_a_folder(tmp_path):
    text = (Path(__file__).parent.parent / "cases" / "targets" / "rack.yaml").read_text()
    path = write(tmp_path, "targets", text, "rack.yaml")
    assert load_target(path).target_class == "on-premises"
    assert load_knowledge(tmp_path).target("rack").id == "rack"
    assert KNOWN.target(str(path)).id == "rack"


@pytest.mark.parametrize(
    ("when", "field", "remedy"),
    [
        ("{architecture: cnn}", "when.architecture", "arch"),
        ("{arch: cnnn}", "when.arch", "transformer"),
        ("{max_drop_pp: {less: 2}}", "when.max_drop_pp", "known: lt"),
        ("{max_drop_pp: {lt: two}}", "when.max_drop_pp", "points of accuracy"),
        ("{arch: {lt: cnn}}", "when.arch", "eq, ne"),
        ("{limits: 1}", "when.limits", ""),
        ("{any: {arch: cnn}}", "when.any", "any: [{"),
        ("{any: [{archh: cnn}]}", "when.any[0].archh", "arch"),
    ],
)
def test_conditions_that_cannot_be_understood(tmp_path, when, field, remedy):
    path = write(tmp_path, "rules", f"rules:\n{RULE.replace('{arch: cnn}', when)}")
    line = refused(tmp_path)
    assert line.startswith((f"{path}:3: mine: {field}:", f"{path}:2: mine: {field}:"))
    assert remedy in line


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  source: me\n", "", "source: is missing"),
        ("  text: Because.\n", "  text: Because {archh}.\n", "{archh} is not a fact"),
        ("technique: channels", "technique: chanels", "did you mean channels"),
        ("technique: channels", "technique: channels, family: prune", "exactly one"),
        ("technique: channels", "technique: channels, weight: 9", "less than or equal to 4"),
        ("prefer:", "perfer:", "unknown field; did you mean prefer"),
        ("id: mine", "id: Not An Id", "pattern"),
        ("then: [{prefer: {technique: channels}}]", "then: [{refuse: {chain: [quantize]}}]", "not a chain"),
        (
            "then: [{prefer: {technique: channels}}]",
            "then: [{set: {technique: svd, param: rank, low: 1}}]",
            "no parameter",
        ),
        (
            "then: [{prefer: {technique: channels}}]",
            "then: [{set: {technique: svd, param: ratio, value: 2}}]",
            "less than 1",
        ),
        ("then: [{prefer: {technique: channels}}]", "then: [{warn: all, avoid: {family: prune}}]", "exactly one"),
        ("- id: mine", "- mine", ""),
    ],
)
def test_rules_that_cannot_be_understood(tmp_path, old, new, expected):
    path = write(tmp_path, "rules", f"rules:\n{RULE.replace(old, new)}")
    line = refused(tmp_path)
    assert str(path) in line
    assert expected in line


def test_two_entries_with_one_id(tmp_path):
    write(tmp_path, "rules", f"rules:\n{RULE}", "a.yaml")
    second = write(tmp_path, "rules", f"rules:\n{RULE}", "b.yaml")
    line = refused(tmp_path)
    assert "mine" in line
    assert "a.yaml" in line
    assert str(second) in line


def test_an_order_that_runs_in_a_circle(tmp_path):
    circle = RULE.replace("{prefer: {technique: channels}}", "{before: {first: quantize, then: distill}}")
    path = write(tmp_path, "rules", f"rules:\n{circle}")
    line = refused(tmp_path)
    assert str(path) in line
    assert "mine" in line
    assert "circle" in line


def test_an_order_within_one_phase_may_not_contradict_itself(tmp_path):
    one = "- id: {}\n  then: [{{before: {{first: {}, then: {}}}}}]\n  text: So.\n  source: me\n"
    write(
        tmp_path,
        "rules",
        "rules:\n" + one.format("a", "channels", "layer_drop") + one.format("b", "layer_drop", "channels"),
    )
    assert "circle" in refused(tmp_path)


CLAIM = (
    "claims:\n- {id: c, technique: channels, params: {ratio: 0.5}, arch: cnn, model: m, protocol: p, metric: accuracy,"
    " drop: 1, unit: pp, source: me, status: reported}\n"
)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (", source: me", "", "source: is missing"),
        (", status: reported", "", "status: is missing"),
        ("status: reported", "status: certain", "measured"),
        ("unit: pp", 'unit: "%"', "accuracy is lost in pp"),
        ("ratio: 0.5", "ratio: 5", "less than 1"),
        ("technique: channels", "technique: chanels", "did you mean channels"),
        ("claims:", "claim:", "unknown field"),
    ],
)
def test_claims_that_cannot_be_understood(tmp_path, old, new, expected):
    assert "id: c" in CLAIM
    path = write(tmp_path, "claims", CLAIM.replace(old, new))
    line = refused(tmp_path)
    assert line.startswith(str(path))
    assert expected in line


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("{value: 300, source: estimated}", "{value: 300}", "gflops_fp32.source"),
        ("{value: 300, source: estimated}", "{value: -1, source: estimated}", "gflops_fp32.value"),
        ("class: on-premises", "class: cellar", "class"),
        ("accelerates: {}", "accelerates: {int4: x}", "accelerates"),
    ],
)
def test_targets_that_cannot_be_understood(tmp_path, old, new, expected):
    text = (Path(__file__).parent.parent / "cases" / "targets" / "rack.yaml").read_text()
    write(tmp_path, "targets", text.replace(old, new))
    assert expected in refused(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("rules: [", "not YAML"), ("- a", "not a mapping"), ("rules: 3", "not a list"), ("", "not a mapping")],
)
def test_files_that_cannot_be_read(tmp_path, text, expected):
    write(tmp_path, "rules", text)
    assert expected in refused(tmp_path)


def test_folders_that_hold_nothing(tmp_path):
    assert "holds none of" in refused(tmp_path)
    assert "no such folder" in refused(tmp_path / "missing")


def test_unknown_target_names_the_nearest():
    with pytest.raises(InputError, match="did you mean mobile"):
        KNOWN.target("mobil")


def test_yaml_cannot_run_code(tmp_path):
    write(tmp_path, "rules", "rules: !!python/object/apply:os.system ['true']")
    assert "not YAML" in refused(tmp_path)
    with pytest.raises(yaml.YAMLError):
        yaml.load("!!python/name:os.system", Loader=yaml.CSafeLoader)


# -- conditions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "facts", "expected"),
    [
        ({}, {}, True),
        ({"arch": "cnn"}, {"arch": "cnn"}, True),
        ({"arch": ["cnn", "rnn"]}, {"arch": "moe"}, False),
        ({"max_drop_pp": {"ge": 2, "le": 5}}, {"max_drop_pp": 5.0}, True),
        ({"max_drop_pp": {"ge": 2, "le": 5}}, {"max_drop_pp": 5.1}, False),
        ({"max_drop_pp": {"lt": 2}}, {"max_drop_pp": None}, False),
        ({"arch": {"ne": "cnn"}}, {}, False),
        ({"arch": {"not": ["cnn", "rnn"]}}, {"arch": "moe"}, True),
        ({"target.accelerates": "fp16"}, {"target.accelerates": ("fp16", "2:4")}, True),
        ({"target.accelerates": {"not": "fp16"}}, {"target.accelerates": ()}, True),
        ({"target.accelerates": {"not": ["2:4", "fp16"]}}, {"target.accelerates": ("fp16",)}, False),
        ({"limits": False}, {"limits": False}, True),
        ({"any": [{"arch": "cnn"}, {"goal": "size"}]}, {"arch": "rnn", "goal": "size"}, True),
        ({"arch": "rnn", "any": [{"goal": "size"}]}, {"arch": "rnn", "goal": "latency"}, False),
    ],
)
def test_conditions(when, facts, expected):
    check(when)
    assert holds(when, facts) is expected


def test_what_a_condition_reads():
    assert reads({"arch": "cnn", "any": [{"goal": "size"}, {"limits": True}]}) == {"arch", "goal", "limits"}
    for rule in KNOWN.rules.values():
        assert reads(rule.when) <= set(VOCABULARY)


def test_an_unknown_fact_is_refused():
    with pytest.raises(ConditionError) as error:
        check({"ach": "cnn"})
    assert "arch" in error.value.remedy


def test_settings_narrow_and_never_widen():
    space = Range(0.2, 0.9, step=0.1)
    assert Setting(technique="svd", param="ratio", high=0.6).narrow(space) == Range(0.2, 0.6, step=0.1)
    assert Setting(technique="svd", param="ratio", low=0.1).narrow(space) == space
    assert Setting(technique="svd", param="ratio", value=0.5).narrow(space) == Choices(0.5)

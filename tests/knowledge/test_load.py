"""Loading knowledge: ours is sound, a user's folder is laid over it, mistakes are named with file, line and remedy."""

import re
import time
import tomllib
from pathlib import Path

import pytest
import yaml

from knowledge.conditions import VOCABULARY, ConditionError, check, fill, holds, reads
from knowledge.load import KINDS, load_knowledge, load_target
from knowledge.places import config_folder
from knowledge.schema import STATUSES, Setting
from knowledge.techniques.base import Choices, Range
from knowledge.typical import typical
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
    for kind in KINDS:
        assert sum(k.startswith(kind) for k in KNOWN.origin) == len(getattr(KNOWN, kind))
    assert {"conservative", "balanced", "aggressive"} <= set(KNOWN.presets)
    assert {"bert-base", "resnet-50", "lstm-2x512", "mixtral-small"} <= set(KNOWN.models)


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


def test_every_entry_names_the_line_where_it_begins():
    for name, place in KNOWN.origin.items():
        file, _, line = place.rpartition(":")
        kind, _, key = name.partition("/")
        lines = Path(file).read_text().splitlines()
        first = lines[int(line) - 1]
        if kind in ("rules", "claims"):
            assert re.match(rf"\s*- \{{?id: {re.escape(key)}\b", first), (name, first)
        else:
            assert not first.startswith("#")


def test_yaml_ships_with_the_package():
    declared = Path(__file__).parent.parent.parent / "pyproject.toml"
    packaged = tomllib.loads(declared.read_text())["tool"]["setuptools"]["package-data"]["knowledge"]
    assert "**/*.yaml" in packaged


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


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """The user's own folder of knowledge, empty."""
    monkeypatch.setenv("ADVISOR_CONFIG", str(tmp_path / "config"))
    config_folder().mkdir()
    return config_folder()


def test_the_users_own_folder_lies_over_ours_and_a_named_one_over_both(tmp_path, own_folder):
    named = tmp_path / "named"
    named.mkdir()
    replaced = RULE.replace("mine", "cnn-secondary-int8")
    write(own_folder, "rules", "rules:\n" + replaced.replace("source: me", "source: own") + RULE)
    assert load_knowledge().rules["cnn-secondary-int8"].source == "own"
    assert load_knowledge().rules["mine"].source == "me"
    write(named, "rules", f"rules:\n{replaced.replace('source: me', 'source: named')}")
    merged = load_knowledge(named)
    assert merged.rules["cnn-secondary-int8"].source == "named"
    assert merged.origin["rules/cnn-secondary-int8"] == f"{named}/rules/a.yaml:2"
    assert merged.rules["mine"].source == "me"
    assert list(merged.rules) == [*KNOWN.rules, "mine"]


def test_an_own_folder_may_be_empty_missing_or_the_named_one(own_folder):
    assert load_knowledge() == KNOWN
    write(own_folder, "rules", f"rules:\n{RULE}")
    assert load_knowledge(own_folder).origin["rules/mine"] == f"{own_folder}/rules/a.yaml:2"
    (own_folder / "rules" / "a.yaml").unlink()
    (own_folder / "rules").rmdir()
    own_folder.rmdir()
    assert load_knowledge() == KNOWN


def test_a_mistake_in_the_users_own_folder_is_told_everywhere(own_folder):
    path = write(own_folder, "claims", "claims: 3")
    with pytest.raises(InputError, match="is not a list") as error:
        load_knowledge()
    assert str(error.value).startswith(f"{path}:1: claims: 3: ")


MODEL = """id: mine
shape: resnet
info: {family: cnn, task: image-classification}
default_for: [cnn]
sizes: {width: 32, stages: [1, 1, 1, 1], classes: 10, image: 64, channels: 3}
parameters: 1
source: me
"""


def test_a_users_model_stands_in_where_it_says_so(tmp_path):
    write(tmp_path, "models", MODEL)
    assert typical("cnn", knowledge=tmp_path).info.name == "mine"
    assert typical("cnn", "image-classification", knowledge=tmp_path).info.name == "mine"
    assert typical("rnn", knowledge=tmp_path).info.name == "lstm-2x512"
    assert typical("cnn").info.name == "resnet-50"
    write(tmp_path, "models", MODEL.replace("default_for: [cnn]\n", ""))
    assert typical("cnn", knowledge=tmp_path).info.name == "resnet-50"
    write(tmp_path, "models", MODEL.replace("id: mine", "id: resnet-50"))
    assert typical("cnn", knowledge=tmp_path).info.hidden_size == 32


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        ("width: 32, ", "", 5, "sizes: width missing; a resnet has width, stages"),
        ("width: 32", "width: 32, depth: 3", 5, "sizes.depth: 3: unknown size"),
        ("width: 32", "width: 0", 5, "sizes.width: 0: is not a count"),
        ("[1, 1, 1, 1]", "4", 5, "sizes.stages: 4: is not a list of counts"),
        ("family: cnn", "family: gnn", 3, "info: names no family and task; families: transformer, cnn"),
        ("task: image-classification", "job: x", 3, "info.job: unknown field"),
        ("[cnn]", "[gnn]", 4, "default_for[0]: gnn: input should be"),
        ("shape: resnet", "shape: vgg", 2, "shape: vgg: input should be"),
        ("source: me\n", "", 1, "source: is missing; say where this comes from"),
        ("parameters: 1", "parameters: none", 6, "parameters: none: input should be a valid integer"),
    ],
)
def test_models_that_cannot_be_understood(tmp_path, old, new, line, expected):
    assert old in MODEL
    path = write(tmp_path, "models", MODEL.replace(old, new))
    assert refused(tmp_path).startswith(f"{path}:{line}: mine: {expected}")


PRESET = """id: mine
about: A preset.
source: me
max_drop: 2pp
params:
  svd: {ratio: 0.5}
  distill: {compression: 3.0, epochs: 5}
"""


def test_a_preset_is_a_budget_and_a_rule_that_starts_parameters(tmp_path):
    write(tmp_path, "presets", PRESET)
    preset = load_knowledge(tmp_path).preset("mine")
    starts = {(c.set.technique, c.set.param): c.set.start for c in preset.as_rule().then}
    assert starts == {("svd", "ratio"): 0.5, ("distill", "compression"): 3.0, ("distill", "epochs"): 5}
    assert holds(preset.as_rule().when, {})
    with pytest.raises(InputError, match="preset: min: unknown preset; did you mean mine"):
        load_knowledge(tmp_path).preset("min")


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        ("svd:", "svdd:", 6, "params.svdd: svdd: unknown technique; did you mean svd"),
        ("ratio:", "ratioo:", 6, "params.svd.ratioo: 0.5: unknown parameter; did you mean ratio?"),
        ("ratio: 0.5", "ratio: 5", 6, "params.svd.ratio: 5: input should be less than 1"),
        ("2pp", "two", 4, "max_drop: two: string should match pattern"),
        ("source: me\n", "", 1, "source: is missing"),
        ("params:", "parameters:", 5, "parameters: {"),
    ],
)
def test_presets_that_cannot_be_understood(tmp_path, old, new, line, expected):
    assert old in PRESET
    path = write(tmp_path, "presets", PRESET.replace(old, new, 1))
    assert refused(tmp_path).startswith(f"{path}:{line}: mine: {expected}")


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
        ("{any: [{arch: cnn}, {any: [{limits: 1}]}]}", "when.any[1].any[0].limits", ""),
        ("{arch: []}", "when.arch", "a list of values"),
        ("{batch: {lt: [1, 2]}}", "when.batch", "use in or not"),
        ("{batch: .nan}", "when.batch", "samples per request"),
        ("{arch: }", "when.arch", "architecture family"),
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
        ("- id: mine", "- mine", ":3: when: {arch: cnn}: is not YAML"),
        (
            "then: [{prefer: {technique: channels}}]",
            "then: [{set: {technique: svd, param: ratio, low: 0.8, high: 0.2}}]",
            "then[0].set.low: 0.8: nothing is left of svd.ratio; search tries",
        ),
        ("then: [{prefer: {technique: channels}}]", "then: [{set: {technique: svd, param: ratio}}]", "sets nothing"),
        (
            "then: [{prefer: {technique: channels}}]",
            "then: [{prefer: {compression: [10, 4]}}]",
            "then[0].prefer.compression: [10.0, 4.0]: ends below where it begins",
        ),
        ("source: me", "source: ' '", "source: is empty; say where this comes from"),
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


ORDER = "- id: {}\n  when: {}\n  then: [{{before: {{first: {}, then: {}}}}}]\n  text: So.\n  source: me\n"


def test_an_order_within_one_phase_may_not_contradict_itself(tmp_path):
    one, other = ORDER.format("a", "{}", "channels", "layer_drop"), ORDER.format("b", "{}", "layer_drop", "channels")
    path = write(tmp_path, "rules", "rules:\n" + one + other)
    line = refused(tmp_path)
    assert line.startswith(f"{path}:")
    assert f"circle, with {path}:" in line
    assert "layer_drop" in line
    assert "channels" in line


def test_orders_that_never_meet_may_differ(tmp_path):
    def rules(first, then):
        one, other = ORDER.format("a", first, "channels", "layer_drop"), ORDER.format("b", then, "layer_drop", "width")
        return "rules:\n" + one + other + ORDER.format("c", "{limits: true}", "width", "channels")

    write(tmp_path, "rules", rules("{arch: cnn}", "{arch: [rnn, moe]}"))
    assert "a" in load_knowledge(tmp_path).rules
    write(tmp_path, "rules", rules("{arch: cnn}", "{arch: [rnn, cnn]}"))
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
    [
        ("rules:\n- id: [\n", "3: is not YAML"),
        ("rules:\n- id: a: b", "2: - id: a: b: is not YAML (mapping values are not allowed"),
        ("- a", "1: is not a mapping; start it with `rules:`"),
        ("tree: x\nrules: 3", "2: rules: 3: is not a list; write `rules:`"),
        ("", "1: is not a mapping"),
        ("rules:\n\n- mine", "3: rules[0]: mine: is not a mapping; start it with `id:`"),
        ("rule:\n- id: a", "1: rule: "),
        ("rules: []\nrules: []", "2: rules: is given twice; keep one of them"),
        ("rules:\n- {id: a, text: x,\n   text: y}", "3: text: is given twice"),
        ("rules: " + 9999 * "[", "1: is nested too deeply"),
        ("rules: " + 99 * "[" + 99 * "]", "1: is nested too deeply"),
        ("rules:\n" + "".join(f"{' ' * n}- \n" for n in range(99)), "is nested too deeply"),
        ("rules: [{when: 2024-13-45}]", "1: is not YAML (month must be in 1..12"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, text, expected):
    path = write(tmp_path, "rules", text)
    line = refused(tmp_path)
    assert line.startswith(f"{path}:")
    assert expected in line


def test_files_that_are_no_text_or_no_files(tmp_path):
    path = write(tmp_path, "rules", "")
    path.write_bytes(b"rules:\n- id: \xff")
    assert refused(tmp_path).startswith(f"{path}:2: is not UTF-8; save the file as UTF-8")
    path.unlink()
    path.mkdir()
    assert refused(tmp_path) == f"rules: {path}: cannot be read (Is a directory); make it readable, or move it away"
    path.rmdir()
    (tmp_path / "targets").mkdir()
    (tmp_path / "rules").rmdir()
    (tmp_path / "rules").write_text("")
    assert "rules: cannot be read (Not a directory)" in refused(tmp_path)


def test_brackets_in_sentences_are_no_nesting(tmp_path):
    text = RULE.replace("Because.", f"'{200 * '['} is a sentence.'")
    write(tmp_path, "rules", f"rules:\n{text}")
    assert load_knowledge(tmp_path).rules["mine"].text.startswith("[[[")


def test_names_that_editors_leave_behind_are_not_read(tmp_path):
    write(tmp_path, "rules", f"rules:\n{RULE}")
    write(tmp_path, "rules", "rules: [", ".#a.yaml")
    write(tmp_path, "rules", "rules: [", "a.yaml~")
    assert "mine" in load_knowledge(tmp_path).rules


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


# -- speed -----------------------------------------------------------------------------------------


def test_loading_again_is_fast(tmp_path, monkeypatch):
    """200 rules and 200 claims more than ours: 25 ms on an idle machine."""
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path / "cache"))
    many = "".join(RULE.replace("mine", f"mine-{n}") for n in range(200))
    write(tmp_path, "rules", f"rules:\n{many}")
    claim = CLAIM.removeprefix("claims:\n")
    write(tmp_path, "claims", "claims:\n" + "".join(claim.replace("id: c", f"id: c-{n}") for n in range(200)))
    assert len(load_knowledge(tmp_path).claims) == len(KNOWN.claims) + 200
    seconds = []
    for _ in range(5):
        started = time.process_time()
        load_knowledge(tmp_path)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.05, seconds

"""Entries that cannot be understood: one line with file, line, entry, field, value and what would help."""

from pathlib import Path

import pytest
from own_entries import CLAIM, MODEL, PRESET, RULE, refused, write


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
        (
            "then: [{prefer: {technique: channels}}]",
            "then: [{prefer: {compression: [.nan, 4]}}]",
            "then[0].prefer.compression: [nan, 4.0]: ends below where it begins",
        ),
        (
            "then: [{prefer: {technique: channels}}]",
            "then: [{prefer: {chain: [quantize], exclude: [svd]}}]",
            "then[0].prefer.exclude: ['svd']: a selector of chains has none",
        ),
        (
            "then: [{prefer: {technique: channels}}]",
            "then: [{require: {technique: finetune, after: {chain: [quantize]}}}]",
            "then[0].require.after: names chains; name a technique, a family or a need",
        ),
        (
            "then: [{prefer: {technique: channels}}]",
            "then: [{set: {technique: svd, param: ratio, low: .nan}}]",
            "then[0].set.low: nan: nothing is left of svd.ratio",
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

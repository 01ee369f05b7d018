"""Loading knowledge: ours is sound, a user's folder is laid over it, and what counts as an entry."""

import re
import time
import tomllib
from pathlib import Path

import pytest
from own_entries import CLAIM, MODEL, PRESET, RULE, write

from knowledge.conditions import fill, holds
from knowledge.load import KINDS, load_knowledge, load_target
from knowledge.places import config_folder
from knowledge.reading import checked
from knowledge.schema import STATUSES
from knowledge.typical import typical
from knowledge.values import InputError

KNOWN = load_knowledge()


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


def test_a_preset_is_a_budget_and_a_rule_that_starts_parameters(tmp_path):
    write(tmp_path, "presets", PRESET)
    preset = load_knowledge(tmp_path).preset("mine")
    starts = {(c.set.technique, c.set.param): c.set.start for c in preset.as_rule().then}
    assert starts == {("svd", "ratio"): 0.5, ("distill", "compression"): 3.0, ("distill", "epochs"): 5}
    assert holds(preset.as_rule().when, {})
    with pytest.raises(InputError, match="preset: min: unknown preset; did you mean mine"):
        load_knowledge(tmp_path).preset("min")


def test_a_user_target_from_a_file_or_a_folder(tmp_path):
    text = (Path(__file__).parent.parent / "cases" / "targets" / "rack.yaml").read_text()
    path = write(tmp_path, "targets", text, "rack.yaml")
    assert load_target(path).target_class == "on-premises"
    assert load_knowledge(tmp_path).target("rack").id == "rack"
    assert KNOWN.target(str(path)).id == "rack"


def test_brackets_in_sentences_are_no_nesting(tmp_path):
    text = RULE.replace("Because.", f"'{200 * '['} is a sentence.'")
    write(tmp_path, "rules", f"rules:\n{text}")
    assert load_knowledge(tmp_path).rules["mine"].text.startswith("[[[")


def test_names_that_editors_leave_behind_are_not_read(tmp_path):
    write(tmp_path, "rules", f"rules:\n{RULE}")
    write(tmp_path, "rules", "rules: [", ".#a.yaml")
    write(tmp_path, "rules", "rules: [", "a.yaml~")
    assert "mine" in load_knowledge(tmp_path).rules


def test_unknown_target_names_the_nearest():
    with pytest.raises(InputError, match="did you mean mobile"):
        KNOWN.target("mobil")


# -- speed -----------------------------------------------------------------------------------------


def test_loading_again_is_fast(tmp_path, monkeypatch):
    """200 rules and 200 claims more than ours."""
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path / "cache"))
    many = "".join(RULE.replace("mine", f"mine-{n}") for n in range(200))
    write(tmp_path, "rules", f"rules:\n{many}")
    claim = CLAIM.removeprefix("claims:\n")
    write(tmp_path, "claims", "claims:\n" + "".join(claim.replace("id: c", f"id: c-{n}") for n in range(200)))
    seconds = []
    for _ in range(6):
        checked.cache_clear()  # as in a new process: only what was written to disk helps
        started = time.process_time()
        assert len(load_knowledge(tmp_path).claims) == len(KNOWN.claims) + 200
        seconds.append(time.process_time() - started)
    assert 3 * min(seconds) < seconds[0], seconds  # a fifth of it, measured

"""Lists of the knowledge: each filter leaves what it says, every entry says where it stands, names are checked."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import cli
from advisor import listing
from advisor.profile import profile_source
from knowledge.json_schema import condition_schema, file_schema
from knowledge.load import KINDS, load_knowledge
from knowledge.techniques.catalog import CATALOG
from knowledge.values import InputError

KNOWN = load_knowledge()
MINE = "rules:\n- {id: mine, when: {arch: rnn}, then: [{warn: all}], text: So., source: me}\n"


def advisor(*args):
    return CliRunner().invoke(cli.main, [str(a) for a in args])


@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_is_listed_with_its_place(kind, tmp_path):
    shown = advisor("knowledge", kind)
    told = json.loads(advisor("knowledge", kind, "--json").stdout)
    assert told["schema"] == f"advisor.{kind}/1"
    assert [row["id"] for row in told[kind]] == list(getattr(KNOWN, kind))
    for row in told[kind]:
        assert row["id"] in shown.stdout
        file, _, line = row["place"].rpartition(":")
        assert Path(file).is_file()
        assert int(line) > 0
    assert max(map(len, shown.stdout.splitlines())) <= 100 or "https://" in shown.stdout


def test_a_users_entries_are_listed_too(tmp_path):
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "a.yaml").write_text(MINE)
    rows = json.loads(advisor("knowledge", "rules", "--knowledge", tmp_path, "--json").stdout)["rules"]
    assert rows[-1]["place"] == f"{tmp_path}/rules/a.yaml:2"
    assert rows[-1]["says"] == {"when": "arch is rnn", "then": ["warn of any chain"]}


@pytest.mark.parametrize("command", [("recommend",), ("knowledge", "rules")])
def test_help_names_every_kind_that_a_users_folder_may_hold(command):
    shown = " ".join(advisor(*command, "--help").output.split())
    said = shown.partition("--knowledge DIR ")[2].partition(", laid over ours.")[0]
    assert all(f"{kind}/" in said for kind in KINDS), said


def test_rules_by_technique_are_those_that_speak_of_it():
    for technique in CATALOG:
        rows = listing.rules(KNOWN, technique=technique)
        assert rows, technique
        named = {r.id for r in KNOWN.rules.values() if f"'{technique}'" in str(r.model_dump(mode="json")["then"])}
        excluded = {r.id for r in KNOWN.rules.values() if "exclude" in str(r.model_dump(exclude_defaults=True)["then"])}
        assert named - excluded <= {row["id"] for row in rows}


def test_rules_by_architecture_are_those_that_can_fire():
    cnn = {row["id"] for row in listing.rules(KNOWN, arch="cnn")}
    assert "cnn-primary-channels" in cnn
    assert "rnn-primary-quantization" not in cnn
    assert {r.id for r in KNOWN.rules.values() if not r.when} <= cnn
    everywhere = {arch: {row["id"] for row in listing.rules(KNOWN, arch=arch)} for arch in listing.ARCHITECTURES}
    assert set().union(*everywhere.values()) == set(KNOWN.rules)


def test_rules_by_fact_tree_and_source():
    assert all("target.class" in str(row["when"]) for row in listing.rules(KNOWN, fact="target.class"))
    trees = {row["tree"] for row in listing.rules(KNOWN, tree="framework")}
    assert trees == {"Compression Decision Framework"}
    assert all("arXiv" in row["source"] for row in listing.rules(KNOWN, source="arxiv"))
    both = listing.rules(KNOWN, technique="channels", arch="cnn", tree="framework")
    assert 0 < len(both) < len(listing.rules(KNOWN, technique="channels"))


def test_claims_by_technique_architecture_status_and_source():
    rows = listing.claims(KNOWN, technique="distill", arch="transformer", status="paper")
    assert rows
    assert {(r["technique"], r["arch"], r["status"]) for r in rows} == {("distill", "transformer", "paper")}
    assert all("github" in r["source"] for r in listing.claims(KNOWN, source="GitHub"))


def test_models_and_presets_by_what_they_are_for():
    assert {row["info"]["family"] for row in listing.models(KNOWN, arch="moe")} == {"moe"}
    with_channels = {preset.id for preset in KNOWN.presets.values() if "channels" in preset.params}
    assert {row["id"] for row in listing.presets(KNOWN, technique="channels")} == with_channels != set()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("rules", "--technique", "chanels"), "technique: chanels: unknown technique; did you mean channels"),
        (("rules", "--arch", "ccn"), "arch: ccn: unknown architecture; did you mean cnn"),
        (("rules", "--fact", "archh"), "fact: archh: unknown fact; did you mean arch"),
        (("claims", "--status", "certain"), "status: certain: unknown status; known: measured"),
        (("models", "--arch", "x"), "arch: x: unknown architecture"),
        (("facts", "--knowledge", "nowhere"), "knowledge: nowhere: no such folder"),
        (("new", "rules"), "'rules' is not one of"),
        (("schema", "rules"), "'rules' is not one of"),
    ],
)
def test_wrong_names_are_one_line(words, problem):
    shown = advisor("knowledge", *words)
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert problem in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_nothing_found_is_said():
    assert "no rule is like that" in advisor("knowledge", "rules", "--tree", "no such tree").stdout


def test_a_typical_model_is_planned_for_by_its_id(tmp_path):
    assert profile_source("tinyllama-1.1b").parameters == KNOWN.models["tinyllama-1.1b"].parameters
    shown = advisor("knowledge", "new", "model", "small", "--out", tmp_path)
    assert shown.exit_code == 0
    assert profile_source("small", knowledge=str(tmp_path)).info.name == "small"
    told = json.loads(advisor("recommend", "small", "--knowledge", tmp_path, "--json").stdout)
    assert told["profile"]["name"] == "small"
    with pytest.raises(InputError, match="no such folder or file"):
        profile_source("small")


# -- JSON schemas ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_is_printed_for_editors(kind):
    printed = json.loads(advisor("knowledge", "schema", kind.removesuffix("s")).stdout)
    assert printed == file_schema(kind)
    assert printed["$schema"].startswith("https://json-schema.org/")
    told = json.loads(advisor("knowledge", "schema", kind.removesuffix("s"), "--json").stdout)
    assert told == {"schema": "advisor.json-schema/1", "kind": kind.removesuffix("s"), "json_schema": printed}


def test_schemas_name_every_fact_value_technique_and_parameter():
    facts = condition_schema()["properties"]
    assert facts["arch"]["anyOf"][0] == {"enum": ["transformer", "cnn", "rnn", "moe"]}
    assert condition_schema()["additionalProperties"] is False
    assert "lt" in facts["batch"]["anyOf"][2]["properties"]
    assert "lt" not in facts["arch"]["anyOf"][2]["properties"]
    rules = file_schema("rules")["$defs"]
    assert set(rules["Selector"]["properties"]["technique"]["enum"]) == set(CATALOG)
    assert {"quantize", "int8_static"} <= set(rules["Order"]["properties"]["first"]["enum"])
    params = {c["if"]["properties"]["technique"]["const"]: c["then"]["properties"]["param"]["enum"]
              for c in rules["Setting"]["allOf"]}  # fmt: skip
    assert params == {name: list(cls.model_fields) for name, cls in CATALOG.items()}
    assert set(file_schema("presets")["properties"]["params"]["properties"]) == set(CATALOG)


def test_references_of_schemas_lead_somewhere():
    for kind in KINDS:
        schema = file_schema(kind)
        for reference in set(json.dumps(schema).split('"$ref": "#/$defs/')[1:]):
            assert reference.partition('"')[0] in schema["$defs"]

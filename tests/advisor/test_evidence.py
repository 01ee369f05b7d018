"""The user's own evidence: runs add to it, several processes share it, and no trouble with it costs a run."""

import json
import sqlite3
import subprocess
import sys

import pytest
from click.testing import CliRunner

import cli
from advisor import evidence
from advisor.evidence import add, export_json, forget, import_json, own_evidence, rows
from advisor.execute import run_plan
from backends.runner import Pipeline
from backends.store import Store
from knowledge.measured import load_evidence
from knowledge.places import evidence_file
from knowledge.techniques.catalog import build
from knowledge.values import Budget, DiskFull, Drop, InputError, Plan, RunFailed, Stage, Workload

SHIPPED = load_evidence()
SOME = SHIPPED[:5]
PLAN = Plan(
    model="zoo:digits-lstm",
    task="sequence-classification",
    target="server-cpu",
    workload=Workload(threads=1),
    budget=Budget(max_drop=Drop(amount=5, unit="pp")),
    stages=(Stage(technique="fp16"),),
)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVISOR_CONFIG", str(tmp_path / "config"))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    return Pipeline.open(PLAN.model, workload=PLAN.workload, seed=0, store=store)


def advisor(*args):
    return CliRunner().invoke(cli.main, ["evidence", *map(str, args)])


# -- the database ------------------------------------------------------------------------------------------------------


def test_without_a_database_there_is_nothing_and_nothing_is_made():
    assert own_evidence() == ()
    assert not evidence_file().parent.exists()


def test_without_a_database_sqlite_is_not_even_imported():
    code = "import sys; from advisor.evidence import own_evidence; own_evidence(); print('sqlite3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_what_is_added_is_there_oldest_first():
    add(SOME[:2])
    add(SOME[2:])
    assert own_evidence() == SOME


def test_measuring_again_replaces_the_row():
    add(SOME)
    again = SOME[0].model_copy(update={"speedup": 9.0})
    add([again])
    assert len(own_evidence()) == len(SOME)
    assert again in own_evidence()


def test_rows_are_found_by_model_weights_and_technique():
    add(SHIPPED)
    for filters in ({"model": "zoo:minilm"}, {"technique": "distill"}, {"model": SHIPPED[0].model_key}):
        assert set(row.id for row in rows(**filters)) == set(row.id for row in rows(**filters, shipped=True))
        assert 0 < len(rows(**filters)) < len(SHIPPED)
    assert rows(model="zoo:unheard-of") == ()
    with pytest.raises(InputError, match="did you mean channels"):
        rows(technique="chanels")


def test_two_processes_that_write_at_once_lose_nothing():
    code = """
import sys
from advisor.evidence import add
from knowledge.measured import load_evidence
first = load_evidence()[0]
for number in range(40):
    add([first.model_copy(update={"id": f"{sys.argv[1]}-{number}"})])
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, name]) for name in ("a", "b", "c")]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert {row.id for row in own_evidence()} == {f"{name}-{n}" for name in "abc" for n in range(40)}


def test_a_killed_writer_leaves_a_whole_database():
    add(SOME[:1])
    code = """
import os
from advisor.evidence import _transaction
from knowledge.places import evidence_file
with _transaction(evidence_file(), write=True) as connection:
    connection.execute("DELETE FROM evidence")
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert own_evidence() == SOME[:1]


# -- trouble -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def locked(monkeypatch):
    """Another connection that does not let go."""
    add(SOME[:1])
    monkeypatch.setattr(evidence, "WAIT_SECONDS", 0.05)
    other = sqlite3.connect(evidence_file(), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    yield
    other.close()


def damaged():
    add(SOME)
    data = bytearray(evidence_file().read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    evidence_file().write_bytes(data)


def garbage():
    evidence_file().parent.mkdir(parents=True)
    evidence_file().write_text("no database at all, but long enough to look at " * 9)


def newer():
    add(SOME)
    with sqlite3.connect(evidence_file()) as connection:
        connection.execute(f"PRAGMA user_version = {evidence.LAYOUT + 1}")


def of_something_else():
    evidence_file().parent.mkdir(parents=True)
    with sqlite3.connect(evidence_file()) as connection:
        connection.execute("CREATE TABLE trials (id)")


def with_a_broken_row():
    add(SOME)
    with sqlite3.connect(evidence_file()) as connection:
        connection.execute("UPDATE evidence SET row = json_remove(row, '$.drop') WHERE rowid = 2")


BROKEN = {
    damaged: "is damaged",
    garbage: "is damaged",
    newer: "was written by a newer advisor",
    of_something_else: "is a database of something else",
    with_a_broken_row: "row 2: drop: field required",
}


@pytest.mark.parametrize("breaking", BROKEN, ids=lambda f: f.__name__)
def test_a_file_that_cannot_be_read_is_told_in_a_line(breaking):
    breaking()
    with pytest.raises(InputError, match=BROKEN[breaking]) as told:
        own_evidence()
    assert str(evidence_file()) in str(told.value)
    shown = advisor("list")
    assert shown.exit_code == 2
    assert len(shown.stderr.splitlines()) == 1


@pytest.mark.parametrize("breaking", [garbage, newer, of_something_else], ids=lambda f: f.__name__)
def test_a_file_that_is_not_ours_is_not_written_to(breaking):
    breaking()
    before = evidence_file().read_bytes()
    with pytest.raises(InputError):
        add(SOME)
    assert evidence_file().read_bytes() == before


def test_a_locked_database_is_told_and_read_later(locked):
    with pytest.raises(RunFailed, match="another process kept it locked"):
        add(SOME)
    with pytest.raises(RunFailed, match="another process kept it locked"):
        own_evidence()


def test_a_full_disk_leaves_the_rows_that_were_there(monkeypatch):
    add(SOME[:1])
    connect = sqlite3.connect

    def small(*arguments, **named):
        connection = connect(*arguments, **named)
        connection.execute("PRAGMA max_page_count = 3")  # SQLite itself then finds the database full
        return connection

    monkeypatch.setattr(sqlite3, "connect", small)
    with pytest.raises(DiskFull, match="the disk is full"):
        add(SHIPPED)
    monkeypatch.undo()


def test_a_folder_that_cannot_be_made_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ADVISOR_CONFIG", str(tmp_path / "file" / "config"))
    with pytest.raises(InputError, match="set ADVISOR_CONFIG"):
        add(SOME)


# -- files -------------------------------------------------------------------------------------------------------------


def test_export_and_import_carry_every_row(tmp_path, monkeypatch):
    add(SOME)
    assert export_json(tmp_path / "mine.json") == len(SOME)
    monkeypatch.setenv("ADVISOR_CONFIG", str(tmp_path / "colleague"))
    assert import_json(tmp_path / "mine.json") == len(SOME)
    assert own_evidence() == SOME
    assert import_json(tmp_path / "mine.json") == len(SOME)  # again: the same rows
    assert own_evidence() == SOME


def test_of_a_file_with_a_faulty_row_nothing_is_added(tmp_path):
    data = [row.model_dump(mode="json") for row in SOME]
    data[3]["stages"][0]["params"]["strength"] = 2
    (tmp_path / "mine.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"mine.json: row 4: stages.0.*strength.*unknown parameter"):
        import_json(tmp_path / "mine.json")
    assert own_evidence() == ()


def test_forgetting_takes_what_is_named_and_no_more():
    other = next(row for row in SHIPPED if row.model != SOME[0].model)
    add([*SOME, other])
    assert forget(ids=[SOME[0].id]) == 1
    assert forget(model=SOME[0].model) == len(SOME) - 1
    assert own_evidence() == (other,)
    assert forget(everything=True) == 1
    assert own_evidence() == ()


def test_forgetting_needs_to_know_what():
    add(SOME)
    with pytest.raises(InputError, match="give --model, --id or --all"):
        forget()
    with pytest.raises(InputError, match="no row of your own has this id"):
        forget(ids=[SOME[0].id, "0000"])
    with pytest.raises(InputError, match=f"they measured {SOME[0].model}"):
        forget(model="zoo:unheard-of")
    assert own_evidence() == SOME


# -- runs and searches -------------------------------------------------------------------------------------------------


def test_a_run_adds_what_its_verification_measured(pipeline, tmp_path):
    result = run_plan(PLAN, tmp_path / "run", pipeline=pipeline)
    (row,) = own_evidence()
    proof = result.verification
    assert (row.model, row.model_key) == (PLAN.model, pipeline.source.fingerprint)
    assert (row.arch, row.subfamily, row.task, row.metric, row.unit) == (
        "rnn", "lstm", "sequence-classification", "accuracy", "pp",
    )  # fmt: skip
    assert [build(s) for s in row.stages] == [build(s) for s in PLAN.stages]
    assert row.quality == proof.compressed.quality.value
    assert (row.baseline_size_bytes, row.size_bytes) == (proof.baseline.size_bytes, proof.compressed.size_bytes)
    assert row.compression == pytest.approx(proof.compression)
    assert row.speedup == proof.speedup.value
    assert "verification split: 400 samples" in row.protocol
    assert row.command == f"advisor run {tmp_path / 'run' / 'plan.yaml'} --out run"
    run_plan(PLAN, tmp_path / "again", pipeline=pipeline)
    assert len(own_evidence()) == 1  # measured again, not measured twice
    seeded = Pipeline(pipeline.source, pipeline.workload, 1, pipeline.store)
    run_plan(PLAN.model_copy(update={"seed": 1}), tmp_path / "seed", pipeline=seeded)
    assert len(own_evidence()) == 2


def test_a_run_that_does_nothing_adds_nothing(pipeline, tmp_path):
    run_plan(PLAN.model_copy(update={"stages": ()}), tmp_path / "run", pipeline=pipeline)
    assert own_evidence() == ()


def test_the_same_weights_under_other_data_are_another_measurement(pipeline, tmp_path):
    from advisor.recording import protocol_text

    assert "data" not in protocol_text(pipeline, "search", own_data=False)
    own = protocol_text(pipeline, "search", own_data=True)
    assert own.endswith(f"data {pipeline.source.data.search.fingerprint()[:12]}")


@pytest.mark.parametrize("breaking", [garbage, newer], ids=lambda f: f.__name__)
def test_a_run_is_not_lost_to_a_broken_database(breaking, pipeline, tmp_path):
    breaking()
    told = []
    result = run_plan(PLAN, tmp_path / "run", pipeline=pipeline, progress=told.append)
    assert result.exit_code == 0
    assert (tmp_path / "run" / "report.html").exists()
    (warning,) = [line for line in told if line.startswith("warning:")]
    assert str(evidence_file()) in warning


def test_a_run_is_not_lost_to_a_locked_database(locked, pipeline, tmp_path):
    told = []
    run_plan(PLAN, tmp_path / "run", pipeline=pipeline, progress=told.append)
    assert "another process kept it locked" in told[-1]
    assert (tmp_path / "run" / "run.json").exists()


def test_a_search_adds_its_trials_and_the_run_of_the_best(pipeline, tmp_path, monkeypatch):
    from advisor.studies.space import Step
    from advisor.studies.study import search_chains

    monkeypatch.setenv("ADVISOR_STORE", str(pipeline.store.root))
    result = search_chains(PLAN, [[Step("fp16")], [Step("int8_dynamic")]], tmp_path / "study", trials=2)
    found = own_evidence()
    searched = [row for row in found if "search split" in row.protocol]
    trials = {json.dumps(t["stages"][0]["technique"]): t for t in result.pareto["trials"] if t["state"] == "complete"}
    assert {json.dumps(row.stages[0].technique) for row in searched} == set(trials)
    for row in searched:
        trial = trials[json.dumps(row.stages[0].technique)]
        assert (row.size_bytes, row.quality) == (trial["size_bytes"], trial["quality"])
        assert row.drop == pytest.approx(trial["quality_drop"])
        assert row.baseline_latency_ms / row.latency_ms == pytest.approx(row.speedup, rel=0.5)
        assert row.command.startswith("advisor search zoo:digits-lstm --task sequence-classification")
    assert [row.stages for row in found if "verification split" in row.protocol] == [
        tuple(Stage(technique=s.technique, params=build(s).model_dump(mode="json")) for s in result.best_plan.stages)
    ]


# -- commands ----------------------------------------------------------------------------------------------------------


def test_commands_print_tables_and_json(tmp_path):
    assert "No such evidence" in advisor("list").stdout
    add(SOME)
    shown = advisor("list").stdout
    assert f"{len(SOME)} rows of 1 model" in shown
    assert SOME[0].id in shown
    assert SOME[0].protocol in " ".join(shown.split())
    told = json.loads(advisor("list", "--json").stdout)
    assert told["schema"] == "advisor.evidence/1"
    assert told["rows"] == [row.model_dump(mode="json") for row in SOME]
    assert advisor("export", tmp_path / "mine.json").stdout == f"5 rows written to {tmp_path / 'mine.json'}\n"
    assert json.loads(advisor("forget", "--all", "--json").stdout) == {"schema": told["schema"], "forgotten": 5}
    assert advisor("import", tmp_path / "mine.json").stdout == f"5 rows added from {tmp_path / 'mine.json'}\n"
    assert advisor("forget", "--id", SOME[0].id).stdout == "1 row forgotten\n"
    assert advisor("forget").exit_code == 2
    assert advisor("import", tmp_path / "none.json").exit_code == 2


def test_the_packages_rows_are_listed_and_never_forgotten():
    shown = json.loads(advisor("list", "--shipped", "--technique", "channels", "--json").stdout)["rows"]
    assert {"channels"} <= {stage["technique"] for row in shown for stage in row["stages"]}
    assert {row["arch"] for row in shown} == {"cnn"}
    assert advisor("forget", "--model", shown[0]["model"]).exit_code == 2

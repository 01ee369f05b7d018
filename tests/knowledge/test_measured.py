"""The evidence that ships is real, whole and quick to read; a faulty file is told with row and field."""

import json
import subprocess
import sys
import timeit

import pytest

from knowledge.measured import FOLDER, check_rows, load_evidence, parse_rows, read_rows, write_rows
from knowledge.values import InputError

ROWS = load_evidence()[:3]


def test_every_shipped_row_can_be_a_measurement():
    files = sorted(FOLDER.glob("*.json"))
    assert files
    for path in files:
        rows = read_rows(path)
        check_rows(path, rows)
        assert {row.model for row in rows} == {f"zoo:{path.stem}"}
        assert len({row.model_key for row in rows}) == 1
        assert all(f"--models {path.stem} --chain" in row.command for row in rows)


def test_ids_are_unique_over_all_files():
    ids = [row.id for row in load_evidence()]
    assert len(set(ids)) == len(ids)


def test_every_embedded_model_has_evidence_and_one_protocol_each():
    from backends.zoo import zoo_names
    from benchmarks.evidence import LITTLE_TRAINED

    names = [name for name in zoo_names() if name not in LITTLE_TRAINED]
    protocols = {name: {r.protocol for r in load_evidence() if r.model == f"zoo:{name}"} for name in names}
    assert {name: len(found) for name, found in protocols.items()} == dict.fromkeys(names, 1)
    assert all("search split" in text for found in protocols.values() for text in found)


def test_figures_that_are_computed_from_one_another_agree():
    for row in load_evidence():
        worse = row.quality < row.baseline_quality if row.metric != "perplexity" else row.quality > row.baseline_quality
        assert (row.drop > 0) == worse
        assert row.speedup == pytest.approx(row.baseline_latency_ms / row.latency_ms, rel=0.5)


def test_rows_are_read_as_fast_as_their_json():
    text = json.dumps([row.model_dump(mode="json") for row in (ROWS * 200)[:400]])
    assert len(parse_rows(text, FOLDER)) == 400
    ours, plain = (
        min(timeit.repeat(read, number=1, repeat=7))
        for read in (lambda: parse_rows(text, FOLDER), lambda: json.loads(text))
    )
    assert ours < 2 * plain  # 0.9 of it, measured


def test_reading_evidence_imports_no_framework():
    code = "import sys; from knowledge.measured import load_evidence; load_evidence(); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "onnx", "onnxruntime", "sqlite3", "yaml"} & set(modules)


def test_rows_survive_the_file(tmp_path):
    write_rows(tmp_path / "rows.json", ROWS)
    assert read_rows(tmp_path / "rows.json") == ROWS
    assert len((tmp_path / "rows.json").read_text().splitlines()) == len(ROWS) + 2  # a row is a line
    write_rows(tmp_path / "rows.json", [])
    assert read_rows(tmp_path / "rows.json") == ()


# -- faults ------------------------------------------------------------------------------------------------------------


def faulty(tmp_path, change):
    """A file of three rows, the second of which is changed."""
    data = [row.model_dump(mode="json") for row in ROWS]
    change(data[1])
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "eof while parsing"),
        ("[{", "eof while parsing"),
        ('{"rows": []}', "input should be a valid array"),
        ('[{"id": "a"}]', "row 1: model: field required"),
        ("[3]", "row 1: row: input should be"),
        ("\udcff", "invalid"),
    ],
)
def test_a_file_that_is_no_list_of_rows_is_told(tmp_path, text, problem):
    path = tmp_path / "rows.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as told:
        read_rows(path)
    assert problem in str(told.value).lower()
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("metric", "speed", "row 2: metric: input should be 'accuracy'"),
        ("size_bytes", 0, "row 2: size_bytes: input should be greater than 0"),
        ("sizes", 1, "row 2: sizes: extra inputs"),
        ("stages", [{"technique": 3}], "row 2: stages.0.technique: input should be a valid string"),
    ],
)
def test_a_row_of_the_wrong_shape_is_named(tmp_path, field, value, problem):
    with pytest.raises(InputError) as told:
        read_rows(faulty(tmp_path, lambda row: row.update({field: value})))
    assert problem in str(told.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"stages": []}, "row 2: stages: nothing was carried out"),
        ({"stages": [{"technique": "chanels", "params": {}}]}, "row 2: stages.0.technique: chanels: unknown technique"),
        ({"stages": [{"technique": "magnitude", "params": {"ratio": 2}}]}, "row 2: stages.0.magnitude.ratio: 2: "),
        ({"drop": 50.0}, "row 2: drop: 50 pp is not the difference of"),
        ({"quality": float("nan")}, "row 2: quality: nan is no figure"),
        ({"id": ""}, "row 2: id: is empty"),
        ({"id": ROWS[0].id}, f"row 2: id: {ROWS[0].id} is the id of row 1"),
    ],
)
def test_a_row_that_cannot_be_a_measurement_is_named(tmp_path, changes, problem):
    path = faulty(tmp_path, lambda row: row.update(changes))
    with pytest.raises(InputError) as told:
        check_rows(path, read_rows(path))
    assert problem in str(told.value)

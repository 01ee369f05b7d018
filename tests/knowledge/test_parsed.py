"""Parsed YAML is kept: damage, a full disk, other processes and odd values never change what is read."""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knowledge import parsed as module
from knowledge.parsed import parsed
from knowledge.yaml_values import NotYaml, parse

TEXT = b"# about\nrules:\n- id: a\n  text: '\xc3\xa9'\n\n- {id: b}\nshared: [1, 2.5, null]\n"
VALUE = {"rules": [{"id": "a", "text": "é"}, {"id": "b"}], "shared": [1, 2.5, None]}
LINES = {"rules": [3, 6], "shared": [7, 7, 7], "": [2]}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "yaml"


def same_twice(data=TEXT):
    first, again = parsed(data), parsed(data)
    assert first == again
    return first


def test_values_and_lines_are_the_same_from_the_file_and_from_the_cache(cache, monkeypatch):
    assert (same_twice().value, same_twice().lines) == (VALUE, LINES)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(module, "parse", lambda data: pytest.fail("was parsed again"))
    assert parsed(TEXT).value == VALUE


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(path.read_bytes().replace(b'"a"', b'"c"')),
        lambda path: path.write_text("{}\n{}"),
        lambda path: path.write_bytes(os.urandom(200)),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_a_damaged_entry_is_read_anew(cache, damage):
    parsed(TEXT)
    (entry,) = cache.iterdir()
    damage(entry)
    assert parsed(TEXT).value == VALUE
    assert parsed(TEXT).value == VALUE


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path / "file" / "cache"))
    assert same_twice().value == VALUE


def test_a_full_disk_costs_time_only(cache, monkeypatch):
    def full(path, data):
        raise module.DiskFull(path)

    monkeypatch.setattr(module, "write_bytes", full)
    assert same_twice().value == VALUE
    assert not cache.exists()


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"when: 2024-01-31", {"when": datetime.date(2024, 1, 31)}),
        (b"2: a\ntrue: b", {2: "a", True: "b"}),
        (b"a: .inf", {"a": float("inf")}),
        (b"a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        (b"\xef\xbb\xbfa: 1", {"a": 1}),
        (b"", None),
    ],
)
def test_what_json_cannot_say_is_read_from_the_file(data, value):
    assert same_twice(data).value == value


def test_aliases_that_multiply_are_not_written_out(cache):
    text = b"a: &a [x, x, x, x, x, x, x, x, x]\n"
    for name, before in zip("bcdefghi", "abcdefgh", strict=True):
        text += f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n".encode()
    parsed(text)
    assert not cache.exists()


def test_old_entries_go(cache, monkeypatch):
    monkeypatch.setattr(module, "MAX_ENTRIES", 3)
    for number in range(6):
        parsed(f"a: {number}".encode())
    assert len(list(cache.iterdir())) == 3
    assert parsed(b"a: 5").value == {"a": 5}


def test_processes_that_read_at_once_agree(cache):
    code = f"from knowledge.parsed import parsed; import json; print(json.dumps(parsed({TEXT!r}).value))"
    root = Path(module.__file__).parent.parent
    started = [subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE) for _ in range(4)]
    assert all(json.loads(process.communicate()[0]) == VALUE for process in started)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    ("data", "line", "problem"),
    [
        (b"a: [", 2, "is not YAML"),
        (b"a: 1\nb: 2\na: 3", 3, "is given twice"),
        (b"a: 1\nb: " + 90 * b"[", 2, "is nested too deeply"),
        (b"a: \x00", 1, "is not YAML"),
        (b"a: 1\n---\nb: 2", 2, "a second document begins"),
        (b"a: &x 1\nb: {c: *x, c: 2}", 2, "is given twice"),
        (b"a: &x 1\nb: " + 90 * b"[" + 90 * b"]", 2, "is nested too deeply"),
        (b"a: *x", 1, "undefined alias"),
        (b"? [a]\n: [1]", 1, "unhashable key"),
        (b"a: !!python/object/apply:os.system ['true']", 1, "could not determine a constructor"),
    ],
)
def test_what_is_no_yaml_says_where(data, line, problem, cache):
    with pytest.raises(NotYaml, match=problem) as error:
        parsed(data)
    assert error.value.line == line
    assert not cache.exists()


def test_every_kind_of_value_is_what_the_library_reads():
    text = b"""
a: [1, 1.5, 1e3, 1.0e+3, .nan, true, no, null, ~, '', "1", 0x1f, 2024-01-31, 1_000, '=']
b: {x: y, "q": [], z: {}}
c: |
  two
  lines
d: >-
  folded
  text
e: !!str 5
f: !!float 5
g:
- - nested
? h
: plain
"""
    assert repr(parse(text)[0].value) == repr(yaml.load(text, Loader=yaml.CSafeLoader))
    merged = b"base: &b {x: 1, y: 2}\nmine: {<<: *b, y: 3}\n1: one\n"
    assert parse(merged)[0].value == yaml.load(merged, Loader=yaml.CSafeLoader)
    inline = b"a: {<<: {x: 1}, y: 2}\n<<: {rules: [1,\n 2]}\n"
    assert parse(inline)[0].value == {"a": {"x": 1, "y": 2}, "rules": [1, 2]}
    assert parse(inline)[0].lines["rules"] == [2, 3]
    for path in (Path(module.__file__).parent).glob("*/*.yaml"):
        assert parse(path.read_bytes())[0].value == yaml.load(path.read_text(), Loader=yaml.CSafeLoader)


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(texts, values, max_size=4), st.booleans(), st.sampled_from([None, True, False]))
def test_values_are_those_that_the_library_reads(value, wide, flow):
    text = yaml.dump(value, Dumper=yaml.CSafeDumper, allow_unicode=wide, default_flow_style=flow)
    assert repr(parse(text.encode())[0].value) == repr(yaml.load(text, Loader=yaml.CSafeLoader))

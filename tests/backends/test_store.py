import json
import os
import time

import pytest

from backends.store import RECORD, Store, digest


def put(store: Store, key: str, size: int = 10) -> None:
    with store.writing(key) as folder:
        (folder / "data").write_bytes(b"x" * size)
        (folder / RECORD).write_text(json.dumps({"key": key}))


def test_an_entry_is_found_again_and_is_whole(tmp_path):
    store = Store(tmp_path)
    assert store.record("a") is None
    put(store, "a")
    assert Store(tmp_path).record("a") == {"key": "a"}


def test_a_failed_write_leaves_nothing(tmp_path):
    store = Store(tmp_path)

    def fail():
        with store.writing("a") as folder:
            (folder / "data").write_bytes(b"x")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail()
    assert store.entry("a") is None
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".partial")] == []


def test_a_folder_without_its_record_is_no_entry(tmp_path):
    (tmp_path / "a").mkdir()
    assert Store(tmp_path).entry("a") is None


def test_the_second_writer_of_a_key_loses_quietly(tmp_path):
    first, second = Store(tmp_path), Store(tmp_path)
    with first.writing("a") as folder:
        (folder / RECORD).write_text('{"by": 1}')
        put(second, "a")
    assert first.record("a") == {"key": "a"}


def test_the_least_recently_used_goes_first(tmp_path):
    store = Store(tmp_path, bound_bytes=10_000)
    for age, key in ((9000, "old"), (8000, "middle")):
        put(store, key, 100)
        os.utime(tmp_path / key, (time.time() - age,) * 2)
    store.entry("old")  # used just now
    store.bound_bytes = 300
    put(store, "new", 100)
    assert store.entry("middle") is None
    assert store.entry("old") is not None
    assert store.entry("new") is not None


def test_digest_depends_on_every_part():
    assert digest("a", {"x": 1, "y": 2}) == digest("a", {"y": 2, "x": 1})
    assert digest("a", {"x": 1}) != digest("a", {"x": 2})
    assert digest("a", "b") != digest("ab")


def test_what_a_run_just_used_is_never_evicted(tmp_path):
    store = Store(tmp_path, bound_bytes=150)
    for key in "abc":
        put(store, key, 100)
    assert all(store.entry(key) for key in "abc")

"""Processor time: a file is as fast as itself, also on a machine where everything is busy."""

import multiprocessing
from pathlib import Path

import pytest

from backends.onnx.workload import workload_feed
from backends.runner import Pipeline
from backends.store import Store
from knowledge.techniques.catalog import build
from knowledge.values import Stage, Workload

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def benchmarks_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The uncompressed file, one with half the channels, and what both read."""
    store = Store(tmp_path_factory.mktemp("store"))
    pipeline = Pipeline.open("zoo:digits-cnn", workload=Workload(threads=1), seed=0, store=store)
    record = list(pipeline.run([build(Stage(technique="channels", params={"ratio": 0.5}))]))[-1]
    first, second = pipeline.file(pipeline.baseline), pipeline.file(record)
    return first, second, workload_feed(first, pipeline.source.data.search, pipeline.workload)


def burn():
    while True:
        pass


@pytest.fixture
def busy():
    """Four processes that never rest."""
    processes = [multiprocessing.get_context("spawn").Process(target=burn, daemon=True) for _ in range(4)]
    for process in processes:
        process.start()
    yield
    for process in processes:
        process.kill()
        process.join()


def test_a_file_is_as_fast_as_itself(files):
    from benchmarks.timing import processor_time

    before, after, ratio = processor_time(files[0], files[0], files[2])
    assert ratio == pytest.approx(1, abs=0.1)
    assert before == pytest.approx(after, rel=0.2)


def test_half_the_channels_are_faster_and_the_ratio_is_of_the_first_by_the_second(files):
    from benchmarks.timing import processor_time

    first, second, feed = files
    forward, backward = processor_time(first, second, feed), processor_time(second, first, feed)
    assert forward[2] > 1.5
    assert forward[2] * backward[2] == pytest.approx(1, abs=0.2)


def test_other_processes_do_not_add_to_it(files, busy):
    from benchmarks.timing import processor_time

    assert processor_time(files[0], files[0], files[2])[2] == pytest.approx(1, abs=0.15)

"""Runs with a trouble, carried out once for all tests of this folder."""

import shutil
from pathlib import Path

import pytest
from typed import ROOT

from advisor.execute import run_plan
from advisor.predict import estimate
from advisor.profile import profile_source
from backends.runner import Pipeline
from backends.store import Store
from knowledge.load import load_knowledge
from knowledge.values import Budget, Drop, Plan, Stage, Workload

SPARSE = str(ROOT / "tests" / "cases" / "targets" / "sparse-engine.yaml")
DROP = Drop(amount=100, unit="pp")


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def pipelines(store):
    return {
        name: Pipeline.open(f"zoo:{name}", workload=Workload(threads=1), seed=0, store=store)
        for name in ("digits-cnn", "digits-lstm")
    }


@pytest.fixture(scope="session")
def run_of(pipelines, tmp_path_factory):
    """Carries a chain out; returns its run folder. What it measures enters no estimate of a test."""

    def carried_out(model, *stages, target="server-cpu", **limits):
        chain = tuple(Stage(technique=name, params=params) for name, params in stages)
        known, workload = load_knowledge(), Workload(threads=1)
        layers = profile_source(f"zoo:{model}", workload=workload)
        plan = Plan(
            model=f"zoo:{model}",
            task=layers.info.task,
            target=target,
            workload=workload,
            budget=Budget(**{"max_drop": DROP, **limits}),
            stages=chain,
            estimate=estimate(layers, chain, known.target(target), workload, known),
        )
        folder = tmp_path_factory.mktemp("runs") / "run"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ADVISOR_CONFIG", str(folder.parent / "config"))
            run_plan(plan, folder, pipeline=pipelines[model])
        return folder

    return carried_out


@pytest.fixture(scope="session")
def half(run_of):
    """fp16 on a CPU, wanted four times as fast in a tenth of the memory."""
    return run_of("digits-lstm", ("fp16", {}), min_speedup=4.0, max_memory_bytes=1_000_000)


@pytest.fixture(scope="session")
def zeros(run_of):
    """Single weights pruned for an engine that skips zeros, measured where none are skipped."""
    return run_of("digits-cnn", ("magnitude", {"ratio": 0.8}), target=SPARSE)


@pytest.fixture(scope="session")
def cut(run_of):
    """Channels removed and never recovered, then INT8, with hardly any quality to spend and a tiny file wanted."""
    stages = (("channels", {"ratio": 0.6}), ("int8_static", {}))
    return run_of("digits-cnn", *stages, max_drop=Drop(amount=0.5, unit="pp"), max_size_bytes=10_000)


@pytest.fixture
def copied(tmp_path):
    """A private copy of a run folder, to be edited."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "run"))

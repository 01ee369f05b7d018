"""What a request becomes in a plan: goal, limits of the target, unit of the metric, agreement without labels."""

import os

import numpy as np

from advisor.advise import advise
from advisor.proposal import to_plan
from advisor.request import Request
from advisor.studies.search import in_unit_of_metric
from backends.runner import Pipeline
from backends.store import Store
from knowledge.values import Workload


def planned(**options):
    answer = advise(Request.parse(model="zoo:digits-cnn", **options))
    return answer, to_plan(answer.chains[0], answer)


def spread(outputs, labels):
    return 1.0


spread.unit = "%"  # type: ignore[attr-defined]


def test_limits_without_a_goal_plan_for_quality():
    answer, plan = planned(max_size="1MB")
    assert answer.request.goal == plan.goal == "quality"
    assert planned(max_size="1MB", goal="size")[1].goal == "size"
    assert planned()[1].goal == "overall"


def test_limits_of_the_target_reach_the_budget():
    answer, plan = planned(target="mobile")
    assert plan.budget.max_size_bytes or plan.budget.max_memory_bytes
    assert any("the limit of mobile" in said for said in answer.request.assumed)
    assert planned(target="mobile", max_size="1KB")[1].budget.max_size_bytes <= 1024


def test_only_latency_of_a_measured_target_is_a_limit():
    assert planned(max_latency="5ms")[1].budget.max_latency_ms == 5
    answer, plan = planned(max_latency="5ms", target="mobile")
    assert plan.budget.max_latency_ms is None
    assert any("estimated, not measured" in reason for reason in plan.reasons)
    assert any("estimated, not measured" in warning for warning in answer.chains[0].warnings)


def test_threads_are_capped():
    plan = planned(threads="4096")[1]
    assert plan.workload.threads == os.cpu_count()
    assert any("4096" in reason for reason in plan.reasons)


def test_drop_takes_the_unit_of_the_metric():
    def unit(**options):
        answer, plan = planned(metric=f"{__name__}:spread", **options)
        return in_unit_of_metric(plan, answer.request).budget.max_drop.unit

    assert unit() == "%"
    assert unit(max_drop="2pp") == "pp"


def test_fidelity_needs_no_labels(tmp_path):
    file = tmp_path / "pixels.npz"
    np.savez(file, pixels=np.random.default_rng(0).random((64, 1, 8, 8), dtype=np.float32))
    pipeline = Pipeline.open(
        "zoo:digits-cnn", workload=Workload(threads=1), seed=0, store=Store(tmp_path / "store"), task="fidelity",
        files={"eval": str(file)},
    )  # fmt: skip
    assert pipeline.bench.task.name == "fidelity"
    assert (pipeline.baseline.quality.metric, pipeline.baseline.quality.value) == ("agreement", 1.0)

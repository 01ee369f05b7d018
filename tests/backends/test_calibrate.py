"""A calibration measures this machine for real, with few rounds and small sets of weights."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from advisor.calibration import FACTORS, OVERHEADS, RATES, calibrate_machine
from advisor.commands.targets import targets
from advisor.profile import profile_source
from advisor.roofline import Roofline
from backends.calibrate import STEPS, calibrate, kernels, measure, solve
from backends.onnx.chain import Probe
from backends.onnx.probes import BLOCKS, blocks, convolutions, integer_convolutions, probes, products
from backends.onnx.session import open_session
from knowledge.deploy import deployed
from knowledge.load import load_target
from knowledge.schema import Figure
from knowledge.values import InputError, Workload

QUICK = {"rounds": 2}


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    out = tmp_path_factory.mktemp("targets") / "this-machine.yaml"
    return calibrate_machine(out, max_memory_bytes=10**9, **QUICK)


# -- probes ----------------------------------------------------------------------------------------


def test_every_probe_has_its_own_name_and_computes_finite_numbers():
    chosen = list(probes(2))
    assert len({p.name for p in chosen}) == len(chosen)
    for probe in chosen:
        (output,) = probe.session(1).run(None, probe.feed)
        assert np.isfinite(output).all(), probe.name
        assert np.abs(output).max() > 1e-3, probe.name  # neither dead nor denormal, which would be slow


def test_every_kind_of_work_is_priced_before_it_is_subtracted():
    known = {"memory", "count"}
    for groups, kinds in STEPS:
        known |= set(kinds)
        for probe in probes(2):
            if probe.group in groups:
                assert set(probe.work) <= known, probe.name


@pytest.mark.parametrize(("form", "operator"), [
    ("dynamic", "DynamicQuantizeMatMul"), ("static", "MatMulIntegerToFloat"),
])  # fmt: skip
def test_int8_blocks_run_in_integer_kernels(form, operator, tmp_path):
    assert operator in optimized(blocks(*BLOCKS[0][:3], 1, form), tmp_path)


def test_int8_convolutions_run_in_integer_kernels(tmp_path):
    operators = optimized(integer_convolutions(16, 8, 3, 4), tmp_path)
    assert operators.count("QLinearConv") == 4
    assert "Conv" not in operators


def optimized(probe, folder):
    """Operators of the graph that the runtime makes of a probe."""
    import onnx

    (folder / "probe.onnx").write_bytes(probe.model)
    open_session(folder / "probe.onnx", 1, optimized_path=folder / "optimized.onnx")
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


# -- prices ----------------------------------------------------------------------------------------


def test_least_squares_finds_the_prices_behind_the_times():
    true = {"request": 3.0, "start": 0.5, "flop": 4e-6, "cache": 1e-5}
    chosen = [products("float", *shape) for shape in ((1, 64, 2), (1, 64, 9), (64, 64, 3), (16, 128, 2), (1, 256, 4))]
    times = {p.name: sum(true[kind] * units for kind, units in p.work.items()) for p in chosen}
    prices = {}
    misfits = solve(chosen, times, list(true), prices)
    assert prices == pytest.approx(true, rel=1e-6)
    assert max(misfits) < 1e-6


def test_no_price_is_zero_or_below():
    chosen = [Probe("g", str(n), b"", (1,), {"request": 1.0, "start": n}) for n in (1, 2, 3)]
    prices = {}
    solve(chosen, {"1": 5.0, "2": 4.0, "3": 3.0}, ["request", "start"], prices)
    assert all(price > 0 for price in prices.values())


def test_more_of_the_same_takes_longer():
    short, long = measure([convolutions(32, 8, 3, 2), convolutions(32, 8, 3, 16)], threads=1, rounds=5)
    assert 3 < long / short < 10


def test_calibration_prices_every_kind_of_work():
    found = calibrate(1, rounds=2, largest_megabytes=8)
    assert all(math.isfinite(p) and p > 0 for p in found.prices.values())
    assert set(found.prices) == {"memory", *(kind for _, kinds in STEPS for kind in kinds)}
    assert found.cache_bytes > 0
    assert found.channel_block in (1, 4, 8, 16)
    assert found.misfit < 0.5


# -- the target ------------------------------------------------------------------------------------


def test_the_target_loads_and_every_figure_says_what_was_measured(calibrated):
    target, path, found = calibrated
    assert load_target(path) == target
    assert target.id == "this-machine"
    assert target.measured
    given = {n: f for n in type(target).model_fields if isinstance(f := getattr(target, n), Figure)}
    assert {*FACTORS, *RATES, *OVERHEADS} <= set(given)
    assert given.pop("max_memory_bytes") == Figure(value=1e9, source="given on the command line")
    for name, figure in given.items():
        assert figure.value > 0, name
        assert figure.source.startswith("measured: "), name
    assert found.seconds < 60
    assert set(target.operators) <= kernels()


def test_predictions_on_this_machine_are_of_the_right_order(calibrated):
    target, *_ = calibrated
    layers = deployed(profile_source("zoo:digits-cnn"))
    found = Roofline(target, Workload(threads=1)).latency(layers).total
    assert 0.01 < found < 2


def test_the_file_goes_to_the_user_s_folder_and_the_command_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVISOR_CONFIG", str(tmp_path))
    monkeypatch.setattr("backends.calibrate.ROUNDS", 1)
    shown = CliRunner().invoke(targets, ["calibrate", "--json"], catch_exceptions=False)
    found = json.loads(shown.stdout)
    assert found["schema"] == "advisor.calibration/1"
    assert found["file"] == str(tmp_path / "targets" / "this-machine.yaml")
    assert found["use"] == "this-machine"
    assert load_target(tmp_path / "targets" / "this-machine.yaml").id == "this-machine"
    assert found["target"]["gflops_fp32"]["source"].startswith("measured")


@pytest.mark.parametrize(("given", "field"), [
    ({"target_class": "serve"}, "class"), ({"threads": 100_000}, "threads"), ({"out": "machine.json"}, "out"),
    ({"out": "/proc/machine.yaml"}, "out"),
])  # fmt: skip
def test_bad_input_is_told_before_anything_is_measured(given, field, tmp_path):
    given = {"out": str(tmp_path / "t.yaml")} | given
    with pytest.raises(InputError) as error:
        calibrate_machine(Path(given.pop("out")), progress=pytest.fail, **given)
    assert error.value.field == field
    assert error.value.remedy

"""What a chain costs to carry out, and what would make the answer another one."""

import os

import pytest

from advisor.advise import advise
from advisor.costs import CostModel
from advisor.profile import profile_source
from advisor.request import Request
from backends.memory import total_memory
from knowledge.techniques.catalog import build
from knowledge.values import Stage, Workload

MINILM = profile_source("zoo:minilm", workload=Workload(seq_len=64))


def ask(**options):
    return advise(Request.parse(**options))


def cost(*stages):
    built = [build(Stage(technique=name, params=params)) for name, params in stages]
    return CostModel(MINILM, Workload(seq_len=64)).chain(built)


def told(answer):
    return " ".join(f"{c.option} {c.text}" for c in answer.changes)


# -- costs -----------------------------------------------------------------------------------------


def test_training_takes_what_the_arithmetic_takes():
    """16 samples a second were measured for MiniLM at 64 tokens on two cores."""
    found = cost(("finetune", {"epochs": 1})).training_seconds
    on_two_cores = found.mid * (os.cpu_count() or 1) / 2
    assert on_two_cores == pytest.approx(1000 / 16, rel=0.3)
    assert found.low < found.mid < found.high


def test_epochs_teachers_and_smaller_students_count():
    once, thrice = (cost(("finetune", {"epochs": e})).training_seconds.mid for e in (1, 3))
    assert thrice == pytest.approx(3 * once, rel=0.01)
    student = cost(("distill", {"compression": 1.5, "epochs": 1})).training_seconds.mid
    assert 0 < student < once + once  # the teacher answers, the student is smaller


def test_what_trains_nothing_takes_no_training_and_less_memory():
    file, trained = cost(("fp16", {})), cost(("finetune", {}))
    assert (file.training_seconds.mid, file.data) == (0, "none")
    assert file.peak_memory_bytes.mid < trained.peak_memory_bytes.mid
    assert trained.data.startswith("training data")
    assert cost(("int8_static", {})).data == "a few hundred representative inputs"


def test_memory_is_compared_with_this_machine_s():
    found = cost(("fp16", {}))
    assert found.memory_bytes == total_memory()
    assert found.fits_memory
    large = ask(arch="transformer", task="causal-lm", params="70B").chains[0].cost
    assert large.fits_memory == (large.peak_memory_bytes.mid <= total_memory())
    assert large.peak_memory_bytes.mid > 70e9


# -- changes ---------------------------------------------------------------------------------------


def test_more_quality_to_spend_is_told_with_the_option_and_the_gain():
    answer = ask(arch="cnn", max_drop="1pp")
    change = answer.changes[0]
    assert change.option == "--max-drop 2pp"
    assert "instead of" in change.text
    assert change.compression.mid > 1.2 * answer.chains[0].estimate.compression.mid
    taken = ask(arch="cnn", max_drop="2pp")
    assert taken.chains[0].id == change.chain


def test_a_larger_step_that_brings_no_more_is_not_told():
    for answer in (ask(arch=a, max_drop="1pp") for a in ("cnn", "transformer", "rnn")):
        gains = [(c.chain, c.compression) for c in answer.changes]
        assert len(set(map(str, gains))) == len(gains)


def test_training_and_data_are_told_where_they_are_held_back():
    answer = ask(arch="cnn", max_drop="3pp", training="none")
    assert "--training" in told(answer)
    assert "--data-level" in told(ask(arch="cnn", data_level="calibration"))
    assert "--training" not in told(ask(arch="cnn"))


def test_arithmetic_that_the_target_lacks_is_told():
    assert "INT8 dot product" in told(ask(arch="rnn", target="edge")) or "INT8 dot product" in told(
        ask(arch="transformer", target="edge", max_drop="1pp")
    )
    assert "INT8 dot product" not in told(ask(arch="transformer", target="server-cpu", max_drop="1pp"))


def test_where_nothing_fits_the_limit_that_would_is_told():
    answer = ask(arch="cnn", max_size="100KB")
    assert not answer.fits
    options = [c.option for c in answer.changes]
    assert any(o.startswith(("--max-size", "--max-drop")) for o in options)
    missed = {m.limit: m for m in answer.chains[0].misses}
    size = next(c for c in answer.changes if c.option.startswith("--max-size"))
    met = ask(arch="cnn", max_size=size.option.split()[1])
    assert missed["size"].estimated > 100_000
    assert met.chains[0].misses == () or "size" not in {m.limit for m in met.chains[0].misses}


def test_every_limit_that_is_missed_is_told_with_the_others():
    answer = ask(model="zoo:digits-cnn", max_size="2KB", max_latency="0.001ms")
    assert [c.option.split()[0] for c in answer.changes] == ["--max-size", "--max-latency"]
    assert all("together with the other limits here" in c.text for c in answer.changes)


def test_the_answer_s_json_names_changes_and_costs():
    answer = ask(arch="cnn", max_drop="1pp").to_json()
    assert {"option", "text", "chain", "compression", "speedup"} == set(answer["changes"][0])
    assert {"data", "training_seconds", "peak_memory_bytes", "memory_bytes", "fits_memory"} == set(
        answer["chains"][0]["cost"]
    )

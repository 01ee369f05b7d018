"""Real runs: every limit that is missed and every gain that is not realized is seen, explained and followed up."""

import json
import re
import shlex
from pathlib import Path

from diagnosed import edited, parses, told
from typed import advisor

from advisor.plans import load_plan
from knowledge.load import load_knowledge


def test_a_speed_that_fp16_cannot_give_is_missed_and_explained(half):
    report, found = told(half)
    assert report.exit_code == 1
    assert report.verdict == "The budget is missed."
    measured = json.loads((half / "verification.json").read_text())["speedup"]["value"]
    assert f"{measured:.2f} times as fast, 4 wanted" in found["speed-missed"].seen
    assert "--goal latency" in found["speed-missed"].commands[0]
    assert "single precision" in found["half-precision-on-cpu"].why
    elsewhere = found["half-precision-on-cpu"].commands[-1]
    target = shlex.split(elsewhere)[shlex.split(elsewhere).index("--target") + 1]
    assert "fp16" in load_knowledge().target(target).accelerates


def test_memory_that_is_missed_names_the_file_s_share(half):
    _, found = told(half)
    assert "allowed" in found["memory-missed"].seen
    assert "--goal memory" in found["memory-missed"].commands[0]


def test_zeros_that_pay_nowhere_are_explained_within_the_budget(zeros):
    report, found = told(zeros)
    assert report.exit_code == 0
    assert "zero" in found["zeros-stored-densely"].why
    assert parses(found["zeros-stored-densely"].commands[0]) == "recommend"
    assert "times faster" in found["off-estimate"].seen  # the engine was counted on


def test_lost_quality_is_followed_to_its_stage_and_the_recovery_put_in(cut):
    report, found = told(cut)
    assert report.exit_code == 1
    lost = found["quality-lost"]
    assert re.search(r"channels [0-9.]+ pp lost", lost.seen)
    assert "recover after channels" in lost.advice
    assert "channels.ratio" in lost.advice
    mend, again, _ = lost.commands
    assert advisor(*shlex.split(mend)[1:]).exit_code in (0, 1)
    plan_file = Path(shlex.split(again)[2])
    mended = load_plan(plan_file)
    assert [s.technique for s in mended.stages] == ["channels", "finetune", "int8_static"]
    assert mended.stages[0].params["ratio"] < 0.6
    plan_file.unlink()


def test_a_missed_size_says_what_holds_the_bytes_and_cuts_harder(cut, copied):
    _, found = told(cut)
    assert "10,000 allowed" in found["size-missed"].seen
    assert "conv in 8 bits" in found["size-missed"].seen
    assert "--max-size 10000" in found["size-missed"].commands[-1]
    assert "quality is missed too" in found["size-missed"].advice

    def only_size(run):
        verdict = run["verification"]["verdict"]
        verdict["misses"] = [miss for miss in verdict["misses"] if miss["limit"] == "size"]

    harder = told(edited(copied(cut), only_size))[1]["size-missed"].commands[0]
    ratio = next(word for word in shlex.split(harder) if word.startswith("channels.ratio="))
    assert 0.6 < float(ratio.partition("=")[2]) <= 0.7


def test_the_plan_stays_beside_its_results(cut):
    """What is suggested writes another plan: the run folder is not touched."""
    _, found = told(cut)
    for line in found["quality-lost"].commands:
        words = shlex.split(line)
        assert words[words.index("--out") + 1] not in (str(cut), str(cut / "plan.yaml"))

"""Decoding in what a run shows: the reports, the model card's code, what `verify` is asked for, and the warning."""

import json
import re
import subprocess
import sys

import pytest
import torch

from advisor.execute import run_plan
from advisor.report import write_run_report
from advisor.report.measured import measured
from advisor.verify import check_prompts
from backends.huggingface import wrap
from backends.onnx.export import export
from backends.store import Store
from knowledge.layers import ModelInfo
from knowledge.values import Budget, Drop, InputError, Plan, Workload

DECODING = {
    "prompt_tokens": 128,
    "batch": 1,
    "new_tokens": 16,
    "baseline": {"time_to_first_token_ms_p50": 250.0, "tokens_per_second_p50": 93.0},
    "compressed": {"time_to_first_token_ms_p50": 260.0, "tokens_per_second_p50": 218.4},
    "first_token_speedup": {"value": 0.96, "low": 0.95, "high": 0.98},
    "decoding_speedup": {"value": 2.35, "low": 2.31, "high": 2.38},
}
FIRST = "| first token, prompt 128, batch 1 | 250 ms | 260 ms | 0.960× faster (95 %: 0.950 to 0.980×) |"
REST = "| tokens per second, prompt 128, batch 1 | 93.0 | 218 | 2.35× faster (95 %: 2.31 to 2.38×) |"


@pytest.fixture
def decoded(run_json):
    run_json["verification"]["decoding"] = [DECODING]
    return run_json


def test_both_figures_stand_in_every_report(tmp_path, decoded):
    write_run_report(tmp_path, decoded)
    for name in ("report.md", "artifact/README.md"):
        text = (tmp_path / name).read_text()
        assert FIRST in text
        assert REST in text
    page = (tmp_path / "report.html").read_text()
    assert "tokens per second, prompt 128, batch 1" in page
    assert "2.35× faster" in page


def test_a_verification_of_an_earlier_version_is_still_shown(run_json):
    assert not [row for row in measured(run_json["verification"]) if "token" in row.figure]


def test_the_code_on_the_card_writes_what_torch_writes(tmp_path, decoded):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_layer=1, n_embd=32, n_head=2, n_positions=32, tie_word_embeddings=False)
    module = GPT2LMHeadModel._from_config(config, attn_implementation="eager").eval()
    for weight in (module.transformer.wte.weight, module.transformer.wpe.weight, module.lm_head.weight):
        torch.nn.init.normal_(weight)  # the library's own start repeats one token
    write_run_report(tmp_path, decoded)
    export(
        wrap(module, "tests:gpt2", "causal-lm", None, None), tmp_path / "artifact" / "model.onnx", Workload(seq_len=8)
    )
    card = (tmp_path / "artifact" / "README.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", card, re.S))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "artifact", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = [int(n) for n in re.findall(r"\d+", done.stdout[done.stdout.index("[[") :])]
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "use_cache": True}
    expected = module.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=20, min_new_tokens=20, **options)
    assert written == expected[0].tolist()
    assert len(set(written)) > 3


def test_a_card_without_decoding_says_nothing_of_caches(tmp_path, run_json):
    write_run_report(tmp_path, run_json)
    assert "cache" not in (tmp_path / "artifact" / "README.md").read_text()


@pytest.mark.parametrize(
    ("task", "prompts", "batches", "words"),
    [
        ("causal-lm", (250,), (), "prompt-length: 250: m has 256 positions, and 16 .* ask for 240 or fewer"),
        ("embedding", (8,), (), "prompt-length: 8: m writes no text"),
        ("image-classification", (), (4,), "batch: 4: m writes no text"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused(task, prompts, batches, words):
    info = ModelInfo("m", "transformer", task, max_length=256)
    with pytest.raises(InputError, match=words):
        check_prompts(prompts, batches, info)
    check_prompts((240,), (1, 8), ModelInfo("m", "transformer", "causal-lm", max_length=256))
    check_prompts((), (), info)


def test_a_run_without_a_cache_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("backends.onnx.export.cached", lambda model: "the test wants none")
    plan = Plan(
        model="zoo:stdlib-gpt2",
        task="causal-lm",
        target="server-cpu",
        workload=Workload(seq_len=16, threads=1),
        budget=Budget(max_drop=Drop(amount=50, unit="%")),
        stages=(),
    )
    run_plan(plan, tmp_path / "run", store=Store(tmp_path / "store"))
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [w["rule"] for w in run["warnings"]] == ["no-key-value-cache"]
    assert run["verification"]["decoding"] == []
    assert (
        "exported without a key-value cache, because the test wants none"
        in (tmp_path / "run" / "report.md").read_text()
    )
    assert "the uncompressed file has no key-value cache, and the compressed file" in (
        (tmp_path / "run" / "report.html").read_text()
    )

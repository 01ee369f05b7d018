"""Training the language models: the schedule, and that a written folder is what was trained."""

import numpy as np
import pytest
import torch

from backends.models import load
from backends.zoo import stdlib, train


def test_rate_warms_up_and_falls_to_two_percent():
    assert train.rate(0.0, 0) == pytest.approx(1 / train.WARM_UP)
    assert train.rate(0.0, train.WARM_UP) == pytest.approx(1.0)
    assert train.rate(1.0, 10_000) == pytest.approx(0.02)
    rates = [train.rate(p, 10_000) for p in np.linspace(0, 1, 20)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("name", ["stdlib-gpt2", "stdlib-moe"])
def test_a_trained_folder_loads_as_a_language_model(tmp_path, monkeypatch, name):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(stdlib.WEIGHTS / "stdlib-lm" / "tokenizer.json"))
    monkeypatch.setitem(train.STEPS, name, 3)
    monkeypatch.setattr(stdlib, "tokens", lambda *args, **options: np.arange(4000) % 1000)
    value = train.train(name, tmp_path, tokenizer, None)
    assert value < 3000
    model = load(str(tmp_path))
    assert model.info.task == "causal-lm"
    assert (model.info.family == "moe") == (name == "stdlib-moe")
    ids = torch.arange(128)[None]
    with torch.no_grad():
        loss = train.shifted_loss(model.forward({"input_ids": ids, "attention_mask": torch.ones_like(ids)}), ids)
    assert float(loss) < 8
    assert model.tokenizer.pad_token == stdlib.PAD


def test_matrices_decay_and_vectors_do_not():
    decays = {len(g["params"]): g["weight_decay"] for g in train.optimizer(torch.nn.LayerNorm(4), 1e-3).param_groups}
    assert decays == {0: 0.1, 2: 0.0}


def test_resuming_starts_from_the_written_weights(tmp_path, monkeypatch):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(stdlib.WEIGHTS / "stdlib-lm" / "tokenizer.json"))
    monkeypatch.setattr(stdlib, "tokens", lambda *args, **options: np.arange(4000) % 7)
    monkeypatch.setitem(train.STEPS, "stdlib-moe", 12)
    first = train.train("stdlib-moe", tmp_path, tokenizer, None)
    monkeypatch.setitem(train.STEPS, "stdlib-moe", 0)
    assert train.train("stdlib-moe", tmp_path, tokenizer, None, resume=True) == pytest.approx(first, rel=1e-2)
    assert train.train("stdlib-moe", tmp_path, tokenizer, None) > 2 * first

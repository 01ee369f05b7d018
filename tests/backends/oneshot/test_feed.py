"""How many calibration samples pass a block at once follows from the memory that they take."""

import pytest
import torch
from torch import nn

from backends.oneshot.engine import BEFORE_SHARE
from backends.oneshot.feed import COPIES, SHARE, held_bytes, layers_width, scores_width, windows_at_once
from backends.oneshot.methods import sparsegpt_method, wanda_method
from backends.oneshot.parts import Parts
from backends.oneshot.run import calibration_batches
from backends.oneshot.stream import _heads
from backends.zoo.catalog import load_zoo, zoo_data

GIGABYTE = 2**30


@pytest.fixture
def sparsegpt():
    return sparsegpt_method(lambda path: 0.5)


@pytest.fixture(autouse=True)
def sixteen_gigabytes(monkeypatch):
    monkeypatch.setattr("backends.oneshot.feed.memory_of", lambda devices: 16 * GIGABYTE)


def held(windows, length, widest):
    return 4 * COPIES * windows * length * widest


def test_all_pass_at_once_where_they_fit(sparsegpt):
    assert windows_at_once(8, 128, 1024, sparsegpt) == 8


def test_the_widest_activation_sets_the_number(sparsegpt):
    found = windows_at_once(10_000, 2048, 8192, sparsegpt)
    assert held(found, 2048, 8192) <= SHARE * 16 * GIGABYTE < held(found + 1, 2048, 8192)


@pytest.mark.parametrize(("tokens", "length"), [(2048, 2048), (197, 3 * 224 * 224)])
def test_scores_take_what_pairs_of_tokens_take(tokens, length):
    """Of a text, and of an image, whose places are not its tokens."""
    exact = 12 * tokens * tokens
    assert exact - length < scores_width(12, tokens, length) * length <= exact


@pytest.mark.parametrize(("name", "expected"), [("digits-vit", (16, 64)), ("stdlib-gpt2", (12, 12))])
def test_an_image_has_fewer_tokens_than_places(name, expected, small, sparsegpt, monkeypatch):
    seen = []
    monkeypatch.setattr("backends.oneshot.run.scores_width", lambda heads, *sizes: seen.append((heads, sizes)) or 1)
    model = load_zoo(name)
    split = zoo_data(name, 0).calibration.head(4) if name.startswith("digits") else small.split(model, count=4)
    calibration_batches(model, small.context(model, split), sparsegpt)
    assert seen == [(model.info.heads, expected)]


def test_what_is_held_leaves_less(sparsegpt):
    free = windows_at_once(10_000, 2048, 8192, sparsegpt)
    half = windows_at_once(10_000, 2048, 8192, sparsegpt, held=8 * GIGABYTE)
    assert half == free // 2
    assert (
        1 <= windows_at_once(10_000, 128, 8192, sparsegpt, held=99 * GIGABYTE) <= free
    )  # some is free, whatever is said


def test_weights_and_a_hessian_are_held_in_float32():
    assert held_bytes([torch.ones(3, 5, dtype=torch.bfloat16), torch.ones(7)]) == 4 * (15 + 7)
    assert held_bytes([], hessian_width=10) == 4 * 5 * 100


def test_experts_get_copies_of_what_is_sent_to_them(small):
    """Mixtral's experts are stacked: [experts, 2 · inner, hidden] and [experts, hidden, inner]."""
    config = small.transformer("mixtral", hidden=32, blocks=1).module.config
    blocks = small.transformer("mixtral", hidden=32, blocks=1).module.model.layers
    widest = max(2 * config.intermediate_size, config.hidden_size)
    assert layers_width(blocks, config.num_experts_per_tok) == config.num_experts_per_tok * widest
    assert layers_width(small.transformer("llama", hidden=32, blocks=1).module.model.layers, 0) > 32
    assert layers_width(nn.Sequential(nn.LayerNorm(8)), 0) == 1


def test_one_window_passes_however_long(sparsegpt):
    assert windows_at_once(4, 10**6, 8192, sparsegpt) == 1


def test_a_method_that_looks_at_a_share_of_the_batches_gets_several():
    assert windows_at_once(64, 128, 1024, wanda_method(lambda path: 0.5)) == -(-64 // BEFORE_SHARE)


def test_the_model_s_heads_count_on_gpus_alone(small, tmp_path):
    """On the CPU no scores are held."""
    small.transformer("llama", heads=4).module.save_pretrained(tmp_path)
    for device, heads in (("cpu", 0), ("cuda", 4)):
        assert _heads(Parts(tmp_path, [torch.device(device)])) == heads

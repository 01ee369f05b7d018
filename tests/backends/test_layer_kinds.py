"""Kinds of layers and models, and what a network that is no transformers model need not wait for."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from backends.layer_kinds import is_conv1d, is_dense, is_pretrained
from backends.sources import open_source
from backends.zoo import digits

NOTHING_SAID = {"task": None, "arch": None, "metric": "", "files": {}, "seed": 0}


class Named(nn.Module):
    """A layer of somebody else's that is called as GPT-2's."""


Named.__name__ = "Conv1D"


class Lora(Conv1D):
    """GPT-2's layer with more to it."""


@pytest.mark.parametrize(
    ("module", "dense", "conv1d"),
    [
        (nn.Linear(2, 3), True, False),
        (nn.MultiheadAttention(4, 2).out_proj, True, False),
        (Conv1D(2, 3), True, True),
        (Lora(2, 3), True, True),
        (Named(), False, False),
        (nn.Conv1d(2, 3, 1), False, False),
        (nn.Embedding(2, 3), False, False),
    ],
)
def test_dense_layers(module, dense, conv1d):
    assert is_dense(module) == dense
    assert is_conv1d(module) == conv1d


def test_models_of_the_library_and_their_parts():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16, n_positions=8))
    assert is_pretrained(model)
    assert is_pretrained(model.transformer)
    assert not is_pretrained(model.lm_head)
    assert not is_pretrained(nn.Sequential(model))


def test_a_network_of_one_s_own_waits_for_no_library_that_it_does_not_use():
    """It is loaded with its data, told from others, profiled, and ready to be changed and exported."""
    open_source("zoo:digits-vit", **NOTHING_SAID)  # trained here where nobody has asked for it before
    code = f"""
        import sys
        import backends.runner
        from backends.profile import profile
        from backends.sources import open_source

        source = open_source("zoo:digits-vit", **{NOTHING_SAID})
        assert "linear" in profile(source.model).kind
        assert source.data.calibration
        print([m for m in ("transformers", "sklearn", "scipy", "torch._dynamo", "optuna") if m in sys.modules])
    """
    got = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert got.stdout == "[]\n"


@pytest.mark.parametrize("moved", [False, True])
def test_digits_are_scikit_learn_s_wherever_their_file_lies(moved, monkeypatch):
    from sklearn.datasets import load_digits

    if moved:
        monkeypatch.setattr(digits, "find_spec", lambda _: None)
    rows, theirs = digits._digits(), load_digits()
    np.testing.assert_array_equal(rows[:, :-1], theirs.data)
    np.testing.assert_array_equal(rows[:, -1], theirs.target)

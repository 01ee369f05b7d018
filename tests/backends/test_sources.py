"""The key of a run changes with everything that decides its results."""

import copy
import importlib
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from backends.models import load
from backends.sources import Source, open_source
from backends.tasks import task_for

FACTORY = """
import numpy as np
from torch import nn
from torch.nn.functional import gelu, relu

class Net(nn.Module):
    task = "image-classification"

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(144, 10)
        for p in self.parameters():
            nn.init.constant_(p, 0.1)

    def forward(self, x):
        return self.fc(relu(self.stem(x)).flatten(1))

def make():
    return Net(), {"pixels": np.zeros((2, 1, 8, 8), np.float32)}

def score(outputs, labels):
    return float((outputs.argmax(1) == labels).mean())
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    """Write the user's module and open a source with its factory and metric, freshly imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    np.savez("eval.npz", pixels=np.zeros((20, 1, 8, 8), np.float32), labels=np.arange(20) % 10)

    def opened(text: str, name: str = "users_own:make", metric: str = "users_own:score") -> Source:
        (tmp_path / "users_own.py").write_text(text)
        sys.modules.pop("users_own", None)
        importlib.invalidate_caches()
        files = {"eval": "eval.npz"}
        return open_source(name, task=None, arch=None, metric=metric, files=files, seed=0, allow_code=True)

    yield opened
    sys.modules.pop("users_own", None)


def test_the_same_source_opened_twice_is_the_same(code):
    first, second = code(FACTORY), code(FACTORY)
    assert (first.fingerprint, first.identity) == (second.fingerprint, second.identity)


def test_an_edited_factory_is_another_source_though_its_weights_are_the_same(code):
    first, second = code(FACTORY), code(FACTORY.replace("relu(self.stem", "gelu(self.stem"))
    assert first.fingerprint == second.fingerprint
    assert first.identity != second.identity


def test_an_edited_metric_of_another_model_is_another_source(code):
    edited = FACTORY.replace("(outputs.argmax(1) == labels)", "(outputs.argmax(1) != labels)")
    first, second = (code(text, "zoo:digits-cnn").identity for text in (FACTORY, edited))
    assert first != second


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=2
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_an_edited_configuration_is_another_source_though_its_weights_are_the_same(bert):
    def opened():
        model = load(str(bert))
        return Source(str(bert), model.info, model.inputs, None, task_for(model.info.task), model=model)

    first = opened()
    assert opened().identity == first.identity
    file = bert / "config.json"
    file.write_text(file.read_text().replace('"gelu"', '"relu"'))
    second = opened()
    assert first.fingerprint == second.fingerprint
    assert first.identity != second.identity


def test_facts_and_the_device_are_part_of_the_key(code):
    source = code(FACTORY)
    assert source.identity["device"] == "cpu"
    elsewhere = replace(source.model, module=copy.deepcopy(source.model.module).to("meta"))
    assert replace(source, model=elsewhere).identity["device"] == "meta"
    assert replace(source, info=replace(source.info, classes=7)).identity != source.identity

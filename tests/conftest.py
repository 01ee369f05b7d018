"""Tests neither read nor write the user's own configuration and evidence; what tests of bad input start from."""

import functools
import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

NUMBERS = itertools.count()
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: set before anything imports torch
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ADVISOR_DEVICE", "cpu")  # where tests put their inputs; those of GPUs name theirs
os.environ.pop("COLUMNS", None)  # outputs are compared: printed in the width of a pipe


def pytest_collection_modifyitems(items):
    """The long files in this folder first, so that no worker is left alone with one in the end."""
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.parent != here)


@pytest.fixture(autouse=True, scope="session")
def session_configuration(tmp_path_factory):
    """Where no module's is set yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVISOR_CONFIG", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(autouse=True, scope="module")
def module_configuration(session_configuration):
    """Of fixtures that a module's tests share: what they measure moves no other module's estimates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVISOR_CONFIG", f"{os.environ['ADVISOR_CONFIG']}/{next(NUMBERS)}")
        yield


@pytest.fixture(autouse=True)
def fresh_configuration(module_configuration, monkeypatch):
    """What one test's runs measure moves no other test's estimates."""
    monkeypatch.setenv("ADVISOR_CONFIG", f"{os.environ['ADVISOR_CONFIG']}/{next(NUMBERS)}")


@pytest.fixture(scope="session")
def stages(tmp_path_factory):
    """Results that tests of all modules and workers share."""
    from backends.store import Store

    base = tmp_path_factory.getbasetemp()
    return Store((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "stages")


@pytest.fixture(scope="session")
def embedded(stages):
    """A function from an embedded model's name to its pipeline: the model is exported once."""
    from backends.runner import Pipeline
    from knowledge.values import Workload

    @functools.cache
    def get(name):
        workload = Workload() if name.startswith("digits-") else Workload(seq_len=64)
        return Pipeline.open(f"zoo:{name}", workload=workload, seed=0, store=stages)

    return get


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """A small classifier (1.8 MB) as a Hugging Face folder with a tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=4000, hidden_size=96, num_hidden_layers=1, num_attention_heads=2, intermediate_size=96, num_labels=2
    )
    BertForSequenceClassification(config).save_pretrained(path)
    words = {w: n for n, w in enumerate(["[UNK]", "[PAD]", "good", "bad", "day"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(path)
    return path


@pytest.fixture
def model(bert, folder):
    """A private copy of the classifier, to be broken."""
    shutil.copytree(bert, folder / "model")
    return folder / "model"


@pytest.fixture
def digits():
    """Samples for networks of 8 × 8 pixels."""
    rng = np.random.default_rng(0)
    np.savez("digits.npz", pixels=rng.normal(size=(40, 1, 8, 8)).astype(np.float32), labels=np.arange(40) % 10)
    return {"eval": "digits.npz"}

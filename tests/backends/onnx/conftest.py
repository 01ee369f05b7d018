"""Small models exported once for all tests of this folder."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from backends.data import Data
from backends.onnx.export import export
from backends.onnx.session import open_session, session_predictor
from backends.zoo.catalog import load_zoo, zoo_data
from knowledge.deploy import deployed
from knowledge.values import Workload

WORKLOAD = Workload(seq_len=12, threads=1)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """kind -> the exported file of a small model; made on first use."""
    return {"folder": tmp_path_factory.mktemp("exported")}


def transformer(small, kind, **sizes):
    """Two blocks, a table large enough to quantize, and norms that differ: exporters store equal ones once."""
    model = small.transformer(kind, **({"blocks": 2, "hidden": 64, "ffn": 256, "vocab": 512} | sizes))
    with torch.no_grad():
        for p in model.module.parameters():
            if p.dim() == 1:
                p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.fixture
def exported(small, files):
    """A function from a kind of model to (model, file, context, split)."""

    def get(kind, **sizes):
        model = getattr(small, kind)(**sizes) if kind in ("cnn", "lstm") else transformer(small, kind, **sizes)
        key = f"{kind}{sorted(sizes.items())}"
        if key not in files:
            files[key] = files["folder"] / f"{len(files)}.onnx"
            export(model, files[key], WORKLOAD)
        split = small.split(model)
        context = small.context(model, split)
        changes = {"layers": deployed(context.layers), "workload": WORKLOAD, "data": Data(split, split, split, split)}
        context = dataclasses.replace(context, **changes)
        return SimpleNamespace(model=model, path=files[key], context=context, split=split)

    return get


@pytest.fixture
def zoo(small, embedded):
    """A function from a trained model's name to (model, file, context, a small batch)."""

    def get(name):
        pipeline = embedded(name)
        assert pipeline.baseline.warnings == ()
        model, path = load_zoo(name), pipeline.file(pipeline.baseline)
        split = zoo_data(name, 0).search.head(2)
        context = dataclasses.replace(small.context(model, split), workload=WORKLOAD)
        context = dataclasses.replace(context, layers=deployed(context.layers))
        batch = {key: array[:, :12] for key, array in split.inputs.items()}
        return SimpleNamespace(model=model, path=path, context=context, batch=batch)

    return get


@pytest.fixture
def outputs():
    """A function from a file and a split to the file's outputs on the split in one batch."""

    def run(path, split):
        return session_predictor(open_session(path, 1))(dict(split.inputs))

    return run

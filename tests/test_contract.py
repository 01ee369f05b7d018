"""One contract for every technique: the table that `effect` gives with the decision is the profile of the real result.

The quick half runs one model per technique; the whole matrix is marked `full` (make test-full).
"""

import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from advisor.profile import profile_source
from advisor.readiness import runnable
from backends.executors import EXECUTORS, executor
from backends.models import predictor
from backends.onnx.session import open_session, session_predictor
from backends.onnx.weights import weight_bytes
from backends.profile import profile
from backends.runner import Pipeline
from backends.store import Store
from backends.structure import load_checkpoint
from knowledge.deploy import deployed
from knowledge.techniques.base import Level
from knowledge.techniques.catalog import CATALOG, build
from knowledge.values import InputError, Stage

MODELS = (
    "digits-cnn", "digits-dwcnn", "digits-lstm", "digits-vit",
    "stdlib-lm", "stdlib-lm-large", "stdlib-gpt2", "stdlib-moe", "minilm",
)  # fmt: skip
RUNNABLE = tuple(name for name in CATALOG if name in runnable())
QUICK = {
    "distill": "digits-vit",
    "channels": "digits-cnn",
    "layer_drop": "stdlib-gpt2",
    "svd": "digits-vit",
    "magnitude": "digits-dwcnn",
    "wanda": "stdlib-moe",
    "sparsegpt": "stdlib-gpt2",
    "finetune": "digits-lstm",
    "fp16": "digits-vit",
    "int8_dynamic": "minilm",
    "int8_static": "digits-cnn",
    "weight_only": "stdlib-lm",
    "gptq": "stdlib-gpt2",
    "awq": "stdlib-lm",
    "nf4": "stdlib-gpt2",
    "mixed_precision": "digits-cnn",
    "experts_int4": "stdlib-moe",
    "graph_fusion": "stdlib-lm",
}
# no training of larger models: the contract is about structure, and quality has tests of its own
PARAMS = {
    "distill": {"epochs": 0, "compression": 2.0},
    "finetune": {"epochs": 0},
    "gptq": {"accuracy_level": 0},  # other levels round activations, which torch does not
    "awq": {"accuracy_level": 0},
}
TRAINED = {"distill", "finetune"}
TRAINING_SAMPLES = 256  # one epoch of the digits models
# why a technique says no to a model, by the rule it names; of all others it is a failure to say no
NOT_FOR = {
    "channels": ("digits-lstm", "digits-vit", "stdlib-lm", "stdlib-lm-large", "stdlib-gpt2", "stdlib-moe", "minilm"),
    "layer_drop": ("digits-cnn", "digits-dwcnn", "digits-lstm"),
    "svd": ("digits-cnn", "digits-dwcnn", "digits-lstm"),
    "int8_dynamic": ("digits-cnn", "digits-dwcnn"),
    "wanda": ("digits-lstm",),
    "sparsegpt": ("digits-lstm",),
    "weight_only": ("digits-cnn", "digits-dwcnn", "digits-lstm"),
    "gptq": ("digits-cnn", "digits-dwcnn", "digits-lstm"),
    "awq": ("digits-cnn", "digits-dwcnn", "digits-lstm"),
    "nf4": ("digits-cnn", "digits-dwcnn", "digits-lstm"),
    "experts_int4": tuple(name for name in MODELS if name != "stdlib-moe"),
}
EXPECTED_REFUSED = {(name, model): "technique-architecture" for name, models in NOT_FOR.items() for model in models} | {
    ("distill", "minilm"): "distill-too-small"  # half of it is the vocabulary
}


@pytest.fixture(scope="module")
def pipelines(embedded):
    @cache
    def get(name: str) -> Pipeline:
        whole = embedded(name)
        data = replace(whole.source.data, train=whole.source.data.train.head(TRAINING_SAMPLES))
        return Pipeline(replace(whole.source, data=data), whole.workload, whole.seed, whole.store)

    return get


def technique(name: str, model: str):
    trained = {"epochs": 1} if name in TRAINED and model.startswith("digits-") else {}
    return build(Stage(technique=name, params=PARAMS.get(name, {}) | trained))


def pairs():
    for name in RUNNABLE:
        for model in MODELS:
            marks = [] if QUICK[name] == model else [pytest.mark.full]
            if (name, model) not in EXPECTED_REFUSED:
                yield pytest.param(name, model, marks=marks, id=f"{name}-{model}")


def test_every_executor_imports_and_what_has_none_is_refused_by_name():
    assert {cls.id for cls in EXECUTORS} <= set(CATALOG)
    for cls in CATALOG.values():
        if cls in EXECUTORS:
            assert callable(executor(cls))
        else:
            with pytest.raises(InputError, match=rf"^stages: {cls.id}: cannot be run yet; .*leave this stage out$"):
                executor(cls)


def test_a_chain_that_cannot_be_run_to_its_end_is_refused_before_it_starts(pipelines):
    chain = [build(Stage(technique=name)) for name in ("magnitude", "qat")]
    with pytest.raises(InputError, match="stages: qat: cannot be run yet; take fp16 or int8_dynamic or int8_static"):
        next(pipelines("digits-cnn").run(chain))


def test_the_quick_half_covers_every_technique_and_refuses_nothing():
    assert set(QUICK) == set(RUNNABLE)
    assert not set(QUICK.items()) & set(EXPECTED_REFUSED)
    assert all(QUICK[name].startswith("digits-") for name in TRAINED)  # so that training is part of it


@pytest.mark.parametrize(("name", "model"), [(n, m) for n in RUNNABLE for m in MODELS])
def test_a_technique_refuses_the_models_it_should_and_no_others(name, model):
    refusals = list(technique(name, model).refusals(profile_source(f"zoo:{model}")))
    expected = EXPECTED_REFUSED.get((name, model))
    assert [r.rule for r in refusals] == ([expected] if expected else [])
    assert all(r.observed and r.required for r in refusals)


@pytest.mark.parametrize("model", MODELS)
def test_every_technique_says_yes_or_why_not_to_every_embedded_model(model):
    layers = profile_source(f"zoo:{model}")
    for cls in CATALOG.values():
        refusals = list(cls().refusals(layers))
        assert all(r.technique == cls.id and r.observed and r.required for r in refusals)
        if not refusals:
            after = cls().effect(layers)
            assert after.parameters <= layers.parameters
            assert after.stored_bytes <= layers.stored_bytes


@pytest.mark.parametrize(("name", "model"), pairs())
def test_effect_equals_the_profile_of_the_real_result(name, model, pipelines):
    pipeline, chosen = pipelines(model), technique(name, model)
    assert not list(chosen.refusals(pipeline.original_layers))
    records = list(pipeline.run([chosen]))
    assert [w for r in records for w in r.warnings] == []  # parameters and MACs exactly, by the runner's own check
    last = records[-1]
    stored = last.layers.stored_bytes
    assert stored == pytest.approx(weight_bytes(pipeline.file(last)), rel=0.01)
    if chosen.level is Level.MODEL:
        stage = records[0]
        expected = chosen.effect(pipeline.original_layers, stage.decision)
        rebuilt = load_checkpoint(pipeline.folder(stage))
        real = profile(rebuilt, pipeline.workload)
        assert (expected.parameters, expected.macs) == (real.parameters, real.macs)
        assert deployed(expected).stored_bytes == pytest.approx(weight_bytes(pipeline.file(last)), rel=0.01)
        split = pipeline.source.data.search.head(8)
        batch = next(iter(split.batches(8)))
        in_file = session_predictor(open_session(pipeline.file(last), 1))(batch)
        np.testing.assert_allclose(in_file, predictor(rebuilt)(batch), atol=2e-3)


@pytest.mark.parametrize("name", sorted(n for n in RUNNABLE if n != "graph_fusion"))
def test_the_same_seed_gives_the_same_bytes(name, pipelines, tmp_path):
    first, chosen = pipelines(QUICK[name]), technique(name, QUICK[name])
    again = Pipeline(first.source, first.workload, first.seed, Store(tmp_path))
    export = first.folder(first.baseline)  # which has a test of its own
    shutil.copytree(export, tmp_path / export.name)
    files = []
    for pipeline in (first, again):
        torch.rand(3)  # a stage must not depend on where the global generator stands
        *stages, last = pipeline.run([chosen])
        if name in TRAINED:
            assert stages[0].decision.curve  # there were steps, not only the same start
        files.append(pipeline.file(last).read_bytes())
    assert files[0] == files[1]

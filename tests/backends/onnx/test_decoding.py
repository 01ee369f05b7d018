"""One file reads a prompt and writes on, with a cache that changes no number; how fast it does is measured."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from backends.models import LoadedModel
from backends.onnx import fp16, fusion, int8_dynamic, int8_static
from backends.onnx import graph as graphs
from backends.onnx.cache import cached
from backends.onnx.decoding import compare_decoding, greedy, measure_decoding, undecodable
from backends.onnx.export import export
from backends.onnx.export_checks import check_cache
from backends.onnx.session import completed, open_session
from backends.onnx.verify import verify
from backends.onnx.weights import weight_bytes
from backends.profile_onnx import profile_onnx
from backends.tasks import task_for
from knowledge.techniques.fuse import GraphFusion
from knowledge.techniques.quantize import Fp16, Int8Dynamic, Int8Static
from knowledge.values import Budget, Drop, InputError, Ratio, RunFailed, Workload

WORKLOAD = Workload(seq_len=12, threads=1)
BUDGET = Budget(max_drop=Drop(amount=1000, unit="%"))


def generated(model, ids, mask, count):
    """What transformers writes, greedily."""
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "use_cache": True}
    tensors = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    with torch.no_grad():
        found = model.module.generate(**tensors, max_new_tokens=count, min_new_tokens=count, **options)
    return found[:, ids.shape[1] :].numpy()


def texts(model, batch, length, seed=0):
    """Random texts; every one but the first is padded in front."""
    ids = np.random.default_rng(seed).integers(1, model.info.vocab_size, (batch, length))
    mask = np.ones_like(ids)
    mask[1:, : length // 3] = 0
    return ids, mask


def cross_layers(model):
    """Let the second block read the first one's cached keys."""
    first, second = (next(v for v in model.graph.inputs if v.name == f"past_key_values.{n}.key") for n in (0, 1))
    node, slot = next((node, slot) for node, slot in second.uses() if node.op_type == "Concat")
    node.replace_input_with(slot, first)


# -- the same tokens -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stdlib-lm", "stdlib-gpt2"])
def test_greedy_tokens_are_those_of_generate(zoo, name):
    model, session = zoo(name).model, open_session(zoo(name).path, 1)
    for batch, length, chunk in ((1, 1, None), (3, 9, None), (2, 17, 5)):
        ids, mask = texts(model, batch, length)
        found = greedy(session, ids, 32, mask, chunk)
        np.testing.assert_array_equal(found, generated(model, ids, mask, 32), err_msg=f"{batch} × {length}, {chunk}")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "opt"])
def test_every_decoder_gets_a_cache_and_writes_what_torch_writes(exported, kind):
    found = exported(kind)
    session = open_session(found.path, 1)
    assert undecodable(session) == ""
    ids, mask = texts(found.model, 3, 10)
    np.testing.assert_array_equal(greedy(session, ids, 12, mask), generated(found.model, ids, mask, 12))


def test_a_text_to_the_last_position_can_be_written(exported):
    found = exported("gpt2")
    ids, mask = texts(found.model, 1, 40)
    count = found.model.info.max_length - 40
    tokens = greedy(open_session(found.path, 1), ids, count, mask)
    np.testing.assert_array_equal(tokens, generated(found.model, ids, mask, count))
    with pytest.raises(RunFailed, match="decoding failed at token 65"):
        greedy(open_session(found.path, 1), ids, count + 2, mask)


# -- the file --------------------------------------------------------------------------------------


def test_inputs_and_outputs_are_called_as_tools_expect(exported):
    session = open_session(exported("llama").path, 1)
    inputs, outputs = ({v.name: v.shape for v in values} for values in (session.get_inputs(), session.get_outputs()))
    layers = [f"{n}.{part}" for n in (0, 1) for part in ("key", "value")]
    assert list(inputs) == ["input_ids", "attention_mask", *(f"past_key_values.{layer}" for layer in layers)]
    assert list(outputs) == ["logits", *(f"present.{layer}" for layer in layers)]
    assert inputs["attention_mask"] == ["batch", "total"]
    assert inputs["past_key_values.1.key"] == ["batch", 2, "past", 16]  # two key-value groups
    assert outputs["present.1.value"] == ["batch", 2, "total", 16]


def test_the_cache_adds_no_weights_and_the_table_stays(exported, small, tmp_path, monkeypatch):
    for kind in ("llama", "gpt2", "mixtral"):
        found = exported(kind)
        monkeypatch.setattr("backends.onnx.export.cached", lambda model: "the test wants none")
        plain = tmp_path / f"{kind}.onnx"
        export(found.model, plain, WORKLOAD)
        monkeypatch.undo()
        weights = [sorted((i.name, tuple(i.dims)) for i in onnx.load(path).graph.initializer if "." in i.name)
                   for path in (plain, found.path)]  # fmt: skip
        assert weights[0] == weights[1]
        assert weight_bytes(found.path) == pytest.approx(weight_bytes(plain), abs=200)
        tables = [profile_onnx(path, WORKLOAD) for path in (plain, found.path)]
        assert tables[0].parameters == pytest.approx(tables[1].parameters, abs=20)
        assert tables[0].macs == tables[1].macs
        for field in ("task", "family", "seq_len", "image_size", "max_length"):
            assert getattr(tables[0].info, field) == getattr(tables[1].info, field)


def test_a_cache_that_computes_something_else_is_found(exported, tmp_path):
    found = exported("gpt2")
    model = graphs.load(found.path)
    cross_layers(model)
    graphs.save(model, tmp_path / "crossed.onnx")
    batch = {name: array[:3] for name, array in found.split.inputs.items()}
    check_cache(found.path, batch)
    with pytest.raises(RunFailed, match="with a cache, the logits differ"):
        check_cache(tmp_path / "crossed.onnx", batch)


def test_an_empty_cache_is_fed_where_there_is_none(exported):
    found = exported("llama")
    session = open_session(found.path, 1)
    feed = completed(found.split.inputs, session)
    assert feed["past_key_values.0.key"].shape == (40, 2, 0, 16)
    assert set(completed({"pixels": np.zeros((2, 1, 8, 8), np.float32)}, open_session(exported("cnn").path, 1))) == {
        "pixels"
    }
    with pytest.raises(InputError, match="attention_mask"):
        completed({"input_ids": found.split.inputs["input_ids"]}, session)


# -- models without a cache ------------------------------------------------------------------------


class Bigram(nn.Module):
    """A language model of somebody's own."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(64, 16), nn.Linear(16, 64)

    def forward(self, input_ids):
        return self.head(self.table(input_ids))


def test_a_model_without_a_cache_is_exported_with_a_warning(small, tmp_path):
    llama = small.transformer("llama", blocks=1)
    info = dataclasses.replace(llama.info, max_length=0)
    model = LoadedModel(Bigram().eval(), info, llama.inputs[:1], "tensor", "tests:bigram")
    (warning,) = export(model, tmp_path / "m.onnx", WORKLOAD)
    assert warning.rule == "no-key-value-cache"
    assert "Bigram takes no past_key_values" in warning.text
    assert undecodable(open_session(tmp_path / "m.onnx", 1)) == "has no key-value cache"


def test_a_cache_that_does_not_export_leaves_the_plain_file_and_a_warning(small, tmp_path, monkeypatch):
    def other(self, *args, **more):
        raise RuntimeError("no such step")

    model = small.transformer("llama", blocks=1)
    monkeypatch.setattr("backends.onnx.cache.Cached.forward", other)
    (warning,) = export(model, tmp_path / "m.onnx", WORKLOAD)
    assert "no such step" in warning.observed
    assert undecodable(open_session(tmp_path / "m.onnx", 1))


def test_states_of_other_kinds_are_no_cache(tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    from backends.huggingface import wrap

    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4)
    model = wrap(MambaForCausalLM(config).eval(), "tests:mamba", "causal-lm", None, None)
    assert "takes no past_key_values" in cached(model)


def test_only_causal_models_are_warned_of(exported, small, tmp_path):
    assert export(small.transformer("bert", blocks=1), tmp_path / "m.onnx", WORKLOAD) == ()


# -- techniques on such files ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("executor", "technique", "agreement"),
    [(fp16, Fp16(), 0.99), (int8_dynamic, Int8Dynamic(), 0.8), (int8_static, Int8Static(), 0.8)],
)
def test_what_changes_files_keeps_the_cache(exported, outputs, tmp_path, kind, executor, technique, agreement):
    found = exported(kind)
    out = tmp_path / "out.onnx"
    executor.apply(technique, found.path, out, found.context)
    before, after = open_session(found.path, 1), open_session(out, 1)
    assert [(v.name, v.shape, v.type) for v in before.get_inputs()] == [
        (v.name, v.shape, v.type) for v in after.get_inputs()
    ]
    assert undecodable(after) == ""
    same = outputs(out, found.split).argmax(-1) == outputs(found.path, found.split).argmax(-1)
    assert same.mean() > agreement
    if executor is fp16:
        check = {name: array[:3] for name, array in found.split.inputs.items()}
        whole = greedy(after, check["input_ids"], 6)
        np.testing.assert_array_equal(whole, greedy(after, check["input_ids"], 6, chunk=5))


@pytest.mark.parametrize("quantized", [False, True])  # ranges of a part's activations are not those of the whole
def test_fusions_keep_the_cache_and_the_tokens(exported, tmp_path, monkeypatch, quantized):
    found = exported("llama")
    path = found.path
    if quantized:
        path = tmp_path / "int8.onnx"
        int8_dynamic.apply(Int8Dynamic(), found.path, path, found.context)
    monkeypatch.setattr(fusion, "compare_files", lambda *a: (None, None, Ratio(value=1.2, low=1.1, high=1.4)))
    out = tmp_path / "out.onnx"
    assert fusion.apply(GraphFusion(), path, out, found.context).kept
    ids, mask = texts(found.model, 2, 9)
    expected = greedy(open_session(path, 1), ids, 12, mask)
    np.testing.assert_array_equal(greedy(open_session(out, 1), ids, 12, mask), expected)


def test_a_fusion_that_reads_the_cache_wrongly_is_refused(exported, tmp_path, monkeypatch):
    def crossed(path, out):
        model = graphs.load(path)
        cross_layers(model)
        graphs.save(model, out)

    found = exported("gpt2")
    monkeypatch.setattr(fusion, "CANDIDATES", {"crossed": crossed})
    decision = fusion.apply(GraphFusion(), found.path, tmp_path / "out.onnx", found.context)
    assert not decision.kept
    assert "behind cached tokens, outputs change by" in decision.skipped[0].observed


# -- how fast --------------------------------------------------------------------------------------


def test_a_smaller_model_writes_faster(exported, zoo):
    fast, slow = exported("llama"), zoo("stdlib-lm")
    prompts = texts(fast.model, 1, 24)[0]
    found = compare_decoding(slow.path, fast.path, prompts, 1, new_tokens=8)
    assert (found.prompt_tokens, found.batch, found.new_tokens) == (24, 1, 8)
    assert found.baseline.tokens_per_second_p50 < found.compressed.tokens_per_second_p50
    assert found.baseline.time_to_first_token_ms_p50 > found.compressed.time_to_first_token_ms_p50
    for ratio in (found.first_token_speedup, found.decoding_speedup):
        assert 1.2 < ratio.low <= ratio.value <= ratio.high


def test_prompts_and_batches_are_those_asked_for_within_the_model_s_reach(exported, monkeypatch):
    found = exported("gpt2")
    asked = []
    monkeypatch.setattr(
        "backends.onnx.decoding.compare_decoding", lambda a, b, ids, threads, new: asked.append((*ids.shape, new))
    )
    shape = Workload(batch=4, seq_len=60, threads=1)
    measure_decoding(found.path, found.path, found.split, shape, longest=64)
    measure_decoding(found.path, found.path, found.split, shape, prompts=(8, 20), batches=(2,))
    measure_decoding(found.path, found.path, found.split, Workload(threads=1), longest=10)
    assert asked == [(1, 48, 16), (4, 48, 16), (2, 8, 16), (2, 20, 16), (1, 1, 9)]


def test_a_verification_tells_tokens_per_second(exported, tmp_path):
    found = exported("llama")
    out = tmp_path / "int8.onnx"
    int8_dynamic.apply(Int8Dynamic(), found.path, out, found.context)
    task = task_for("causal-lm")
    common = {"task": task, "split": found.split, "reference": None, "workload": WORKLOAD, "budget": BUDGET}
    result = verify(found.path, out, **common, rounds=7, longest=64)
    (decoding,) = result.decoding
    assert (decoding.prompt_tokens, decoding.batch) == (12, 1)
    assert decoding.compressed.tokens_per_second_p50 > 0
    assert "no-key-value-cache" not in [e.rule for e in result.explanations]
    assert type(result).model_validate(result.model_dump(mode="json", by_alias=True)) == result


def test_a_verification_says_why_decoding_was_not_measured(exported, tmp_path, monkeypatch):
    found = exported("llama")
    monkeypatch.setattr("backends.onnx.export.cached", lambda model: "the test wants none")
    export(found.model, tmp_path / "plain.onnx", WORKLOAD)
    task = task_for("causal-lm")
    common = {"task": task, "split": found.split, "reference": None, "workload": WORKLOAD, "budget": BUDGET}
    result = verify(found.path, tmp_path / "plain.onnx", **common, rounds=7)
    assert result.decoding == ()
    assert [e.text for e in result.explanations if e.rule == "no-key-value-cache"] == [
        "Decoding was not measured: the compressed file has no key-value cache."
    ]

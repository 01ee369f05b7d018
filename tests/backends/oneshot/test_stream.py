"""Compression from shards to shards: the same numbers as in memory, on from where it was killed, refusals by name."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from backends.models import load
from backends.oneshot.methods import Method, Outcome, sparsegpt_method, wanda_method
from backends.oneshot.output import ACTIVATIONS
from backends.oneshot.parts import OUTSIDE, Parts
from backends.oneshot.progress import PROGRESS
from backends.oneshot.shards import Shards, stored, write_shard
from backends.oneshot.spill import moved
from backends.oneshot.stream import compress_folder
from backends.zoo.stdlib import token_windows
from knowledge.shards import INDEX
from knowledge.values import InputError

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
METHODS = {"sparsegpt": sparsegpt_method(lambda path: 0.5), "wanda": wanda_method(lambda path: 0.5)}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """The embedded language model in several shards."""
    path = tmp_path_factory.mktemp("zoo") / "stdlib-lm"
    load("zoo:stdlib-lm").module.save_pretrained(path, max_shard_size="2MB")
    return path


@pytest.fixture
def source(small, tmp_path):
    """Four blocks, 64 wide, in several shards."""
    path = tmp_path / "source"
    small.transformer("llama", hidden=64).module.save_pretrained(path, max_shard_size="60KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


@pytest.fixture
def ids():
    return torch.randint(64, (8, 16), generator=torch.Generator().manual_seed(0))


def stream(source, out, tokens, method="sparsegpt", **more):
    return compress_folder(source, out, tokens, lambda readers: METHODS[method], method, devices=[CPU], **more)


def tensors(folder):
    return {name: one for path in folder.glob("*.safetensors") for name, one in load_file(path).items()}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != PROGRESS}


def reference(source, tokens, method):
    """The same through the engine with the whole model in memory."""
    from transformers import AutoModelForCausalLM

    from benchmarks.one_shot import run

    module = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    run(module, tokens, {"sparsegpt": "sparsegpt-50", "wanda": "wanda-50"}[method])
    return module


@pytest.mark.parametrize("method", METHODS)
def test_a_streamed_model_equals_one_compressed_in_memory(zoo, tmp_path, monkeypatch, method):
    monkeypatch.syspath_prepend(str(ROOT))
    tokens = torch.from_numpy(token_windows("calibration", 3, 0).inputs["input_ids"])
    done = stream(zoo, tmp_path / "out", tokens, method)
    expected = reference(zoo, tokens, method).state_dict()
    found = tensors(tmp_path / "out")
    assert found.keys() == expected.keys()
    for name, one in found.items():
        torch.testing.assert_close(one, expected[name], atol=1e-6, rtol=1e-6, msg=name)
    assert done.blocks == 6
    assert [layer.fewest_tokens for layer in done.layers] == [3 * 128] * 42


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_half_precision_tied_weights_and_experts_keep_their_names_and_numbers(small, tmp_path, ids, monkeypatch, kind):
    monkeypatch.syspath_prepend(str(ROOT))
    module = small.transformer(kind).module.to(torch.bfloat16)
    module.save_pretrained(tmp_path / "source", max_shard_size="20KB")
    stream(tmp_path / "source", tmp_path / "out", ids)
    before, after = tensors(tmp_path / "source"), tensors(tmp_path / "out")
    assert {name: one.dtype for name, one in after.items()} == {name: one.dtype for name, one in before.items()}
    expected = reference(tmp_path / "source", ids, "sparsegpt")
    expected.to(torch.bfloat16).save_pretrained(tmp_path / "expected")
    for name, one in tensors(tmp_path / "expected").items():
        torch.testing.assert_close(after[name], one, atol=1e-2, rtol=1e-2, msg=name)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(float((after[name] == 0).float().mean()) == pytest.approx(0.5, abs=0.02) for name in moved)
    assert not any("norm" in name or "embed" in name or "wte" in name or "head" in name for name in moved)


def test_the_result_is_a_model_folder(source, tmp_path, ids):
    from transformers import AutoModelForCausalLM

    (source / "tokenizer.json").write_text("{}")
    stream(source, tmp_path / "out", ids)
    module, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.isfinite(module(input_ids=ids).logits).all()
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "out" / ACTIVATIONS).exists()
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert len(set(index["weight_map"].values())) == len(list((tmp_path / "out").glob("*.safetensors")))


def test_one_part_of_the_model_has_weights_at_a_time(source):
    parts = Parts(source, [CPU])
    for number in (OUTSIDE, 0, 3):
        parts.fill(number, {name: parts.shards.read(name) for name in parts.names[number]})
        real = {name for name, one in parts.model.named_parameters() if not one.is_meta}
        assert real == {parts.targets[name][0] for name in parts.names[number]}
        parts.free(number)
    assert all(one.is_meta for one in (*parts.model.parameters(), *parts.model.buffers()))


def test_a_killed_run_goes_on_at_the_block_to_the_same_bytes(source, tmp_path, ids):
    def kill(line):
        if line.startswith("block 2 "):
            os.kill(os.getpid(), signal.SIGKILL)

    stream(source, tmp_path / "whole", ids)
    child = os.fork()
    if not child:
        stream(source, tmp_path / "out", ids, tell=kill)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert json.loads((tmp_path / "out" / PROGRESS).read_text())["done"] == 2
    assert not (tmp_path / "out" / INDEX).exists()  # half a model is none
    (tmp_path / "out" / ".model-00003-left.safetensors").write_bytes(b"half")
    told = []
    done = stream(source, tmp_path / "out", ids, tell=told.append)
    assert (done.resumed_at, done.afresh) == (2, "")
    assert told == ["goes on after block 2 of 4", "block 3 of 4", "block 4 of 4"]
    assert len(done.layers) == 4 * 7
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_finished_run_is_not_done_again(source, tmp_path, ids):
    first = stream(source, tmp_path / "out", ids)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again = stream(source, tmp_path / "out", ids)
    assert again.layers == first.layers
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times


def test_another_method_other_tokens_or_a_lost_shard_start_afresh_and_say_so(source, tmp_path, ids):
    stream(source, tmp_path / "out", ids)
    assert stream(source, tmp_path / "out", ids, "wanda").afresh == (
        "the method and how many windows pass at once changed"
    )
    assert stream(source, tmp_path / "out", ids.flip(0), "wanda").afresh == "the calibration tokens changed"
    (tmp_path / "out" / "model-00002-of-00006.safetensors").unlink()
    told = []
    lost = stream(source, tmp_path / "out", ids.flip(0), "wanda", tell=told.append)
    assert lost.afresh == "model-00002-of-00006.safetensors of an earlier run is missing or cut off"
    assert told[0] == f"starts afresh: {lost.afresh}"
    stream(source, tmp_path / "new", ids.flip(0), "wanda")
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_spilled_activations_give_the_same_bytes(source, tmp_path, ids, monkeypatch):
    stream(source, tmp_path / "held", ids, at_once=2)
    monkeypatch.setattr("backends.oneshot.spill.SHARE", 0)
    stream(source, tmp_path / "spilled", ids, at_once=2)
    assert contents(tmp_path / "held") == contents(tmp_path / "spilled")


def refused(match, source, out, tokens, method="sparsegpt"):
    with pytest.raises(InputError, match=match) as caught:
        stream(source, out, tokens, method)
    assert "\n" not in str(caught.value)


def test_shards_that_are_missing_or_truncated_are_named(source, tmp_path, ids):
    name = sorted(path.name for path in source.glob("*.safetensors"))[1]
    whole = (source / name).read_bytes()
    (source / name).write_bytes(whole[:-100])
    refused(f"{name}: truncated: .*; copy or download it again", source, tmp_path / "out", ids)
    (source / name).unlink()
    refused(f"the folder has no {name}; copy or download it again", source, tmp_path / "out", ids)


def test_weights_that_are_missing_or_of_another_shape_are_named(source, tmp_path, ids):
    held = tensors(source)
    shutil.rmtree(source / INDEX, ignore_errors=True)
    for path in source.glob("*.safetensors*"):
        path.unlink()
    last = "model.layers.3.mlp.up_proj.weight"
    save_file({name: one for name, one in held.items() if name != last}, source / "model.safetensors")
    refused(f"weight {last} is missing", source, tmp_path / "out", ids)
    save_file(held | {last: torch.zeros(3, 64)}, source / "model.safetensors")
    refused(f"weight {last} has shape 3×64, and config.json makes it 64×64", source, tmp_path / "out", ids)
    save_file(held | {last: torch.zeros(64, 64, dtype=torch.int8)}, source / "model.safetensors")
    refused(f"{last} holds I8 numbers", source, tmp_path / "out", ids)


def test_tokens_that_do_not_fit_the_model_are_refused(source, tmp_path, ids):
    refused("token 64: vocabulary mismatch: the model knows tokens 0 to 63", source, tmp_path / "out", ids + 1)
    refused("windows are longer than the 64 tokens", source, tmp_path / "out", ids.repeat(1, 5))
    refused("are no token windows", source, tmp_path / "out", ids[0])
    refused("give at least 64 tokens", source, tmp_path / "out", ids[:2])


def test_activations_that_are_not_finite_name_their_layer(source, tmp_path, ids):
    path = next(p for p in source.glob("*.safetensors") if "model.layers.1.input_layernorm.weight" in load_file(p))
    broken = load_file(path)
    broken["model.layers.1.input_layernorm.weight"][3] = torch.inf
    save_file(broken, path)
    refused(r"model\.layers\.1\.self_attn\.q_proj: reads NaN or infinity", source, tmp_path / "out", ids)


def test_a_folder_with_something_else_in_it_is_left_alone(source, tmp_path, ids):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    refused("is not empty, and no compression was begun there", source, tmp_path / "out", ids)
    refused("is the model itself", source, source, ids)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_numbers_that_do_not_fit_the_file_are_refused(small, tmp_path, ids):
    small.transformer("llama").module.to(torch.float16).save_pretrained(tmp_path / "source")
    huge = Method("huge", lambda path, weight, inputs: Outcome(weight * 1e6), reads=False)
    with pytest.raises(InputError, match="a changed weight does not fit float16; save the model in bfloat16"):
        compress_folder(tmp_path / "source", tmp_path / "out", ids, lambda readers: huge, "huge", devices=[CPU])


def test_shards_hold_what_the_library_reads(tmp_path):
    made = {
        "wide": torch.randn(3, 5, dtype=torch.float64),
        "odd": torch.randn(7).bfloat16(),
        "scalar": torch.tensor(2, dtype=torch.int64),
        "flags": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
    }
    kinds = {"wide": "F64", "odd": "BF16", "scalar": "I64", "flags": "BOOL", "empty": "F32"}
    write_shard(tmp_path / "model.safetensors", {name: stored(one, kinds[name]) for name, one in made.items()})
    found, shards = load_file(tmp_path / "model.safetensors"), Shards(tmp_path)
    for name, one in made.items():
        assert torch.equal(found[name], one), name
        assert torch.equal(shards.read(name), one), name
    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_blocks_take_the_devices_in_turn_and_batches_follow_them(source):
    devices = [CPU, torch.device("meta")]
    parts = Parts(source, devices)
    assert [parts.device(number) for number in (OUTSIDE, 0, 1, 2)] == [CPU, *devices, CPU]
    call = ((torch.zeros(2), None), {"mask": [torch.ones(1)], "use_cache": False})
    (first, second), named = moved(call, devices[1])
    assert first.device == named["mask"][0].device == devices[1]
    assert (second, named["use_cache"]) == (None, False)

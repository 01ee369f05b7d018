"""Compression on GPUs, one and several: exactly what the CPU gives on simulated ones, as good on real ones."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from backends.models import load
from backends.oneshot.methods import awq_method, gptq_method, rounding_method, sparsegpt_method, wanda_method
from backends.oneshot.stream import compress_folder
from backends.oneshot.unpack import unpack_folder
from backends.prune.magnitude import smallest
from backends.zoo.stdlib import token_windows
from benchmarks.one_shot import perplexity, run

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
NAMES = [*(f"self_attn.{name}" for name in ATTENTION), *(f"mlp.{name}" for name in MLP)]
ROUNDED = {f"model.layers.{block}.{name}": (4, 32) for block in range(6) for name in NAMES}
METHODS = {
    "gptq": lambda readers: gptq_method(4, 32, symmetric=False),
    "gptq in activation order": lambda readers: gptq_method(3, 32, symmetric=True, reorder=True),
    "awq": lambda readers: awq_method(4, 32, False, 5, True, readers),
    "sparsegpt": lambda readers: sparsegpt_method(lambda path: 0.5),
    "sparsegpt 2:4, rounded": lambda readers: sparsegpt_method(lambda path: 0.5, (2, 4), forms=ROUNDED),
    "wanda": lambda readers: wanda_method(lambda path: 0.5),
    "round": lambda readers: rounding_method(4, 32, symmetric=False),
}


def tensors(folder):
    return {name: one for path in folder.glob("*.safetensors") for name, one in load_file(path).items()}


def streamed(source, out, ids, method, devices, form="dense"):
    compress_folder(source, out, ids, METHODS[method], method, devices=devices, form=form)
    return tensors(out)


@pytest.fixture
def short_of_memory(monkeypatch):
    """A window at a time, and on disk between blocks."""
    monkeypatch.setattr("backends.oneshot.feed.SHARE", 0)
    monkeypatch.setattr("backends.oneshot.spill.SHARE", 0)


def test_simulated_devices_are_as_strict_as_real_ones(simulated):
    first, second = (torch.ones(2, 2).to(device) for device in simulated)
    with pytest.raises(RuntimeError, match="to be on the same device"):
        first @ second
    with pytest.raises(RuntimeError, match="to be on the same device"):
        first + torch.ones(2)
    for indices, target in ((torch.tensor([0]), torch.zeros(2, 2)), (torch.tensor([0]).to(simulated[0]), first.cpu())):
        with pytest.raises(RuntimeError, match="to be on the same device"):
            target[indices] = first[:1]
    with pytest.raises(RuntimeError, match="to be on the same device"):
        torch.ones(2, 2)[torch.tensor([0]).to(simulated[0])]
    with pytest.raises(RuntimeError, match="to be on the same device"):
        first[torch.tensor([0])] = torch.ones(1, 2)
    with pytest.raises(TypeError, match="to numpy"):
        first.numpy()
    found = first[0], first[torch.tensor([0])], first * 2, first.t().contiguous()
    assert [one.device for one in found] == [simulated[0]] * 4
    first[0].mul_(3)
    assert first.cpu().tolist() == [[3, 3], [1, 1]]


@pytest.fixture
def one_kernel():
    """Attention by the kernel that both have: GPTQ makes other choices for a difference of 1e-7."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.mark.parametrize(
    ("kind", "method", "count"),
    [("llama", method, 2) for method in METHODS]
    + [("llama", "gptq", 1), ("gpt2", "gptq in activation order", 2), ("gpt2", "sparsegpt", 1), ("mixtral", "gptq", 2)],
)
def test_simulated_gpus_give_what_the_cpu_gives(kind, method, count, small, simulated, one_kernel, tmp_path):
    small.transformer(kind, hidden=32, blocks=3).module.save_pretrained(tmp_path / "source", max_shard_size="60KB")
    ids = torch.randint(64, (16, 16), generator=torch.Generator().manual_seed(0))
    wanted = streamed(tmp_path / "source", tmp_path / "cpu", ids, method, [CPU])
    found = streamed(tmp_path / "source", tmp_path / "gpus", ids, method, simulated[:count])
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


@pytest.mark.usefixtures("short_of_memory")
@pytest.mark.parametrize("method", ["sparsegpt", "awq"])
def test_batches_follow_the_blocks_from_device_to_device_and_disk(method, small, simulated, one_kernel, tmp_path):
    small.transformer("llama", hidden=32, blocks=3).module.save_pretrained(tmp_path / "source")
    ids = torch.randint(64, (16, 16), generator=torch.Generator().manual_seed(0))
    wanted = streamed(tmp_path / "source", tmp_path / "cpu", ids, method, [CPU])
    found = streamed(tmp_path / "source", tmp_path / "gpus", ids, method, simulated)
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_what_simulated_gpus_round_is_packed_as_the_cpu_packs_it(method, small, simulated, one_kernel, tmp_path):
    """After AWQ, norms take the division of their channels."""
    small.transformer("llama", hidden=32, blocks=3).module.save_pretrained(tmp_path / "source")
    ids = torch.randint(64, (16, 16), generator=torch.Generator().manual_seed(0))
    wanted = streamed(tmp_path / "source", tmp_path / "cpu", ids, method, [CPU], "packed")
    found = streamed(tmp_path / "source", tmp_path / "gpus", ids, method, simulated, "packed")
    assert any(name.endswith("weight_packed") for name in wanted)
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


@pytest.mark.parametrize("setting", ["gptq-4-g32", "awq-4-g32", "sparsegpt-50", "wanda-2:4"])
def test_a_model_on_a_simulated_gpu_is_compressed_where_it_is(setting, small, simulated, one_kernel):
    model = small.transformer("llama", hidden=32, blocks=2).module
    ids = torch.randint(64, (16, 16), generator=torch.Generator().manual_seed(0))
    there = copy.deepcopy(model).to(simulated[0])
    run(model, ids, setting)
    run(there, ids.to(simulated[0]), setting)
    for (name, wanted), found in zip(model.named_parameters(), there.parameters(), strict=True):
        assert found.device == simulated[0]
        assert torch.equal(wanted, found.cpu()), name


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """(folder of a trained model, windows to calibrate on, windows to judge by)"""
    folder = tmp_path_factory.mktemp("language")
    load("zoo:stdlib-lm").module.save_pretrained(folder, max_shard_size="2MB")
    parts = ("calibration", "verification")
    return folder, *(torch.from_numpy(token_windows(part, 32, 0).inputs["input_ids"]) for part in parts)


def check_on_gpus(count, method, language, folder, form="dense"):
    """The model that GPUs give is as good as the CPU's."""
    if torch.cuda.device_count() < count:
        pytest.skip(f"needs {count} CUDA devices")
    source, calibration, held_out = language
    found = []
    for name, devices in {"cpu": [CPU], "cuda": [torch.device("cuda", number) for number in range(count)]}.items():
        streamed(source, folder / name, calibration, method, devices, form)
        if form == "packed":
            unpack_folder(folder / name, folder / f"{name}-plain")
        model = load(str(folder / (f"{name}-plain" if form == "packed" else name))).module
        found.append(perplexity(model, held_out))
    assert found[1] == pytest.approx(found[0], rel=0.02)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [1, 2])
def test_gpus_give_models_as_good_as_the_cpu_gives(method, count, language, tmp_path):
    check_on_gpus(count, method, language, tmp_path)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.usefixtures("short_of_memory")
@pytest.mark.parametrize("method", ["gptq", "awq", "wanda"])
@pytest.mark.parametrize("count", [1, 2])
def test_gpus_that_are_short_of_memory_take_windows_one_by_one(method, count, language, tmp_path):
    check_on_gpus(count, method, language, tmp_path)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_what_a_gpu_rounds_is_packed(method, language, tmp_path):
    check_on_gpus(1, method, language, tmp_path, "packed")


@pytest.mark.gpu
@needs_cuda
def test_the_smallest_scores_are_the_same_on_a_gpu():
    scores = torch.randint(100, (10_000,), generator=torch.Generator().manual_seed(0)).float()
    for count in (1, 5_000, 10_000):
        assert torch.equal(smallest(scores.cuda(), count).cpu(), smallest(scores, count))

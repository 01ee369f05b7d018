"""Small models with random weights, and the context that executors want, for the tests of MODEL-level techniques."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from backends.context import Context
from backends.data import Data, Split
from backends.huggingface import wrap
from backends.models import InputSpec, LoadedModel
from backends.profile import profile
from backends.tasks import task_for
from knowledge.layers import ModelInfo
from knowledge.values import Workload

PIXELS = (InputSpec("pixels", "float32", ("batch", 1, 8, 8)),)
SEQUENCE = (InputSpec("sequence", "float32", ("batch", "sequence", 8)),)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


class Cnn(nn.Module):
    """Stem, a residual block, a depthwise pair, and a dense head that reads every position."""

    def __init__(self, width=16, classes=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.residual = Residual(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.pointwise = nn.Conv2d(width, 2 * width, 1)
        self.norm = nn.BatchNorm2d(2 * width)
        self.pool = nn.AvgPool2d(4)
        self.fc = nn.Linear(2 * width * 4, classes)

    def forward(self, pixels):
        x = self.pointwise(self.depthwise(self.residual(self.stem(pixels))))
        return self.fc(self.pool(torch.relu(self.norm(x))).flatten(1))


class Lstm(nn.Module):
    def __init__(self, hidden, layers=2, bidirectional=True, classes=4):
        super().__init__()
        self.lstm = nn.LSTM(8, hidden, layers, batch_first=True, bidirectional=bidirectional)
        self.fc = nn.Linear(hidden * (2 if bidirectional else 1), classes)

    def forward(self, sequence):
        return self.fc(self.lstm(sequence)[0].mean(1))


def _shaken(module):
    """Batch-norm statistics and scales that are not the identity."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
    return module.eval()


def make_cnn(**sizes):
    torch.manual_seed(0)
    info = ModelInfo("cnn", "cnn", "image-classification", classes=4, image_size=(1, 8, 8))
    return LoadedModel(_shaken(Cnn(**sizes)), info, PIXELS, "tensor", "tests:cnn")


def make_lstm(hidden=32, **options):
    torch.manual_seed(0)
    info = ModelInfo("lstm", "rnn", "sequence-classification", classes=4, hidden_size=hidden)
    return LoadedModel(Lstm(hidden, **options).eval(), info, SEQUENCE, "tensor", "tests:lstm")


def make_transformer(kind, blocks=4, hidden=32, ffn=64, heads=4, vocab=64):
    """llama (two key-value groups, untied), gpt2 and opt (tied), bert (vectors), mixtral (4 experts)."""
    import transformers as hf

    common = {"vocab_size": vocab, "num_hidden_layers": blocks, "hidden_size": hidden, "num_attention_heads": heads}
    wide = common | {"intermediate_size": ffn, "max_position_embeddings": 64}
    grouped = wide | {"num_key_value_heads": 2, "use_cache": False}
    torch.manual_seed(0)
    eager = {"attn_implementation": "eager"}
    if kind == "llama":
        module = hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(**grouped), **eager)
    elif kind == "gpt2":
        sizes = {
            "vocab_size": vocab,
            "n_layer": blocks,
            "n_embd": hidden,
            "n_head": heads,
            "n_inner": ffn,
            "n_positions": 64,
        }
        module = hf.AutoModelForCausalLM.from_config(hf.GPT2Config(**sizes), **eager)
    elif kind == "opt":
        sizes = {"ffn_dim": ffn, "max_position_embeddings": 64, "word_embed_proj_dim": hidden, "pad_token_id": 1}
        module = hf.AutoModelForCausalLM.from_config(hf.OPTConfig(**common, **sizes), **eager)
    elif kind == "mixtral":
        experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
        options = eager | {"experts_implementation": "batched_mm"}
        module = hf.AutoModelForCausalLM.from_config(hf.MixtralConfig(**grouped, **experts), **options)
    else:
        module = hf.AutoModel.from_config(hf.BertConfig(**wide), **eager)
    for p in module.parameters():  # the library's own start is so small that all blocks look idle
        if p.dim() >= 2:
            nn.init.normal_(p, std=0.15)
    return wrap(module.eval(), f"tests:{kind}", "embedding" if kind == "bert" else "causal-lm", None, None)


def make_split(model, count=40, seed=0, time=12):
    """Random samples; the last four tokens of every second one are padding."""
    rng = np.random.default_rng(seed)
    if model.output == "tensor":
        feed = {model.inputs[0].name: rng.standard_normal(model.inputs[0].sizes(count, time)).astype(np.float32)}
        return Split(feed, rng.integers(0, model.info.classes, count))
    ids = rng.integers(0, model.info.vocab_size, (count, time))
    mask = np.ones_like(ids)
    mask[::2, -4:] = 0
    labels = None if model.output == "embedding" else np.where(mask, ids, -100)
    return Split({"input_ids": ids, "attention_mask": mask}, labels)


def make_context(model, split=None, **more):
    split = make_split(model) if split is None else split
    return Context(
        data=Data(split, split, split, split),
        task=task_for(model.info.task),
        workload=Workload(seq_len=12),
        layers=profile(model, Workload(seq_len=12)),
        inputs=model.inputs,
        **more,
    )


def outputs_of(model, split):
    """Outputs on a whole split as a tensor, in evaluation mode."""
    model.module.eval()
    with torch.no_grad():
        return model.forward({name: torch.from_numpy(v) for name, v in split.inputs.items()}).cpu()


@pytest.fixture
def small():
    """The makers above, for tests in any folder below. One thread: several are slower for models as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield SimpleNamespace(
        cnn=make_cnn,
        lstm=make_lstm,
        transformer=make_transformer,
        split=make_split,
        context=make_context,
        outputs=outputs_of,
    )
    torch.set_num_threads(threads)

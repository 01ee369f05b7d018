"""Train the language models that ship: python -m backends.zoo.train NAME... [--minutes M] [--resume] [--out DIR]

Each model gets a fixed number of steps of 16 windows; `--minutes` ends its cosine schedule early on a slow machine.
The weights so far are written every two minutes, so that an early version exists.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from backends.zoo import stdlib
from knowledge.files import replacing

STEPS = {"stdlib-lm": 6000, "stdlib-lm-large": 2200, "stdlib-gpt2": 6000, "stdlib-moe": 5000}
RATES = {"stdlib-lm": 3e-3, "stdlib-lm-large": 2e-3, "stdlib-gpt2": 2e-3, "stdlib-moe": 3e-3}
BATCH = 16
WARM_UP = 60  # steps
SAVE_SECONDS = 120


def shifted_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean cross entropy of each token given those before it. logits: [batch, time, vocab], ids: [batch, time]."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def rate(progress: float, step: int) -> float:
    """Share of the learning rate: linear warm-up, then a cosine down to 2 %."""
    warm = min(1.0, (step + 1) / WARM_UP)
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def optimizer(model: nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.97), fused=True)


@torch.no_grad()
def perplexity(model: nn.Module, windows: NDArray[np.int64]) -> float:
    """exp of the mean loss per token over windows [n, time]."""
    model.eval()
    device = next(model.parameters()).device
    batches = [torch.from_numpy(part).to(device) for part in np.array_split(windows, max(1, len(windows) // 32))]
    losses = [float(shifted_loss(model(input_ids=ids).logits, ids)) * len(ids) for ids in batches]
    model.train()
    return math.exp(sum(losses) / len(windows))


def save(model: nn.Module, tokenizer: Tokenizer, folder: Path) -> None:
    """Write fp16 safetensors, the configuration and the tokenizer as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config: Any = model.config
    config.architectures = [type(model).__name__]
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
    weights = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    state = {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in weights.items()}
    with replacing(folder / "model.safetensors") as path:
        save_file(state, path, metadata={"format": "pt"})
    config.save_pretrained(folder)
    marks = {"pad_token": stdlib.PAD, "eos_token": stdlib.EOS, "bos_token": stdlib.EOS}
    build: Any = PreTrainedTokenizerFast
    wrapped = build(tokenizer_object=tokenizer, model_max_length=256, **marks)
    wrapped.save_pretrained(folder)


def train(name: str, folder: Path, tokenizer: Tokenizer, minutes: float | None, resume: bool = False) -> float:
    """Train one model and write it; returns its perplexity on the verification part.

    Starts from the seed, or from the weights in `folder` with a third of the learning rate (`resume`).
    """
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = stdlib.config(name)
    build: Any = AutoModelForCausalLM.from_config
    model: nn.Module = build(settings, attn_implementation="sdpa").to(device).train()
    if resume:
        model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)  # tied weights are stored once
    stream = torch.from_numpy(stdlib.tokens(tokenizer, "train"))
    held_out = stdlib.windows(tokenizer, "verification", 96, seed=0)
    offsets = torch.arange(stdlib.WINDOW)
    generator = torch.Generator().manual_seed(int(resume))
    peak = RATES[name] / (3 if resume else 1)
    update = optimizer(model, peak)
    click.echo(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(stream):,} tokens on {device}")
    started = saved = time.monotonic()
    for step in range(STEPS[name]):
        elapsed = time.monotonic() - started
        progress = max(step / STEPS[name], elapsed / (60 * minutes) if minutes else 0.0)
        if progress >= 1:
            break
        for group in update.param_groups:
            group["lr"] = peak * rate(progress, step)
        starts = torch.randint(len(stream) - stdlib.WINDOW, (BATCH, 1), generator=generator)
        ids = stream[starts + offsets].to(device)  # [BATCH, WINDOW]
        loss = shifted_loss(model(input_ids=ids).logits, ids)
        update.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update.step()
        if step % 100 == 0:
            click.echo(f"{name}: step {step}, {elapsed:.0f} s, training loss {loss.item():.3f}")
        if time.monotonic() - saved > SAVE_SECONDS:
            save(model, tokenizer, folder)
            saved = time.monotonic()
            click.echo(f"{name}: saved at step {step}, perplexity {perplexity(model, held_out):.2f}")
    save(model, tokenizer, folder)
    return perplexity(model, held_out)


@click.command()
@click.argument("names", nargs=-1, required=True, type=click.Choice(sorted(stdlib.SHAPES)))
@click.option("--minutes", type=click.FloatRange(min=0.1), help="End each model's schedule after this time.")
@click.option("--resume", is_flag=True, help="Go on from the weights that are there, with a schedule of its own.")
@click.option("--out", type=click.Path(path_type=Path), default=stdlib.WEIGHTS, show_default=False)
def main(names: tuple[str, ...], minutes: float | None, resume: bool, out: Path) -> None:
    """Train zoo language models and write them as fp16 safetensors."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = stdlib.train_tokenizer()
    for name in names:
        click.echo(f"{name}: perplexity {train(name, out / name, tokenizer, minutes, resume):.2f}")


if __name__ == "__main__":
    main()

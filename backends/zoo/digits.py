"""Small models of several families on scikit-learn's 8×8 digits, trained on first use and cached.

digits-cnn    pixels [batch, 1, 8, 8] ─► stem ─► 3 stages of residual blocks, 32 / 64 / 128 channels ─► fc
digits-dwcnn  pixels ─► stem ─► depthwise separable blocks ─► fc
digits-lstm   sequence [batch, time, 8], the rows of an image ─► LSTM ─► last step ─► fc
digits-vit    pixels ─► 16 patches of 2×2 ─► transformer blocks ─► mean ─► head
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from backends.data import Data, Split
from backends.models import InputSpec, LoadedModel
from backends.zoo.networks import DepthwiseNet, DigitsLSTM, DigitsViT, ResidualNet
from knowledge.files import replacing
from knowledge.layers import ModelInfo
from knowledge.places import cache_folder

VERSION = 1  # of what a recipe does not say: raise it when training or the networks' mathematics change
CLASSES = 10
IMAGE = (1, 8, 8)
PARTS = {"train": 1000, "calibration": 100, "search": 297, "verification": 400}

PIXELS = InputSpec("pixels", "float32", ("batch", *IMAGE))
ROWS = InputSpec("sequence", "float32", ("batch", "sequence", 8))


@dataclass(frozen=True)
class Recipe:
    """How one model is built and trained."""

    network: Callable[[], Any]
    epochs: int
    rate: float
    batch: int = 50
    shifts: bool = True  # move training images by up to one pixel


_RECIPES = {
    "digits-cnn": Recipe(ResidualNet, 12, 3e-3),
    "digits-dwcnn": Recipe(DepthwiseNet, 20, 3e-3),
    "digits-lstm": Recipe(DigitsLSTM, 40, 4e-3),
    "digits-vit": Recipe(DigitsViT, 30, 2e-3, batch=25, shifts=False),
}
_FACTS: dict[str, dict[str, Any]] = {
    "digits-cnn": {"family": "cnn", "subfamily": "residual-cnn"},
    "digits-dwcnn": {"family": "cnn", "subfamily": "depthwise-cnn"},
    "digits-lstm": {"family": "rnn", "subfamily": "lstm", "max_length": 8},
    "digits-vit": {"family": "transformer", "subfamily": "vision-transformer"},
}


@cache
def digits_splits() -> dict[str, Split]:
    """The digits in four parts with equal shares of every class; always the same: the models learned one of them."""
    rows = _digits()
    images = (rows[:, :-1] / 16).astype(np.float32).reshape(-1, *IMAGE)  # 0…1
    labels = rows[:, -1].astype(np.int64)
    # deal each class's shuffled samples out evenly: position within its class, then class
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    place = np.empty(len(labels))
    for digit in range(CLASSES):
        own = order[labels[order] == digit]
        place[own] = (np.arange(len(own)) + rng.random()) / len(own)
    dealt = np.argsort(place, kind="stable")
    ends = np.cumsum(list(PARTS.values()))[:-1]
    return {
        part: Split({"pixels": images[rows]}, labels[rows])
        for part, rows in zip(PARTS, np.split(dealt, ends), strict=True)
    }


def _digits() -> np.ndarray:
    """scikit-learn's digits, [1797, 65]: 64 pixels of 0…16 and the digit.

    Its file is read where it lies; importing the library takes a hundred times as long.
    """
    library = find_spec("sklearn")
    if library and library.origin:
        file = Path(library.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])


def digits_data(name: str) -> Data:
    """The four splits in the form that the model takes: images, or rows as a sequence."""
    splits = digits_splits()
    if name == "digits-lstm":
        splits = {part: Split({"sequence": s.inputs["pixels"][:, 0]}, s.labels) for part, s in splits.items()}
    return Data(**splits)


def load_digits_model(name: str) -> LoadedModel:
    """A digits model with its trained weights, from the cache or trained now."""
    with torch.random.fork_rng(devices=[]):  # building draws random weights
        network = _RECIPES[name].network().eval()
    network.load_state_dict(_weights(name, network))
    recurrent = name == "digits-lstm"
    info = ModelInfo(
        name=name,
        task="sequence-classification" if recurrent else "image-classification",
        architecture=type(network).__name__,
        classes=CLASSES,
        image_size=(0, 0, 0) if recurrent else IMAGE,
        **network.facts(),
        **_FACTS[name],
    )
    return LoadedModel(network, info, (ROWS if recurrent else PIXELS,), "tensor", f"zoo:{name}")


def _weights(name: str, untrained: nn.Module) -> dict[str, torch.Tensor]:
    """Trained weights; one process trains, others wait for it. A damaged cache file is replaced."""
    path = cache_folder() / "zoo" / f"{name}-{_key(_RECIPES[name], untrained)}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.is_file():
            try:
                return load_file(path)
            except (SafetensorError, OSError):
                path.unlink()
        state = train(name).state_dict()
        with replacing(path) as temporary:
            save_file({k: v.contiguous() for k, v in state.items()}, temporary)
        return state


def _key(recipe: Recipe, network: nn.Module) -> str:
    """Changes with anything that would give other weights: recipe, shapes, version, and the split that is learned."""
    shapes = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    told = f"{VERSION} {recipe.epochs} {recipe.rate} {recipe.batch} {recipe.shifts} {PARTS} {shapes}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def train(name: str) -> nn.Module:
    """Train a digits model from its seed on the training split: AdamW, one-cycle rate, clipped gradients.

    Runs on one thread, so that sums come out the same on every machine; global random state is left as it was.
    """
    data = digits_data(name).train
    images = torch.from_numpy(next(iter(data.inputs.values())))
    assert data.labels is not None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _fit(_RECIPES[name], images, torch.from_numpy(data.labels))
    finally:
        torch.set_num_threads(threads)


def _fit(recipe: Recipe, images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    network: nn.Module = recipe.network()
    generator = torch.Generator().manual_seed(0)
    update = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=0.02)
    steps = recipe.epochs * -(-len(images) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(update, recipe.rate, total_steps=steps, pct_start=0.2)
    network.train()
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images), generator=generator)
        for rows in torch.split(order, recipe.batch):
            batch = images[rows]
            if recipe.shifts:  # a digit moved by one pixel is the same digit
                down, across = (int(s) for s in torch.randint(-1, 2, (2,), generator=generator))
                batch = shifted(batch, down, across)
            loss = F.cross_entropy(network(batch), labels[rows], label_smoothing=0.05)
            update.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            update.step()
            schedule.step()
    return network.eval()


def shifted(images: torch.Tensor, down: int, across: int) -> torch.Tensor:
    """Images [..., height, width] moved by at most one pixel each way, zeros moving in."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (1, 1, 1, 1))
    return padded[..., 1 - down : 1 - down + height, 1 - across : 1 - across + width]

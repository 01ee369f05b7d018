"""Reading a folder of images, one subfolder per class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from backends.data import Fed, Split
from backends.readers import checked_labels
from knowledge.values import InputError

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".pgm", ".ppm"}


def read_images(model: Fed, field: str, folder: Path) -> Split:
    """A folder with one subfolder per class, in sorted order or by the model's own class names; raises InputError."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    found = [(path, kind.name) for kind in classes for path in sorted(kind.iterdir())]
    files = [(path, kind) for path, kind in found if path.suffix.lower() in ENDINGS]
    if not files:
        raise InputError(field, folder, "holds no class folders with images", "make one subfolder per class")
    if model.info.image_size == (0, 0, 0):
        raise InputError(field, folder, f"{model.source} takes no images", "give .jsonl, .csv or .npz")
    images = np.stack([_image(path, model.info.image_size, field) for path, _ in files])
    mean, deviation = _normalization(model)
    order = {kind.name: str(number) for number, kind in enumerate(classes)}
    config = getattr(getattr(model, "module", None), "config", None)
    own = set(getattr(config, "label2id", None) or {})
    names = [kind if kind in own or kind.isdigit() else order[kind] for _, kind in files]
    labels = checked_labels(names, model, field, str(folder))
    return Split({model.inputs[0].name: ((images - mean) / deviation).astype(np.float32)}, labels)


def _image(path: Path, size: tuple[int, int, int], field: str) -> np.ndarray:
    """One image as [channels, height, width], 0…1."""
    try:
        from PIL import Image
    except ImportError as error:
        remedy = "pip install 'compression-advisor[images]', or give an .npz"
        raise InputError(field, path, "reading images needs Pillow", remedy) from error
    channels, height, width = size
    try:
        with Image.open(path) as image:
            sized = image.convert("L" if channels == 1 else "RGB").resize((width, height))
            pixels = np.asarray(sized, dtype=np.float32)
    except OSError as error:
        raise InputError(field, path, f"is no readable image: {error}", "remove or mend it") from error
    return (pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)) / 255


def _normalization(model: Fed) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation per channel that the model's own preprocessor subtracts and divides by; else 0 and 1."""
    folder = getattr(model, "files", None)
    path = folder / "preprocessor_config.json" if folder else None
    settings = json.loads(path.read_text()) if path is not None and path.is_file() else {}
    mean, deviation = settings.get("image_mean", 0.0), settings.get("image_std", 1.0)
    return np.reshape(mean, (-1, 1, 1)), np.reshape(deviation, (-1, 1, 1))

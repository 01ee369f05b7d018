"""Models in Hugging Face folders: configuration checked first, weights from safetensors only, no code of theirs."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging as library_logging

from backends.models import FAST_EXPERTS, InputSpec, LoadedModel, Output
from backends.recognize import expert_count, family, subfamily
from knowledge.configs import (
    HEADS,
    NO_PARAMETER,
    OF_THESE_WEIGHTS,
    check_counts,
    longest_of,
    shape_text,
    vocabulary_of,
)
from knowledge.faults import first_line
from knowledge.layers import ModelInfo
from knowledge.tasks import TRANSFORMERS, check_transformers, task_of_classes
from knowledge.values import InputError

AUTO = {
    "causal-lm": "AutoModelForCausalLM",
    "text-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
    "embedding": "AutoModel",
}
UNTRAINED = ("pooler.",)  # parts that a checkpoint may lack because nothing we compute uses them
TEXT = tuple(InputSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask"))


def load_folder(folder: Path, source: str, task: str | None, arch: str | None) -> LoadedModel:
    """Load a folder with config.json and safetensors weights, in float32, attention written out, without a cache.

    Raises InputError: no or broken config.json, a model with code of its own, weights missing, truncated or incomplete,
    or a task that the configuration does not tell.
    """
    config = read_config(folder)
    check_weights(folder)
    task = task or task_of(config, folder)
    check_transformers(task, vocabulary_of(config), source)
    module, note = _module(folder, config, task)
    model = wrap(module, source, task, arch, folder)
    return dataclasses.replace(model, info=dataclasses.replace(model.info, note=note))


def wrap(module: nn.Module, source: str, task: str, arch: str | None, folder: Path | None) -> LoadedModel:
    """A transformers model in memory, with the facts that its configuration tells."""
    config: Any = module.config
    config.use_cache = False
    info = info_of(module, config, source, task, arch)
    image = info.image_size != (0, 0, 0)
    inputs = (InputSpec("pixel_values", "float32", ("batch", *info.image_size)),) if image else TEXT
    output: Output = "embedding" if task == "embedding" else "logits"
    tokenizer = None if image or folder is None else read_tokenizer(folder)
    return LoadedModel(module, info, inputs, output, source, tokenizer, folder)


def read_config(folder: Path) -> Any:
    """The folder's configuration; raises InputError where it is missing, broken, unknown, or wants to run code."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError("model", folder, "the folder has no config.json", "give the folder that save_pretrained wrote")
    try:
        raw = json.loads(path.read_text())
        if not isinstance(raw, dict):
            raise ValueError("it holds no JSON object")
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError("model", path, f"is no JSON configuration: {error}", "save the model again") from error
    check_counts(raw, folder)
    with quiet():
        try:
            return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except (ValueError, KeyError, TypeError, OSError) as error:
            own = "auto_map" in raw
            problem = "brings code of its own" if own else f"unknown model_type {raw.get('model_type')!r}"
            remedy = "load it in a factory of your own (package.module:factory)"
            raise InputError("model", folder, problem, remedy) from error


def check_weights(folder: Path) -> None:
    """Raise InputError unless every safetensors file that the folder needs is there and whole."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise InputError("model", index, "is no safetensors index", "save the model again") from error
    else:
        names = ["model.safetensors"]
    for name in names:
        path = folder / name
        if not path.is_file():
            pickled = any(folder.glob("pytorch_model*.bin"))
            why = "only pickled weights, which can run code" if pickled else f"no {name}"
            raise InputError("model", folder, f"the folder has {why}", "save it as safetensors (save_pretrained)")
        try:
            with safe_open(path, "pt") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            raise InputError("model", path, f"truncated or corrupt: {error}", "copy or download it again") from error


def task_of(config: Any, folder: Path) -> str:
    """Task of the class that the configuration names; raises InputError asking for --task when it tells none."""
    task = task_of_classes(getattr(config, "architectures", None) or ())
    if task is not None and not getattr(config, "is_encoder_decoder", False):
        return task
    named = ", ".join(getattr(config, "architectures", None) or ()) or "no architecture"
    problem = f"config.json names {named}, which tells no known task"
    raise InputError("task", folder, problem, f"add --task {' | '.join(TRANSFORMERS)}")


def _module(folder: Path, config: Any, task: str) -> tuple[nn.Module, str]:
    """The model with its weights, and what is to be said of weights that it does not have."""
    options: dict[str, Any] = {"attn_implementation": "eager"}  # exports to the faster graph
    if expert_count(config) > 1:
        options["experts_implementation"] = FAST_EXPERTS
    with quiet():
        try:
            module: nn.Module
            module, report = getattr(transformers, AUTO[task]).from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told below, by name
                **options,
            )
        except (ValueError, OSError, RuntimeError, KeyError, ImportError) as error:
            problem = f"cannot be loaded for {task}: {first_line(error)}"
            raise InputError("model", folder, problem, "check --task") from error
    for name, held, told in sorted(report["mismatched_keys"]):
        shapes = f"has shape {shape_text(held)}, and config.json makes it {shape_text(told)}"
        raise InputError("model", folder, f"weight {name} {shapes}", OF_THESE_WEIGHTS)
    missing = [name for name in report["missing_keys"] if not name.startswith(UNTRAINED) and ".pooler." not in name]
    if missing:
        remedy = "choose the --task that it was trained for, or save it again"
        raise InputError("model", folder, f"weight {min(missing)} is missing for {task}", remedy)
    return module, _left_out(report["unexpected_keys"], task)


def _left_out(names: Iterable[str], task: str) -> str:
    """What is to be said of weights that the configured model does not have; a head that is not asked for is left."""
    weights = [name for name in names if not NO_PARAMETER.search(name)]
    left = sorted(n for n in weights if not (task == "embedding" and n.startswith(HEADS)))
    if not left:
        return ""
    count = left[0] if len(left) == 1 else f"{left[0]} and {len(left) - 1} more weights"
    return f"{count} of the file left out: the model that config.json describes has no such weight"


def info_of(module: nn.Module, config: Any, source: str, task: str, arch: str | None) -> ModelInfo:
    """The facts of a transformers model."""
    kind = family(module, source, arch)
    text = vocabulary_of(config)

    def number(*names: str) -> int:
        """First of these configuration fields that holds a number."""
        found = (getattr(config, name, None) for name in names)
        return next((int(v) for v in found if isinstance(v, int) and not isinstance(v, bool)), 0)

    hidden = number("hidden_size", "n_embd", "dim", "d_model")
    heads = number("num_attention_heads", "n_head", "n_heads")
    ffn = number("intermediate_size", "n_inner", "hidden_dim", "ffn_dim") or 4 * hidden
    classified = task.endswith("-classification")
    return ModelInfo(
        name=Path(source).name or source,
        family=kind,
        task=task,
        subfamily=subfamily(module, kind, task),
        architecture=type(module).__name__,
        vocab_size=text,
        hidden_size=hidden,
        ffn_size=ffn if heads else 0,
        heads=heads,
        kv_heads=number("num_key_value_heads") or heads,
        head_dim=number("head_dim") or (hidden // heads if heads else 0),
        blocks=number("num_hidden_layers", "n_layer", "n_layers"),
        experts=expert_count(config) if kind == "moe" else 0,
        experts_per_token=number("num_experts_per_tok") if kind == "moe" else 0,
        classes=int(getattr(config, "num_labels", 0)) if classified else 0,
        max_length=longest_of(config),
        image_size=(0, 0, 0) if text else _image_size(config),
    )


def _image_size(config: Any) -> tuple[int, int, int]:
    size = getattr(config, "image_size", 224) or 224
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    return int(getattr(config, "num_channels", 3)), height, width


def read_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, or None where it has none; raises InputError for a broken one."""
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model")
    if not any((folder / name).is_file() for name in names):
        return None
    with quiet():
        try:
            return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # tokenizers raises plain Exception on a broken file
            problem = f"its tokenizer cannot be read: {first_line(error)}"
            raise InputError("model", folder, problem, "save it again") from error


def fetch(hub_id: str) -> Path:
    """Folder of a model from the hub, downloaded unless it is cached; raises InputError when it cannot be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    with quiet():
        try:
            return Path(snapshot_download(hub_id, allow_patterns=patterns, etag_timeout=5))
        except (OSError, ValueError, HfHubHTTPError, RuntimeError) as error:
            remedy = "check the name and the network, or download the folder elsewhere and give its path"
            raise InputError("model", hub_id, "no such folder, and the hub did not give it", remedy) from error


def _bars(shown: bool) -> None:
    switch: Any = library_logging.enable_progress_bar if shown else library_logging.disable_progress_bar
    switch()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and advice off the user's terminal."""
    level, bars = library_logging.get_verbosity(), library_logging.is_progress_bar_enabled()
    library_logging.set_verbosity(logging.ERROR)
    _bars(False)
    try:
        yield
    finally:
        library_logging.set_verbosity(level)
        _bars(bars)

"""Reading one file or folder of samples into arrays: .jsonl, .csv, .txt, .npz, images by class, a `datasets` name.

Texts: columns "text" (and "text2" for pairs) and "label". Arrays: one per input, by its name, and "labels".
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.data import Fed, Split
from backends.metrics import IGNORED
from backends.models import Batch
from knowledge.faults import first_line
from knowledge.values import InputError

MAX_TOKENS = 128  # per sample: texts are cut, a language model's are joined and cut into windows


def read(model: Fed, field: str, name: str) -> Split:
    """Samples of one file, folder or data set; raises InputError naming the field, the file and what is wrong."""
    path = Path(name)
    if path.is_dir():
        from backends.images import read_images

        return read_images(model, field, path)
    if not path.exists():
        return read_dataset(model, field, name)
    if path.suffix == ".npz":
        return read_arrays(model, field, path)
    if path.suffix not in (".jsonl", ".csv", ".txt"):
        remedy = "give .jsonl, .csv, .txt, .npz or an image folder"
        raise InputError(field, name, f"unknown file type {path.suffix!r}", remedy)
    try:
        rows = {".jsonl": _jsonl, ".csv": _csv, ".txt": _txt}[path.suffix](path, field)
    except UnicodeDecodeError as error:
        raise InputError(field, name, f"is not UTF-8 text: {error}", "save it as UTF-8") from error
    return from_rows(model, field, name, rows)


# -- texts -----------------------------------------------------------------------------------------


def _jsonl(path: Path, field: str) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(field, path, f"line {number} is no JSON: {error}", "write one object per line") from error
        if not isinstance(row, dict):
            raise InputError(field, path, f"line {number} is no object", 'write {"text": ..., "label": ...}')
        rows.append(row)
    return rows


def _csv(path: Path, field: str) -> list[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        return list(csv.DictReader(lines))


def _txt(path: Path, field: str) -> list[Mapping[str, Any]]:
    return [{"text": line} for line in path.read_text("utf-8").splitlines() if line.strip()]


def from_rows(model: Fed, field: str, name: str, rows: Sequence[Mapping[str, Any]]) -> Split:
    """Tokenize texts; labels checked against the model's classes. Raises InputError."""
    if not rows:
        raise InputError(field, name, "holds no samples", "give a file with at least one")
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        remedy = f"give an .npz with the arrays {', '.join(spec.name for spec in model.inputs)}"
        raise InputError(field, name, f"{model.source} has no tokenizer for texts", remedy)
    texts = _column(rows, "text", field, name)
    limit = min(MAX_TOKENS, model.info.max_length or MAX_TOKENS)
    if model.info.task == "causal-lm":
        return _windows(tokenizer, texts, limit, field, name)
    if any("text2" in row for row in rows):
        texts = [text for pair in zip(texts, _column(rows, "text2", field, name), strict=True) for text in pair]
    inputs = _tokenized(tokenizer, texts, limit, {spec.name for spec in model.inputs})
    labels = _labels(rows, field, name)
    if labels is None:
        return Split(inputs)
    if model.info.task == "embedding":
        return Split(inputs, np.repeat(_scores(labels, field, name), len(texts) // len(rows)))
    return Split(inputs, checked_labels(labels, model, field, name))


def _column(rows: Sequence[Mapping[str, Any]], column: str, field: str, name: str) -> list[str]:
    for number, row in enumerate(rows, 1):
        value = row.get(column)
        if value is None:
            held = ", ".join(str(key) for key in row) or "nothing"
            raise InputError(field, name, f"sample {number} has no {column!r}", f"it holds {held}; name one {column!r}")
        if not isinstance(value, str):
            problem = f"{column!r} of sample {number} is {value!r}, not a text"
            raise InputError(field, name, problem, "write it in quotes")
        if not value.strip():
            raise InputError(field, name, f"{column!r} of sample {number} is empty", "leave such samples out")
    return [row[column] for row in rows]


def _labels(rows: Sequence[Mapping[str, Any]], field: str, name: str) -> list[Any] | None:
    """The labels, where there are any; raises InputError naming the first sample without one where others have one."""
    labels = [row.get("label") for row in rows]
    without = [number for number, label in enumerate(labels, 1) if label is None or not str(label).strip()]
    if len(without) == len(labels):
        return None
    if without:
        raise InputError(field, name, f"sample {without[0]} has no label", "label every sample, or none of them")
    return labels


def _tokenized(tokenizer: Any, texts: list[str], limit: int, names: set[str]) -> dict[str, NDArray[np.int64]]:
    found = tokenizer(texts, truncation=True, max_length=limit, padding=_padding(tokenizer), return_tensors="np")
    return {name: array.astype(np.int64) for name, array in found.items() if name in names}


def _padding(tokenizer: Any) -> bool:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return True


def _windows(tokenizer: Any, texts: Iterable[str], length: int, field: str, name: str) -> Split:
    """All texts as one stream, an end token between them, cut into windows [n, length]."""
    end = tokenizer.eos_token_id
    stream: list[int] = []
    for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
        stream += ids if end is None else [*ids, end]
    count = len(stream) // length
    if not count:
        raise InputError(field, name, f"holds {len(stream)} tokens, one window needs {length}", "give more text")
    ids = np.array(stream[: count * length], dtype=np.int64).reshape(count, length)
    return Split({"input_ids": ids, "attention_mask": np.ones_like(ids)}, ids, np.arange(count))


# -- labels ----------------------------------------------------------------------------------------


def checked_labels(values: Sequence[Any], model: Fed, field: str, name: str) -> NDArray[np.int64]:
    """Class numbers, names looked up in the model's configuration; raises InputError naming the first bad one."""
    config = getattr(getattr(model, "module", None), "config", None)
    named = {str(k): int(v) for k, v in (getattr(config, "label2id", None) or {}).items()}
    labels = np.empty(len(values), dtype=np.int64)
    for number, value in enumerate(values, 1):
        text = str(value).strip()
        if text in named:
            labels[number - 1] = named[text]
        elif text.lstrip("-").isdigit():
            labels[number - 1] = int(text)
        else:
            problem = f"label {text!r} of sample {number} is no class number"
            raise InputError(field, name, problem, "number the classes from 0")
    check_range(labels, model.info.classes, field, name)
    return labels


def check_range(labels: NDArray[np.int64], classes: int, field: str, name: str) -> None:
    """Raise InputError naming the first label outside 0 … classes − 1 (any above −1 where the classes are unknown)."""
    bad = np.flatnonzero((labels < 0) | (labels >= classes if classes else False))
    if len(bad):
        where, value = int(bad[0]) + 1, int(labels[bad[0]])
        raise InputError(
            field, name, f"label {value} of sample {where} is out of range", f"classes are 0 to {classes - 1}"
        )


def _scores(values: Sequence[Any], field: str, name: str) -> NDArray[np.float32]:
    try:
        scores = np.array([float(v) for v in values], dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(field, name, f"a pair's label is no number: {error}", "give similarity scores") from error
    if not np.isfinite(scores).all():
        raise InputError(field, name, "a pair's label is not finite", "give similarity scores")
    return scores


# -- arrays ----------------------------------------------------------------------------------------


def read_arrays(model: Fed, field: str, path: Path) -> Split:
    """An .npz with one array per input and, optionally, "labels"; raises InputError on wrong names or shapes."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(field, path, f"is no readable .npz: {error}", "write it with numpy.savez") from error
    inputs = {}
    for spec in model.inputs:
        if spec.name not in arrays and spec.name == "attention_mask" and "input_ids" in arrays:
            arrays[spec.name] = np.ones_like(arrays["input_ids"])
        if spec.name not in arrays:
            raise InputError(field, path, f"has no array {spec.name!r}", f"it holds {', '.join(arrays) or 'nothing'}")
        inputs[spec.name] = _checked(arrays[spec.name], spec, field, path)
    lengths = {len(array) for array in inputs.values()} | ({len(arrays["labels"])} if "labels" in arrays else set())
    if len(lengths) > 1:
        raise InputError(
            field, path, f"its arrays have different lengths: {sorted(lengths)}", "give one row per sample"
        )
    _check_ids(inputs.get("input_ids"), model.info.vocab_size, field, path)
    return Split(inputs, _array_labels(arrays.get("labels"), inputs, model, field, path))


def _checked(array: np.ndarray, spec: Any, field: str, path: Path) -> np.ndarray:
    wanted = spec.shape
    pairs = zip(wanted, array.shape, strict=False)
    if array.ndim != len(wanted) or not all(isinstance(w, str) or w == s for w, s in pairs):
        shape = "×".join(map(str, wanted))
        raise InputError(field, path, f"{spec.name!r} has shape {list(array.shape)}", f"the model takes {shape}")
    if array.dtype.kind not in "fiub" or (spec.dtype == "int64" and array.dtype.kind == "f"):
        raise InputError(field, path, f"{spec.name!r} holds {array.dtype}", f"the model takes {spec.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(field, path, f"{spec.name!r} holds NaN or infinity", "clean the data")
    return np.ascontiguousarray(array, dtype=spec.dtype)


def _check_ids(ids: np.ndarray | None, vocabulary: int, field: str, path: Path) -> None:
    if ids is not None and ids.size and vocabulary and (ids.min() < 0 or ids.max() >= vocabulary):
        found = int(ids.max() if ids.max() >= vocabulary else ids.min())
        raise InputError(field, path, f"token id {found} is out of range", f"ids are 0 to {vocabulary - 1}")


def _array_labels(labels: np.ndarray | None, inputs: Batch, model: Fed, field: str, path: Path) -> np.ndarray | None:
    if model.info.task == "causal-lm" and "input_ids" in inputs:
        ids = inputs["input_ids"] if labels is None else labels.astype(np.int64)
        return np.where(inputs["attention_mask"] > 0, ids, IGNORED) if "attention_mask" in inputs else ids
    if labels is None:
        return None
    if labels.ndim != 1 or labels.dtype.kind not in "iuf":
        problem = f"'labels' has shape {list(labels.shape)} of {labels.dtype}"
        raise InputError(field, path, problem, "give one number per sample")
    if model.info.task == "embedding":
        return labels.astype(np.float32)
    if labels.dtype.kind == "f":
        raise InputError(field, path, "'labels' are no whole numbers", "number the classes from 0")
    check_range(labels.astype(np.int64), model.info.classes, field, str(path))
    return labels.astype(np.int64)


# -- the `datasets` library ------------------------------------------------------------------------


def read_dataset(model: Fed, field: str, name: str) -> Split:
    """A data set by its hub name ("name" or "name#split") through the `datasets` library; raises InputError."""
    if Path(name).suffix:
        raise InputError(field, name, "no such file", "check the path")
    try:
        import datasets
    except ImportError as error:
        remedy = "for a data set by name: pip install 'compression-advisor[datasets]'"
        raise InputError(field, name, "no such file or folder", remedy) from error
    base, _, part = name.partition("#")
    try:
        found = datasets.load_dataset(base, split=part or ("train" if field == "train-data" else "test"))
    except Exception as error:  # the library raises what its many sources raise
        raise InputError(field, name, f"cannot be loaded: {first_line(error)}", "give a file") from error
    return from_rows(model, field, name, list(found))

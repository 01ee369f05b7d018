"""English sentences for the sentence encoder: the standard library's docstrings, read without importing anything."""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.models import Batch

MAX_TOKENS = 64
PARTS = {"train": 768, "calibration": 128, "search": 128, "verification": 256}
_MODULES = (
    "_pydatetime _pydecimal argparse asyncio collections configparser contextlib csv datetime difflib enum "
    "fractions functools heapq http inspect ipaddress logging mailbox optparse os pathlib random shutil smtplib "
    "socket statistics string subprocess tarfile tempfile textwrap threading timeit traceback typing unittest "
    "urllib uuid warnings zipfile "
)


@cache
def sentences() -> tuple[str, ...]:
    """Distinct sentences of 40 to 400 characters that read like English, in an order that only their text decides."""
    root = Path(sysconfig.get_path("stdlib"))
    found: set[str] = set()
    for module in _MODULES.split():
        files = [root / f"{module}.py"] if (root / f"{module}.py").is_file() else sorted((root / module).rglob("*.py"))
        for path in files:
            if "test" not in path.parent.name and "idle" not in path.parent.name:
                found |= _docstring_sentences(path.read_text("utf-8", errors="replace"))
    return tuple(sorted(found, key=lambda s: hashlib.sha256(s.lower().encode()).digest()))


def _docstring_sentences(source: str) -> set[str]:
    found = set()
    for text in _docstrings(ast.parse(source)):
        for paragraph in text.split("\n\n"):
            if ">>>" not in paragraph:
                found |= {s for s in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())) if _english(s)}
    return found


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """Docstrings of a module, of its classes and of their functions."""
    yield ast.get_docstring(node) or ""
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _docstrings(child)


def _english(sentence: str) -> bool:
    """A full sentence made of words, not a table or a signature."""
    letters = sum(c.isalpha() or c == " " for c in sentence)
    whole = 40 <= len(sentence) <= 400 and sentence[0].isupper() and sentence[-1] in ".!?"
    return whole and letters > 0.85 * len(sentence)


def split_sentences() -> dict[str, list[str]]:
    """Sentences per part; no sentence (letter case aside) is in two of them."""
    distinct = list({s.lower(): s for s in sentences()}.values())
    parts, start = {}, 0
    for part, count in reversed(PARTS.items()):  # a short library costs training sentences first
        parts[part] = distinct[start : start + count]
        start += count
    return parts


@cache
def sentence_data(folder: Path) -> dict[str, Batch]:
    """Token ids and masks per part, cut at MAX_TOKENS, ordered by length so that batches need little padding."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding(length=MAX_TOKENS)
    return {part: _tokenized(tokenizer.encode_batch(texts)) for part, texts in split_sentences().items()}


def _tokenized(encodings: list) -> Batch:  # type: ignore[type-arg]
    ids: NDArray[np.int64] = np.array([e.ids for e in encodings], dtype=np.int64)
    mask: NDArray[np.int64] = np.array([e.attention_mask for e in encodings], dtype=np.int64)
    order = np.argsort(mask.sum(1), kind="stable")
    return {"input_ids": ids[order], "attention_mask": mask[order]}

"""YAML files as values, parsed once: what was read is kept as JSON in the cache folder, under a hash of the file.

    <cache folder>/yaml/<hash of the file>.json     hash of the rest, then {"value": …, "lines": …}

Parsing is most of the time that loading takes. A cache that is damaged, or cannot be written, costs that time only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knowledge.faults import Fault
from knowledge.files import write_bytes
from knowledge.places import cache_folder
from knowledge.values import DiskFull

VERSION = b"1"  # of the entries' form
MAX_ENTRIES = 400  # older ones go first
MAX_DEPTH = 60  # the parser is written in C and has no limit of its own
PAIRS = re.compile(rb"\[\]|\{\}")
STEPS = re.compile(rb"^[ \-?:]{%d,}" % MAX_DEPTH, re.M)


@dataclass(frozen=True)
class Parsed:
    """A file's value, and the line on which each entry of its lists begins; "" names the file's own first line."""

    value: Any
    lines: dict[str, list[int]]


class NotYaml(Fault):
    """A text that cannot be parsed, at a line."""

    def __init__(self, line: int, value: str, problem: str, remedy: str = "") -> None:
        super().__init__((), value, problem, remedy)
        self.line = line


def parsed(data: bytes) -> Parsed:
    """The value of a YAML text, from the cache where it was parsed before. Raises NotYaml, UnicodeDecodeError."""
    cache = cache_folder() / "yaml" / f"{hashlib.sha256(VERSION + data).hexdigest()[:40]}.json"
    found = _cached(cache)
    if found is None:
        found, plain = _parse(data)
        if plain:
            _keep(cache, found)
    return found


def _cached(path: Path) -> Parsed | None:
    try:
        digest, _, body = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if digest != _digest(body):
        return None
    kept = json.loads(body)
    return Parsed(kept["value"], kept["lines"])


def _keep(path: Path, found: Parsed) -> None:
    """Write an entry, where it says the same as the file: JSON has no dates and no keys that are numbers."""
    try:
        body = json.dumps({"value": found.value, "lines": found.lines}, ensure_ascii=False).encode()
        if json.loads(body)["value"] != found.value:
            return
        write_bytes(path, _digest(body) + b"\n" + body)
        _trim(path.parent)
    except (OSError, DiskFull, TypeError, ValueError):
        return


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def _trim(folder: Path) -> None:
    entries = [(path.stat().st_mtime, path) for path in folder.iterdir()]
    for _, path in sorted(entries)[: max(0, len(entries) - MAX_ENTRIES)]:
        path.unlink(missing_ok=True)


def _parse(data: bytes) -> tuple[Parsed, bool]:
    """The value, and whether it is a tree: one with aliases may be far larger than its text."""
    import yaml

    text = data.decode("utf-8-sig")
    try:
        if _may_be_deep(data):
            _check_depth(text)
        loader = yaml.CSafeLoader(text)
        try:
            node = loader.get_single_node()
            plain = node is None or _check_keys(node)
            value = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        shown = "".join(text.splitlines()[line - 1 : line]).strip()[:60]
        raise NotYaml(line, shown, f"is not YAML ({error.problem or error.context})") from None
    except NotYaml:
        raise
    except (yaml.YAMLError, ValueError) as error:  # ValueError: such as a day that the calendar lacks
        raise NotYaml(1, "", f"is not YAML ({error})") from None
    return Parsed(value, _lines(node)), plain


def _lines(node: Any) -> dict[str, list[int]]:
    if node is None:
        return {"": [1]}
    lists = [(key, entries) for key, entries in node.value if entries.id == "sequence"] if node.id == "mapping" else []
    starts = {key.value: [entry.start_mark.line + 1 for entry in entries.value] for key, entries in lists}
    return {**starts, "": [node.start_mark.line + 1]}


def _check_keys(root: Any) -> bool:
    """Raise NotYaml on a key that is given twice: YAML would silently take the last. Whether the nodes are a tree."""
    seen, waiting, plain = set(), [root], True
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            plain = False
            continue
        seen.add(id(node))
        if node.id == "sequence":
            waiting += node.value
        elif node.id == "mapping":
            keys = [key.value for key, _ in node.value if key.id == "scalar" and key.tag != "tag:yaml.org,2002:merge"]
            if len(set(keys)) < len(keys):
                key = next(key for key, _ in reversed(node.value) if keys.count(key.value) > 1)
                raise NotYaml(key.start_mark.line + 1, key.value, "is given twice", "keep one of them")
            waiting += [value for _, value in node.value]
    return plain


def _may_be_deep(data: bytes) -> bool:
    """Whether brackets or indentation could nest beyond the limit; brackets in sentences may only seem to."""
    brackets = re.sub(rb"[^\[\]{}]+", b"", data)
    for _ in range(MAX_DEPTH):
        brackets = PAIRS.sub(b"", brackets)
    return len(brackets) > MAX_DEPTH or STEPS.search(data) is not None


def _check_depth(text: str) -> None:
    for depth, line in _depths(text):
        if depth > MAX_DEPTH:
            raise NotYaml(line, "", "is nested too deeply", f"{MAX_DEPTH} levels are read")


def _depths(text: str) -> Iterator[tuple[int, int]]:
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        yield depth, event.start_mark.line + 1 if event.start_mark else 1

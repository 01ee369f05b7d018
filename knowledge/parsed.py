"""YAML files as values, parsed once: what was read is kept as JSON in the cache folder, under a hash of the file.

    <cache folder>/yaml/<hash of the file>.json     hash of the rest, then {"value": …, "lines": …}

Parsing is most of the time that loading takes. A cache that is damaged, or cannot be written, costs that time only.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from knowledge.files import write_bytes
from knowledge.places import cache_folder
from knowledge.values import DiskFull
from knowledge.yaml_values import Parsed, parse

VERSION = b"1"  # of the entries' form
MAX_ENTRIES = 400  # older ones go first


def parsed(data: bytes) -> Parsed:
    """The value of a YAML text, from the cache where it was parsed before. Raises NotYaml, UnicodeDecodeError."""
    cache = cache_folder() / "yaml" / f"{hashlib.sha256(VERSION + data).hexdigest()[:40]}.json"
    found = _cached(cache)
    if found is None:
        found, plain = parse(data)
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

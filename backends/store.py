"""Stage results under a key that hashes everything that led to them: nothing stale can match, shared work is done once.

    <root>/<key>/record.json      what was decided and measured
                 model.safetensors + structure.json, or model.onnx

Entries are written beside and renamed, so a kill leaves a whole entry or none. The least recently used go first when
the store outgrows its bound.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from knowledge.files import disk_full
from knowledge.places import cache_folder
from knowledge.values import DiskFull

RECORD = "record.json"
LIBRARIES = ("torch", "transformers", "onnx", "onnxruntime", "onnxscript", "torch-pruning", "numpy")
DEFAULT_BOUND_BYTES = 8 * 2**30
ABANDONED_SECONDS = 24 * 3600
IN_USE_SECONDS = 3600  # a run may come back to what it used this recently


def digest(*parts: Any) -> str:
    """Hash of JSON-serializable values, stable across processes."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


@lru_cache(maxsize=1)
def code_version() -> str:
    """Hash of the installed libraries' versions and of the sources that compute stage results."""
    found = hashlib.sha256()
    for library in LIBRARIES:
        found.update(f"{library}={importlib.metadata.version(library)}".encode())
    root = Path(__file__).parent.parent
    for package in ("backends", "knowledge"):
        for source in sorted((root / package).rglob("*.py")):
            found.update(source.read_bytes())
    return found.hexdigest()[:16]


class Store:
    """Content-addressed stage results on disk ($ADVISOR_STORE, or in the cache folder); safe for several processes."""

    def __init__(self, root: Path | None = None, bound_bytes: int = DEFAULT_BOUND_BYTES) -> None:
        self.root = Path(root or os.environ.get("ADVISOR_STORE") or cache_folder() / "store")
        self.bound_bytes = bound_bytes
        self.root.mkdir(parents=True, exist_ok=True)

    def entry(self, key: str) -> Path | None:
        """Folder of a finished result, marked as used; None where there is none."""
        folder = self.root / key
        try:
            if not (folder / RECORD).exists():
                return None
            os.utime(folder)  # an entry in use is not evicted
        except FileNotFoundError:  # another process evicted it this moment
            return None
        return folder

    def record(self, key: str) -> dict[str, Any] | None:
        """The JSON of a finished result."""
        folder = self.entry(key)
        if folder is None:
            return None
        found: dict[str, Any] = json.loads((folder / RECORD).read_text())
        return found

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """One process at a time works on a key; the others wait and find the result."""
        locks = self.root / ".locks"
        locks.mkdir(exist_ok=True)
        with FileLock(locks / key):
            yield

    @contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        """A folder to fill; it becomes the entry when the block ends well. Put `record.json` in it.

        Raises DiskFull where there is no room for what the block writes; the entries that are there stay.
        """
        folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=self.root))
        try:
            yield folder
            folder.chmod(0o755)
            try:
                folder.replace(self.root / key)
            except OSError:  # another process was first: its result is the same
                if self.entry(key) is None:
                    raise
        except Exception as error:
            if disk_full(error):
                raise DiskFull(f"{self.root}: the disk is full; finished stages are kept: free some space") from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.evict(keep=key)

    def evict(self, keep: str = "") -> None:
        """Remove the least recently used entries until the store is within its bound; what is in use stays."""
        with self.lock("evict"):
            now = time.time()
            for partial in self.root.glob(".partial-*"):
                with suppress(FileNotFoundError):  # another process finished it this moment
                    if now - partial.stat().st_mtime > ABANDONED_SECONDS:  # left by a kill
                        shutil.rmtree(partial, ignore_errors=True)
            entries = [p for p in self.root.iterdir() if p.is_dir() and not p.name.startswith(".")]
            sizes = {p: sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in entries}
            used = {p: p.stat().st_mtime for p in entries}
            total = sum(sizes.values())
            for folder in sorted(entries, key=used.__getitem__):
                if total <= self.bound_bytes or now - used[folder] < IN_USE_SECONDS:
                    return
                if folder.name != keep:
                    shutil.rmtree(folder, ignore_errors=True)
                    total -= sizes[folder]

"""Writing files so that nobody ever sees half of one: write beside, then rename."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from knowledge.values import DiskFull

NO_ROOM = "the disk is full; nothing was written there: free some space and run again"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends well, and vanishes when it does not.

    Raises DiskFull when the disk is full, naming the file that was kept as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes private files; the result gets what any new file would have
        temporary.replace(path)
    except OSError as error:
        if disk_full(error):
            raise DiskFull(f"{path}: {NO_ROOM}") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: a temporary one beside `path` that takes its place when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    except OSError as error:
        if disk_full(error):
            raise DiskFull(f"{path}: {NO_ROOM}") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_file(source: Path, target: Path) -> None:
    """Replace `target` by a copy of `source` in one step."""
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def disk_full(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that the disk is full; some libraries say so only in words."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, DiskFull) or (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)):
            return True
        if any(words in str(cause) for words in ("No space left on device", "database or disk is full")):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8) in one step."""
    write_bytes(path, text.encode())

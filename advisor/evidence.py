"""The evidence of this user's own runs: one SQLite file in their configuration folder, safe with several processes.

    evidence.db    user_version    of this layout
                   evidence        id, row (JSON as in knowledge/evidence), added_at

Every access is one short transaction that waits for others. The journal is SQLite's plain one: a write-ahead log needs
shared memory, which network homes do not have (https://www.sqlite.org/wal.html, section 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from knowledge.evidence import Evidence
from knowledge.measured import check_rows, parse_rows, read_rows, write_rows
from knowledge.places import evidence_file
from knowledge.values import DiskFull, InputError, RunFailed

if TYPE_CHECKING:
    import sqlite3

EVIDENCE_SCHEMA = "advisor.evidence/1"
LAYOUT = 1
WAIT_SECONDS = 20.0  # for other processes
TABLE = """CREATE TABLE IF NOT EXISTS evidence (
    id TEXT PRIMARY KEY, row TEXT NOT NULL, added_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
)"""


def own_evidence() -> tuple[Evidence, ...]:
    """Everything that the user's own runs measured, oldest first; nothing at once where there is no database.

    Raises InputError where the file is damaged or of a newer version, RunFailed where others keep it locked.
    """
    path = evidence_file()
    return _read(path) if path.exists() else ()


def rows(model: str | None = None, technique: str | None = None, shipped: bool = False) -> tuple[Evidence, ...]:
    """Own rows, or the package's, of one model (its name, or its weights' hash) and with one technique.

    Raises InputError for an unknown technique.
    """
    from knowledge.measured import load_evidence
    from knowledge.techniques.catalog import technique_class

    if technique is not None:
        technique_class(technique)
    found = load_evidence() if shipped else own_evidence()
    return tuple(
        row
        for row in found
        if (model is None or model in (row.model, row.model_key))
        and (technique is None or technique in (s.technique for s in row.stages))
    )


def add(new: Iterable[Evidence]) -> int:
    """Keep rows; one with a known id replaces it. Returns how many there were.

    Raises InputError, RunFailed or DiskFull; then none of them was added.
    """
    values = [(row.id, row.model_dump_json()) for row in new]
    if values:
        with _transaction(evidence_file(), write=True) as connection:
            connection.executemany("INSERT OR REPLACE INTO evidence (id, row) VALUES (?, ?)", values)
    return len(values)


def forget(model: str | None = None, ids: Sequence[str] = (), everything: bool = False) -> int:
    """Remove a model's rows, the rows of these ids, or all of them; returns how many went.

    Raises InputError where nothing is named, or where there is no such model or id.
    """
    if not (model or ids or everything):
        raise InputError("evidence", "", "nothing is named to forget", "give --model, --id or --all")
    known = own_evidence()
    named = {row.id for row in known}
    for wanted in ids:
        if wanted not in named:
            raise InputError("id", wanted, "no row of your own has this id", "see `advisor evidence list`")
    chosen = [r.id for r in known if everything or r.id in ids or model in (r.model, r.model_key)]
    if model and not any(model in (r.model, r.model_key) for r in known):
        measured = ", ".join(sorted({r.model for r in known})) or "no model yet"
        raise InputError("model", model, "your own runs did not measure it", f"they measured {measured}")
    if chosen:
        with _transaction(evidence_file(), write=True) as connection:
            connection.executemany("DELETE FROM evidence WHERE id = ?", [(row_id,) for row_id in chosen])
    return len(chosen)


def export_json(path: Path, model: str | None = None, technique: str | None = None, shipped: bool = False) -> int:
    """Write rows as a list to a JSON file; returns how many. Raises InputError where it cannot be written."""
    chosen = rows(model, technique, shipped)
    try:
        write_rows(path, chosen)
    except OSError as error:
        raise InputError("evidence", path, f"cannot be written: {error.strerror}", "name another file") from error
    return len(chosen)


def import_json(path: Path) -> int:
    """Add the rows of a file that `export_json` wrote; returns how many.

    Raises InputError naming file, row and field of the first fault; then none was added.
    """
    found = read_rows(path)
    check_rows(path, found)
    return add(found)


# -- the file ----------------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[Evidence, ...]:
    with _transaction(path, write=False) as connection:
        if not connection.execute("PRAGMA user_version").fetchone()[0]:  # made this moment by another process
            return ()
        stored = connection.execute("SELECT row FROM evidence ORDER BY rowid").fetchall()
    return parse_rows("[" + ",".join(row for (row,) in stored) + "]", path)


@contextmanager
def _transaction(path: Path, *, write: bool) -> Iterator[sqlite3.Connection]:
    """All or nothing. Raises InputError, RunFailed or DiskFull in the words of the file."""
    import sqlite3

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            _check_layout(connection, path, write)
            yield connection
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise _trouble(path, error) from error
    except OSError as error:
        raise InputError("evidence", path, f"cannot be used: {error.strerror}", "set ADVISOR_CONFIG") from error


def _check_layout(connection: sqlite3.Connection, path: Path, write: bool) -> None:
    layout = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    if layout > LAYOUT:
        problem = f"was written by a newer advisor (layout {layout}; this one knows {LAYOUT})"
        raise InputError("evidence", path, problem, "update advisor, or move the file away")
    if (layout == LAYOUT) != ("evidence" in tables) or (tables and not layout):
        raise InputError("evidence", path, "is a database of something else", "move the file away")
    if not layout and write:
        connection.execute(TABLE)
        connection.execute(f"PRAGMA user_version = {LAYOUT}")


def _trouble(path: Path, error: sqlite3.Error) -> InputError | RunFailed:
    """SQLite's error by what the user can do about it."""
    import sqlite3

    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended part
    if code == sqlite3.SQLITE_FULL:
        return DiskFull(f"{path}: the disk is full; the evidence stays as it was: free some space")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return RunFailed(f"{path}: another process kept it locked for {WAIT_SECONDS:.0f} seconds: try again")
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return InputError(
            "evidence", path, f"is damaged ({error})", "move the file away: the next run begins a new one"
        )
    return InputError("evidence", path, f"cannot be used ({error})", "make it writable, or set ADVISOR_CONFIG")

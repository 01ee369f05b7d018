"""Where the user's own knowledge lies, what their runs measured, and what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def config_folder() -> Path:
    """$ADVISOR_CONFIG, or `advisor` in the user's configuration folder (`~/.config/advisor` on Linux)."""
    named = os.environ.get("ADVISOR_CONFIG")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_config_dir("advisor"))


def evidence_file() -> Path:
    """The database of what the user's own runs measured."""
    return config_folder() / "evidence.db"


def cache_folder() -> Path:
    """Where advisor keeps what it can make again: $ADVISOR_CACHE, or `advisor` in the user's cache folder."""
    named = os.environ.get("ADVISOR_CACHE")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("advisor"))

"""Commented templates for entries of the user's own: each loads and passes the check as it is."""

from __future__ import annotations

import re
from pathlib import Path

from knowledge.files import write_text
from knowledge.load import ALL_KINDS
from knowledge.places import config_folder
from knowledge.reading import HERE, layers, merged
from knowledge.schema import ID_PATTERN
from knowledge.values import InputError

TEMPLATES = HERE / "templates"
FOLDERS = {name.removesuffix("s"): name for name in ALL_KINDS}  # rule -> rules


def write_template(kind: str, name: str | None = None, out: Path | str | None = None) -> Path:
    """Write a template of an entry, into the user's own folder or `out`; the file that was written.

    Raises InputError where a file or an id is there already: nothing is overwritten or replaced unasked.
    """
    placeholder = f"my-{kind}"
    name = name or placeholder
    if not re.match(ID_PATTERN, name):
        raise InputError("name", name, "is no id", "use lower-case letters, digits and - _ . :")
    folder = Path(out).expanduser() if out else config_folder()
    path = folder / FOLDERS[kind] / f"{name.replace(':', '-')}.yaml"
    if path.exists():
        raise InputError("name", name, f"{path} is there already", "give another name, or edit that file")
    taken = merged(ALL_KINDS[FOLDERS[kind]], layers(folder))
    if name in taken:
        raise InputError("name", name, f"this {kind} is at {taken[name].place}", "give another name, or edit it there")
    text = (TEMPLATES / f"{kind}.yaml").read_text()
    try:
        write_text(path, text.replace(placeholder, name))
    except OSError as error:
        raise InputError("out", path, f"cannot be written ({error.strerror})", "give --out DIR") from None
    return path

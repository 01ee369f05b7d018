"""What a task's YAML would run as code, told before anything runs: functions, and metrics that are fetched.

lm-eval's own tasks are the library's code. Of others, every file is read that the tasks asked for lead to: what they
include, and the members of groups and tags.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from knowledge.values import InputError
from knowledge.yaml_values import NotYaml, check_depth

PLAIN = "tag:yaml.org,2002:"
Names = Callable[[str], tuple[Path | None, Iterable[str]]]  # of a task: its file, and the members of a tag


@dataclass
class Contents:
    """What one YAML file names."""

    functions: list[str] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    fetched: bool = False  # whether a metric is asked for by `hf_evaluate`
    includes: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)


def check_code(asked: Iterable[str], lookup: Names, own: Path, metrics: Collection[str]) -> None:
    """Raise InputError naming the first file, among those that the tasks lead to, that would run code.

    `own`: the folder of the library's tasks; `metrics`: those that the library has.
    """
    todo, seen = list(asked), set[str]()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        path, members = lookup(name)
        todo += members
        for file, contents in ({} if path is None else files(path)).items():
            todo += contents.tasks
            if not file.is_relative_to(own.resolve()):
                _check(file, contents, metrics)


def files(path: Path) -> dict[Path, Contents]:
    """A YAML file and all that it includes, each read once; raises InputError for one that cannot be read."""
    found: dict[Path, Contents] = {}
    todo = [path.expanduser().resolve()]
    while todo:
        file = todo.pop()
        if file not in found:
            found[file] = read(file)
            todo += [(file.parent / name).resolve() for name in found[file].includes]
    return found


def read(path: Path) -> Contents:
    """What a YAML file names; raises InputError where it is none."""
    try:
        text = path.read_text("utf-8")
        check_depth(text)
        root = yaml.compose(text, Loader=yaml.CSafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, NotYaml) as error:
        problem = f"cannot be read: {' '.join(str(error).split())}"
        raise InputError("lm-eval", path, problem, "mend the file") from error
    found = Contents()
    for node in _nodes(root):
        if not node.tag.startswith(PLAIN) or node.tag.startswith(PLAIN + "python"):
            found.functions.append(f"{node.tag} {node.value}" if isinstance(node, yaml.ScalarNode) else node.tag)
        if not isinstance(node, yaml.MappingNode):
            continue
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            listed = [v.value for v in _listed(value) if isinstance(v, yaml.ScalarNode)]
            if name == "include":
                found.includes += listed
            elif name in ("task", "group"):
                found.tasks += listed
            elif name == "metric":
                found.metrics += listed
            elif name == "hf_evaluate":
                found.fetched |= listed != ["false"]
    return found


def _nodes(root: yaml.Node | None) -> Iterator[yaml.Node]:
    todo, seen = [root] if root is not None else [], set[int]()
    while todo:
        node = todo.pop()
        if id(node) in seen:  # an alias, which may lead back to itself
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            todo += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            todo += node.value


def _listed(node: yaml.Node) -> list[yaml.Node]:
    return list(node.value) if isinstance(node, yaml.SequenceNode) else [node]


def _check(file: Path, contents: Contents, metrics: Collection[str]) -> None:
    remedy = "add --allow-code if you trust it"
    if contents.functions:
        raise InputError("lm-eval", file, f"names Python code ({contents.functions[0]})", remedy)
    strange = [name for name in contents.metrics if name not in metrics]
    if strange or contents.fetched:
        named = f"the metric {strange[0]!r}" if strange else "a metric by hf_evaluate"
        raise InputError("lm-eval", file, f"names {named}, which is no part of lm-eval but code from elsewhere", remedy)

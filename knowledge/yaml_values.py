"""A YAML text as plain values, with the line on which each entry begins.

Built from the parser's events: several times faster than through the library's nodes on what our files hold. And
stricter: no key twice, no bottomless nesting, no tags that call anything. Aliases, merged mappings, explicit tags and
keys that are no text go through the library's safe constructor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from knowledge.faults import Fault

MAX_DEPTH = 60  # the library's own composer is written in C and recurses until it crashes
STR, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
PLAIN = (True, False)  # a word without quotes or tag


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


class _Odd(Exception):
    """Something that is left to the library."""


def parse(data: bytes) -> tuple[Parsed, bool]:
    """The value of a UTF-8 text, and whether it is a tree: one with aliases may be far larger than its text.

    Raises NotYaml, UnicodeDecodeError.
    """
    import yaml

    text = data.decode("utf-8-sig")
    try:
        loader = yaml.CSafeLoader(text)
        try:
            return _Events(loader).document(), True
        except _Odd:
            return _by_the_library(text), False
        finally:
            loader.dispose()
    except NotYaml:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        shown = "".join(text.splitlines()[line - 1 : line]).strip()[:60]
        raise NotYaml(line, shown, f"is not YAML ({error.problem or error.context})") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: such as a day that the calendar lacks
        raise NotYaml(1, "", f"is not YAML ({error})") from None


class _Events:
    """Values built while a parser reads."""

    def __init__(self, loader: Any) -> None:
        import yaml

        self.yaml, self.loader, self.next = yaml, loader, loader.get_event
        self.words: dict[str, tuple[bool, Any]] = {}  # plain words: whether they are text, and what they mean
        self.lines: dict[str, list[int]] = {}

    def document(self) -> Parsed:
        """The only document of a stream."""
        self.next()  # the stream starts
        if type(self.next()) is self.yaml.StreamEndEvent:
            return Parsed(None, {"": [1]})
        event = self.next()
        value = self.value(event, 1)
        self.next()  # the document ends
        if type(more := self.next()) is not self.yaml.StreamEndEvent:
            line = more.start_mark.line + 1
            raise NotYaml(line, "", "a second document begins", "put it into a file of its own")
        return Parsed(value, {**self.lines, "": [event.start_mark.line + 1]})

    def value(self, event: Any, depth: int, name: str = "") -> Any:
        """What an event begins; `name`: the key of the outermost mapping that it is the value of."""
        kind = type(event)
        if kind is self.yaml.ScalarEvent:
            return self.scalar(event)[1]
        if kind is self.yaml.AliasEvent or event.anchor is not None or event.tag is not None:
            raise _Odd
        if depth > MAX_DEPTH:
            raise NotYaml(event.start_mark.line + 1, "", "is nested too deeply", f"{MAX_DEPTH} levels are read")
        if kind is self.yaml.SequenceStartEvent:
            return self.sequence(depth, name)
        return self.mapping(depth)

    def sequence(self, depth: int, name: str) -> list[Any]:
        found = []
        starts = self.lines.setdefault(name, []) if name and depth == 2 else []
        while type(event := self.next()) is not self.yaml.SequenceEndEvent:
            starts.append(event.start_mark.line + 1)
            found.append(self.value(event, depth + 1))
        return found

    def mapping(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while type(key := self.next()) is not self.yaml.MappingEndEvent:
            is_text, name = self.scalar(key) if type(key) is self.yaml.ScalarEvent else (False, "")
            if not is_text:
                raise _Odd
            if name in found:
                raise _twice(key)
            found[name] = self.value(self.next(), depth + 1, name)
        return found

    def scalar(self, event: Any) -> tuple[bool, Any]:
        """Whether a scalar is text, and its value. Words come again and again: each is looked up once."""
        if event.anchor is not None or event.tag is not None:
            raise _Odd
        word: str = event.value
        if event.implicit != PLAIN:
            return True, word
        if word not in self.words:
            tag = self.loader.resolve(self.yaml.ScalarNode, word, PLAIN)
            if tag == MERGE:
                raise _Odd
            node = self.yaml.ScalarNode(tag, word, event.start_mark, event.end_mark)
            self.words[word] = (tag == STR, word if tag == STR else self.loader.construct_object(node))
        return self.words[word]


def check_depth(text: str) -> None:
    """Raise NotYaml where a text is nested too deeply for the library, which would crash; else its own errors."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise NotYaml(line, "", "is nested too deeply", f"{MAX_DEPTH} levels are read")


def _by_the_library(text: str) -> Parsed:
    """The value of a text of moderate depth; raises NotYaml on a key that is given twice, as YAML takes the last."""
    import yaml

    check_depth(text)
    root = yaml.compose(text, Loader=yaml.CSafeLoader)
    _check_keys(root)
    value = yaml.load(text, Loader=yaml.CSafeLoader)
    lines = {}
    if isinstance(root, yaml.MappingNode):
        yaml.constructor.SafeConstructor().flatten_mapping(root)
        for key, entries in root.value:
            if isinstance(entries, yaml.SequenceNode):
                lines[str(key.value)] = [entry.start_mark.line + 1 for entry in entries.value]
    first = root.start_mark.line + 1 if root is not None else 1
    return Parsed(value, {**lines, "": [first]})


def _check_keys(root: Any) -> None:
    seen, waiting = set(), [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.id == "sequence":
            waiting += node.value
        elif node.id == "mapping":
            names: set[str] = set()
            for key, value in node.value:
                if key.id == "scalar" and key.tag != MERGE:
                    if key.value in names:
                        raise _twice(key)
                    names.add(key.value)
                waiting.append(value)


def _twice(key: Any) -> NotYaml:
    return NotYaml(key.start_mark.line + 1, key.value, "is given twice", "keep one of them")

"""Reads YAML into plain values that remember where they were written.

Values follow YAML 1.2's core schema: `yes` is text, a date is text. Beyond it `1_000` is a number. libyaml
parses; its events are put together here rather than by its own composer, because here duplicate keys, alias
bombs and tags can all be reported at once with their places, and because its composer recurses on
the C stack: a file of `[` ends the process.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from yaml.cyaml import CParser
from yaml.error import YAMLError
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
)

from conveyord.engine.problems import DefinitionError, Problem
from conveyord.engine.yaml_mistakes import BREAKS, syntax_mistake
from conveyord.engine.yaml_scalars import plain_value

FILE_BYTES_MAX = 4 * 1024 * 1024  # some five thousand pipelines, which load in five seconds; at worst ten
VALUES_MAX = 100_000  # of one document, after aliases are expanded; by hand nobody writes a tenth of it
DOCUMENTS_MAX = 10_000  # of one file
DEPTH_MAX = 64  # beyond any manifest, and well below Python's recursion limit

_TAG = "tag:yaml.org,2002:"  # what `!!` stands for


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value and its key start, and where the value ends. Lines and columns count from 1."""

    line: int
    column: int
    key_line: int
    key_column: int
    end_line: int
    end_column: int


Path = tuple[str | int, ...]


class _Node:
    """A value and where it was written. `inner`: the nodes below, by key with the key's mark, or by index."""

    __slots__ = ("end", "inner", "size", "start", "value")

    def __init__(self, value: Any, start: Any, end: Any) -> None:
        self.value = value
        self.start = start
        self.end = end
        self.inner: dict[str, tuple[Any, _Node]] | list[_Node] | None = None
        self.size = 1


class Document:
    """One YAML document: its value, and the place of everything in it by path from the root."""

    def __init__(self, root: _Node) -> None:
        self.value = root.value
        self._root = root

    def place(self, path: Sequence[str | int]) -> tuple[Place, Path]:
        """The place of the longest part of `path` that was written, and that part.

        Elements that name no key are passed over: pydantic puts the branch of a union into a location.
        """
        node, key_mark, known = self._find(path)
        key = node.start if key_mark is None else key_mark
        place = Place(
            node.start.line + 1,
            node.start.column + 1,
            key.line + 1,
            key.column + 1,
            node.end.line + 1,
            node.end.column + 1,
        )
        return place, known

    def keys_at(self, path: Sequence[str | int]) -> Collection[str]:
        """The keys of the mapping at `path`; none if there is no mapping."""
        node, _, known = self._find(path)
        return node.inner if isinstance(node.inner, dict) and known == tuple(path) else ()

    def _find(self, path: Sequence[str | int]) -> tuple[_Node, Any, Path]:
        node, key_mark, known = self._root, None, []
        for part in path:
            if isinstance(node.inner, dict) and part in node.inner:
                key_mark, node = node.inner[str(part)]
            elif isinstance(node.inner, list) and isinstance(part, int) and 0 <= part < len(node.inner):
                node, key_mark = node.inner[part], None
            else:
                continue
            known.append(part)
        return node, key_mark, tuple(known)


Substitute = Callable[[str], str]
"""Text with its `${...}` replaced. Raises ValueError with a sentence if that cannot be done."""


class YamlText:
    """The text of one file, for reading it and for pointing into it."""

    def __init__(self, path: str, content: bytes) -> None:
        """Raises DefinitionError if `content` is too large or is not UTF-8."""
        self.path = path
        self.problems: list[Problem] = []
        if len(content) > FILE_BYTES_MAX:
            limit = f"the limit is {FILE_BYTES_MAX}; split the file"
            raise DefinitionError([Problem(path, 0, 0, f"the file has {len(content)} bytes, {limit}")])
        try:
            self.text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            start = content.rfind(b"\n", 0, error.start) + 1
            column = len(content[start : error.start].decode("utf-8", "replace")) + 1
            message = f"byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
            raise DefinitionError([Problem(path, line, column, message)]) from error
        self._lines: list[str] | None = None
        self._hidden: list[Place] = []

    @property
    def lines(self) -> list[str]:
        """The lines, as libyaml counts them."""
        if self._lines is None:
            self._lines = BREAKS.split(self.text)
        return self._lines

    def problem(self, line: int, column: int, message: str) -> None:
        """Remember a problem at a place, both counted from 1."""
        source_line = self.lines[line - 1] if 0 < line <= len(self.lines) else ""
        self.problems.append(Problem.within(self.path, line, column, message, source_line))

    def hide(self, place: Place) -> None:
        """Keep the value at `place` out of the lines that are shown."""
        self._hidden.append(place)

    def shown_problems(self) -> list[Problem]:
        """The problems, without the secrets in the lines they show."""
        by_line: dict[int, list[Place]] = {}
        # From right to left, so that what is hidden first does not move what is further left.
        for place in sorted(set(self._hidden), reverse=True, key=lambda hidden: (hidden.line, hidden.column)):
            for line in range(place.line, place.end_line + 1):
                by_line.setdefault(line, []).append(place)
        return [self._masked(problem, by_line.get(problem.line, ())) for problem in self.problems]

    def _masked(self, problem: Problem, hidden: Sequence[Place]) -> Problem:
        left_out = problem.column - problem.caret  # in front of what is kept of the line
        for place in hidden:
            start = place.column - 1 - left_out if problem.line == place.line else 0
            end = place.end_column - 1 - left_out if problem.line == place.end_line else len(problem.source_line)
            problem = problem.masked(start, end)
        return problem.without_named_secrets()

    def documents(self, substitute: Substitute) -> list[Document]:
        """The documents that are not empty. Duplicate keys and the like are remembered as problems.

        Raises DefinitionError at a syntax error, because nothing after it can be trusted.
        """
        try:
            composer = _Composer(self, substitute)
            return [Document(root) for root in composer.roots() if root.value is not None]
        except (YAMLError, ValueError) as error:
            self.problem(*syntax_mistake(error, self.text, self.lines))
            raise DefinitionError(self.problems) from error


class _Composer:
    """Turns the events of one file into nodes, one document after another."""

    def __init__(self, text: YamlText, substitute: Substitute) -> None:
        self._text = text
        self._substitute = substitute
        self._parser = CParser(text.text)
        self._anchors: dict[str, _Node | None] = {}

    def roots(self) -> list[_Node]:
        roots: list[_Node] = []
        parser = self._parser
        while parser.check_event():
            if not isinstance(parser.get_event(), DocumentStartEvent):
                continue
            if len(roots) == DOCUMENTS_MAX:
                self._refuse(parser.peek_event(), f"more than {DOCUMENTS_MAX} documents in one file; split it")
            self._anchors = {}
            roots.append(self._compose(parser.get_event(), 0))
        return roots

    def _compose(self, event: Any, depth: int) -> _Node:
        if depth > DEPTH_MAX:
            self._refuse(event, f"nested more than {DEPTH_MAX} levels deep")
        kind = type(event)
        if kind is AliasEvent:
            return self._alias(event)
        self._check_untagged(event)
        anchor = event.anchor
        if anchor is not None:
            self._anchors[anchor] = None  # open: an alias to it now would contain itself
        if kind is ScalarEvent:
            node = self._scalar(event)
        else:
            node = self._mapping(event, depth) if kind is MappingStartEvent else self._sequence(event, depth)
            if node.size > VALUES_MAX:
                self._refuse(event, f"more than {VALUES_MAX} values with aliases expanded; write fewer")
        if anchor is not None:
            self._anchors[anchor] = node
        return node

    def _alias(self, event: Any) -> _Node:
        if event.anchor not in self._anchors:
            self._refuse(event, f"undefined alias {event.anchor!r}; define it with & before it is used")
        node = self._anchors[event.anchor]
        if node is None:
            self._refuse(event, f"the alias *{event.anchor} contains itself")
        assert node is not None
        return node

    def _sequence(self, start: Any, depth: int) -> _Node:
        node = _Node([], start.start_mark, start.end_mark)
        inner: list[_Node] = []
        while type(event := self._parser.get_event()) is not SequenceEndEvent:
            item = self._compose(event, depth + 1)
            inner.append(item)
            node.value.append(item.value)
            node.size += item.size
        node.inner, node.end = inner, event.end_mark
        return node

    def _mapping(self, start: Any, depth: int) -> _Node:
        node = _Node({}, start.start_mark, start.end_mark)
        inner: dict[str, tuple[Any, _Node]] = {}
        while type(event := self._parser.get_event()) is not MappingEndEvent:
            key = self._key(event, inner, depth)
            item = self._compose(self._parser.get_event(), depth + 1)
            if key is None:
                continue
            inner[key] = (event.start_mark, item)
            node.value[key] = item.value
            node.size += item.size
        node.inner, node.end = inner, event.end_mark
        return node

    def _key(self, event: Any, known: dict[str, tuple[Any, _Node]], depth: int) -> str | None:
        """The text of a key, or None after remembering why its value is passed over."""
        if type(event) is AliasEvent:
            self._problem(event, "a key must be written out, not be an alias")
            return None
        if type(event) is not ScalarEvent:
            self._compose(event, depth + 1)
            self._problem(event, "a key must be text, not a list or a mapping")
            return None
        self._check_untagged(event)
        key: str = event.value
        if event.anchor is not None:
            self._anchors[event.anchor] = _Node(key, event.start_mark, event.end_mark)
        if key == "<<" and event.implicit[0]:
            self._problem(event, "merge keys (<<) are not supported; write the keys out, or use an alias")
            return None
        if key in known:
            self._problem(event, f"the key {key!r} is given twice, first in line {known[key][0].line + 1}")
            return None
        return key

    def _scalar(self, event: Any) -> _Node:
        text: str = event.value
        plain = not event.style
        node = _Node(text, event.start_mark, event.end_mark)
        if "${" in text:
            try:
                replaced = self._substitute(text)
            except ValueError as error:
                self._problem(event, str(error))
                return node
            # Only a variable that stands alone is typed: in `a ${B}` nobody means a number.
            node.value = self._typed(replaced, event) if plain and is_one_variable(text) else replaced
        elif plain:
            node.value = self._typed(text, event)
        return node

    def _typed(self, text: str, event: Any) -> Any:
        try:
            return plain_value(text)
        except ValueError as error:
            self._problem(event, str(error))
            return math.inf  # a number, so that the model has nothing to add

    def _check_untagged(self, event: Any) -> None:
        """Remember a tag as a problem: the style of a value says what it is, and nothing else does."""
        if event.tag is not None:
            tag = event.tag.replace(_TAG, "!!", 1)
            self._problem(event, f"the tag {tag} is not supported; remove it")

    def _problem(self, event: Any, message: str) -> None:
        self._text.problem(event.start_mark.line + 1, event.start_mark.column + 1, message)

    def _refuse(self, event: Any, message: str) -> None:
        self._problem(event, message)
        raise DefinitionError(self._text.problems)


_ONE_VARIABLE = re.compile(r"\$\{[^{}]*\}")


def is_one_variable(text: str) -> bool:
    """Whether `text` is one `${...}` and nothing else."""
    return _ONE_VARIABLE.fullmatch(text) is not None

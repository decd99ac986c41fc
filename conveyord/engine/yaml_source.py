"""Reads YAML into plain values that remember where they were written.

Values follow YAML 1.2's core schema: `yes` is text, a date is text, `1_000` is a number. Documents are
composed to ruamel's node graph and converted here rather than by a constructor, because that is
where duplicate keys, alias bombs and unknown tags can all be reported at once, with their places.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode
from ruamel.yaml.reader import ReaderError

from conveyord.engine.problems import DefinitionError, Problem

FILE_BYTES_MAX = 256 * 1024  # some hundred pipelines; ruamel reads about 100 KB a second
VALUES_MAX = 100_000  # after aliases are expanded; a file of FILE_BYTES_MAX holds fewer by hand
DEPTH_MAX = 64  # beyond any manifest, and well below Python's recursion limit

_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value and its key start. Lines and columns count from 1."""

    line: int
    column: int
    key_line: int
    key_column: int


Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document: its value, and the place of everything in it by path from the root."""

    value: Any
    places: dict[Path, Place]


class YamlText:
    """The text of one file, for reading it and for pointing into it."""

    def __init__(self, path: str, content: bytes) -> None:
        """Raises DefinitionError if `content` is too large or is not UTF-8."""
        self.path = path
        self.problems: list[Problem] = []
        self._lines: list[str] = []
        if len(content) > FILE_BYTES_MAX:
            limit = f"the limit is {FILE_BYTES_MAX}; split the file"
            raise DefinitionError([Problem(path, 0, 0, f"the file has {len(content)} bytes, {limit}")])
        try:
            self.text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            column = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
            raise DefinitionError(
                [
                    Problem(
                        path,
                        line,
                        column,
                        f"byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8",
                    )
                ]
            ) from error
        self._lines = self.text.split("\n")

    def problem(self, line: int, column: int, message: str) -> None:
        """Remember a problem at a place, both counted from 1."""
        source_line = self._lines[line - 1] if 0 < line <= len(self._lines) else ""
        self.problems.append(Problem(self.path, line, column, message, source_line))

    def documents(self) -> list[Document]:
        """The documents that are not empty. Duplicate keys and the like are remembered as problems.

        Raises DefinitionError at a syntax error, because nothing after it can be trusted.
        """
        try:
            roots = [
                node for node in YAML(typ="safe", pure=True).compose_all(io.StringIO(self.text)) if node is not None
            ]
        except (YAMLError, RecursionError, ValueError) as error:
            self._syntax_problem(error)
            raise DefinitionError(self.problems) from error
        converted = []
        for root in roots:
            conversion = _Conversion(self)
            value = conversion.convert(root, (), None)
            if value is not None:
                converted.append(Document(value, conversion.places))
        return converted

    def _syntax_problem(self, error: Exception) -> None:
        if isinstance(error, ReaderError):
            # Reader errors carry an offset only, and it is relative to a buffer.
            position = next((i for i, char in enumerate(self.text) if ord(char) == error.character), 0)
            line = self.text.count("\n", 0, position) + 1
            column = position - (self.text.rfind("\n", 0, position) + 1) + 1
            self.problem(line, column, f"the character U+{error.character:04X} is not allowed in YAML; remove it")
            return
        mark = error.problem_mark or error.context_mark if isinstance(error, MarkedYAMLError) else None
        if mark is None:
            self.problem(1, 1, "the file is nested too deeply or is not YAML" if not str(error) else str(error))
            return
        opened = error.context_mark if isinstance(error, MarkedYAMLError) else None
        if opened is not None and not "".join(self._lines[mark.line :])[mark.column :].strip():
            # The parser noticed at the end of the file; the mistake is where it began.
            sentence = "what begins here is not closed before the file ends"
            self.problem(opened.line + 1, opened.column + 1, sentence)
            return
        self.problem(mark.line + 1, mark.column + 1, self._syntax_sentence(error, mark.line, mark.column))

    def _syntax_sentence(self, error: Exception, line: int, column: int) -> str:
        problem = str(getattr(error, "problem", error))
        here = self._lines[line][column : column + 1] if line < len(self._lines) else ""
        if here == "\t":
            return "a tab cannot indent YAML; use spaces"
        if "mapping values are not allowed" in problem:
            return "a second ': ' in one value; put the value in quotes, or the key on its own line"
        if "undefined alias" in problem:
            return f"{problem}; define it with & before it is used"
        if here == "{" and self._lines[line][column - 1 : column] == "$":
            return "${...} is not supported yet; write the value itself"
        context = getattr(error, "context", None)
        return f"not YAML: {problem}" + (f" ({context})" if context else "")


class _Conversion:
    """Turns one node graph into values and places. Counts what aliases expand to."""

    def __init__(self, text: YamlText) -> None:
        self._text = text
        self._values = 0
        self._open: set[int] = set()
        self.places: dict[Path, Place] = {}

    def convert(self, node: Node, path: Path, key: Node | None) -> Any:
        mark = node.start_mark
        key_mark = mark if key is None else key.start_mark
        place = Place(mark.line + 1, mark.column + 1, key_mark.line + 1, key_mark.column + 1)
        self.places[path] = place
        self._values += 1
        if self._values > VALUES_MAX:
            self._refuse(place, f"aliases expand to more than {VALUES_MAX} values; write fewer of them out")
        if len(path) > DEPTH_MAX:
            self._refuse(place, f"nested more than {DEPTH_MAX} levels deep")
        if id(node) in self._open:
            self._refuse(place, f"the alias *{node.anchor} contains itself")
        if isinstance(node, ScalarNode):
            return self._scalar(node, place)
        if not str(node.tag).startswith(_TAG):
            self._unknown_tag(node, place)
        self._open.add(id(node))
        try:
            if isinstance(node, MappingNode):
                return self._mapping(node, path)
            return [self.convert(item, (*path, index), None) for index, item in enumerate(node.value)]
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line, column = key_node.start_mark.line + 1, key_node.start_mark.column + 1
            if not isinstance(key_node, ScalarNode):
                self._text.problem(line, column, "a key must be text, not a list or a mapping")
                continue
            key = key_node.value
            if key_node.tag == f"{_TAG}merge":
                self._text.problem(
                    line, column, "merge keys (<<) are not supported; write the keys out, or use an alias"
                )
                continue
            if key in result:
                first = self.places[(*path, key)].key_line
                self._text.problem(line, column, f"the key {key!r} is given twice, first in line {first}")
                continue
            result[key] = self.convert(value_node, (*path, key), key_node)
        return result

    def _scalar(self, node: ScalarNode, place: Place) -> Any:
        text = node.value
        if "${" in text:
            self._text.problem(place.line, place.column, "${...} is not supported yet; write the value itself")
        tag = str(node.tag).removeprefix(_TAG)
        try:
            match tag:
                case "null":
                    return None
                case "bool":
                    return text.lower() == "true"
                case "int":
                    return _integer(text)
                case "float":
                    return self._float(text, place)
                case "str" | "timestamp":
                    return text
        except ValueError:
            return text  # an explicit tag on text that does not fit it: the model will say what it wants
        self._unknown_tag(node, place)
        return text

    def _float(self, text: str, place: Place) -> float:
        number = float(text.replace("_", "").replace(".inf", "inf").replace(".Inf", "inf").replace(".nan", "nan"))
        if not math.isfinite(number):
            self._text.problem(place.line, place.column, f"{text} is not a number that a setting can have")
        return number

    def _unknown_tag(self, node: Node, place: Place) -> None:
        tag = str(node.tag).replace(_TAG, "!!")
        self._text.problem(place.line, place.column, f"the tag {tag} is not supported; remove it")

    def _refuse(self, place: Place, message: str) -> None:
        self._text.problem(place.line, place.column, message)
        raise DefinitionError(self._text.problems)


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("+-")
    for prefix, base in (("0x", 16), ("0o", 8), ("0b", 2)):
        if digits.startswith(prefix):
            return sign * int(digits, base)
    return sign * int(digits, 10)


def place_of(document: Document, path: Sequence[str | int]) -> tuple[Place, Path]:
    """The place of the longest part of `path` that was written, and that part.

    Elements that name no key are passed over: pydantic puts the branch of a union into a location.
    """
    known: Path = ()
    for part in path:
        if (*known, part) in document.places:
            known = (*known, part)
    return document.places[known], known

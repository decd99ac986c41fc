"""A document with the file it stands in: what every check points into."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from conveyord.engine.definitions.sentences import (
    HIDDEN_VALUE,
    Model,
    joined,
    model_at,
    name_of,
    sentence_of,
    shown_value,
)
from conveyord.engine.yaml_source import Document, Path, Place, YamlText

_QUOTED_VARIABLE = re.compile(r"""(?:&\S+\s+)?(?P<quote>["'])(?P<variable>\$\{[^{}]*\})(?P=quote)""")


@dataclass(frozen=True, slots=True)
class Written:
    """One document of one file."""

    text: YamlText
    document: Document

    @property
    def value(self) -> Any:
        """The whole document as plain values."""
        return self.document.value

    def at(self, path: Path, message: str, *, key: bool = False) -> None:
        """Remember a problem with the value at `path`, or with its key."""
        place, _ = self.document.place(path)
        line, column = (place.key_line, place.key_column) if key else (place.line, place.column)
        self.text.problem(line, column, message)

    def place(self, path: Path) -> str:
        """`file:line` of the value at `path`."""
        return f"{self.text.path}:{self.document.place(path)[0].key_line}"

    def hide(self, paths: Collection[Path]) -> None:
        """Keep the values at `paths` out of every line that is shown."""
        for path in paths:
            place, known = self.document.place(path)
            if known == path:
                self.text.hide(place)

    def _quoted_variable(self, place: Place) -> str | None:
        """The `${...}` that alone stands between the quotes of the value at `place`; None if none does."""
        if place.line != place.end_line:
            return None
        written = self.text.lines[place.line - 1][place.column - 1 : place.end_column - 1]
        match = _QUOTED_VARIABLE.fullmatch(written)
        return None if match is None else match["variable"]

    def report(
        self, error: ValidationError, base: Path, model: Model, what: str, *, hidden: Collection[Path] = ()
    ) -> None:
        """Remember every problem of `error`, which came from validating the value at `base` against `model`.

        what: what that value is called. hidden: paths whose values must not be shown.
        """
        sentences: dict[tuple[int, int], list[str]] = {}
        for detail in error.errors(include_url=False, include_input=False):
            place, known = self.document.place((*base, *detail["loc"]))
            value = value_at(self.value, known)
            # Nothing stands where a null is written by leaving the value out.
            by_key = detail["type"] in ("extra_forbidden", "missing") or value is None
            where = (place.key_line, place.key_column) if by_key else (place.line, place.column)
            secret = any(known[: len(path)] == path for path in hidden)
            sentence = sentence_of(
                detail,
                shown=HIDDEN_VALUE if secret else shown_value(value),
                value=None if secret else value,
                name=name_of(known) if len(known) > len(base) else what,
                model=model_at(model, detail["loc"][:-1]),
                variable=None if secret else self._quoted_variable(place),
            )
            if sentence not in sentences.setdefault(where, []):
                sentences[where].append(sentence)
        for (line, column), several in sentences.items():
            for sentence in joined(several):
                self.text.problem(line, column, sentence)


def value_at(value: Any, path: Path) -> Any:
    """What stands at `path` in `value`."""
    for part in path:
        value = value[part]
    return value

"""Names of tables with the name of a topic in them, such as `raw.{topic}`."""

from __future__ import annotations

import re
from dataclasses import dataclass

PLACEHOLDER = "{topic}"

_NO_IDENTIFIER = re.compile(r"[^A-Za-z0-9_]")
_PART = re.compile(r"[^.\s{}]+")


def identifier_of(topic: str) -> str:
    """`topic` with `_` for what a name in SQL cannot hold without quotes: all but letters, digits and `_`."""
    return _NO_IDENTIFIER.sub("_", topic)


@dataclass(frozen=True, slots=True)
class TableTemplate:
    """`namespace.table` with `{topic}` in one of its parts, or without it, for one topic."""

    text: str

    @property
    def is_fixed(self) -> bool:
        """Whether it stands for one table, whatever the topic."""
        return PLACEHOLDER not in self.text

    def table_of(self, topic: str) -> str:
        """The table of `topic`, as `namespace.table`. Others may come to the same one."""
        return self.text.replace(PLACEHOLDER, identifier_of(topic))

    def parts(self) -> tuple[str | re.Pattern[str], ...]:
        """What the parts of a table's name are: as they are, or what the whole of one must match."""
        return tuple(
            re.compile(re.escape(part).replace(re.escape(PLACEHOLDER), "[A-Za-z0-9_]+"))
            if PLACEHOLDER in part
            else part
            for part in self.text.split(".")
        )


def check_template(text: str) -> str:
    """`text`, if it can be a `TableTemplate`. Raises ValueError with a sentence if not."""
    parts = text.replace(PLACEHOLDER, "x", 1).split(".")
    if text.count(PLACEHOLDER) > 1:
        raise ValueError(
            f"a table's name has {PLACEHOLDER} once, this one has it {text.count(PLACEHOLDER)} times: {text}"
        )
    if not all(_PART.fullmatch(part) for part in parts):
        raise ValueError(
            f"not the name of a table: {text!r}; write namespace.table, such as raw.{PLACEHOLDER}, where {PLACEHOLDER} "
            "stands for the topic's name"
        )
    if len(parts) < 2:
        raise ValueError(f"the table {text!r} has no namespace; write such as raw.{text}")
    return text

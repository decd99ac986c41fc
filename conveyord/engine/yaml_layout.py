"""A YAML text as a tree that can be rearranged and written again with every comment in its place.

A library's round trip keeps a comment with the token before it, so that a key that moves leaves its comment
behind. Here a comment belongs to the entry below it (or beside it, or to the end of the block it
is indented like), and scalars and flow collections are written as they stand in the source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

INDENT = 2  # columns

BLOCK_HEADER = re.compile(r"(?:[&!]\S*\s+)*[|>](?P<marks>[0-9+-]*)")
"""How a scalar in block style begins: its anchor and tag, its style, and how it is indented and ended."""


@dataclass(slots=True)
class Leaf:
    """A scalar or an alias, as written. `value` is what a scalar holds, without quotes; "" for an alias."""

    text: str
    value: str = ""
    block: bool = False


@dataclass(slots=True)
class Entry:
    """One key with its value, or one item of a list (`key` is None).

    before: lines of comment above it; an empty one is a blank line. beside: the comment at the end of its
    line, with the spaces in front of it. first, end: the offsets in the source of its key or dash, and of
    the end of its value.
    """

    key: Leaf | None
    value: Leaf | Collection
    column: int
    first: int
    end: int
    before: list[str] = field(default_factory=list)
    beside: str = ""


@dataclass(slots=True)
class Collection:
    """A mapping or a list. `after`: lines of comment behind its last entry, indented like it.

    text: a flow collection as written; None once it must be written anew. anchor: `&name` or empty.
    """

    mapping: bool
    entries: list[Entry] = field(default_factory=list)
    flow: bool = False
    text: str | None = None
    anchor: str = ""
    after: list[str] = field(default_factory=list)

    def entry(self, key: str) -> Entry | None:
        """The entry of a mapping by its key, if there is one."""
        return next((entry for entry in self.entries if entry.key is not None and entry.key.value == key), None)


@dataclass(slots=True)
class Page:
    """One document. `header` is the comment on top of it, which stays there. `root` is None if it is empty."""

    root: Collection | Leaf | None
    header: list[str] = field(default_factory=list)


def write_pages(pages: list[Page]) -> str:
    """The text of `pages`, which ends in a line end unless it is empty."""
    texts = ["\n".join(_page_lines(page)).strip("\n") for page in pages]
    joined = "\n---\n".join(text for text in texts if text)
    return f"{joined}\n" if joined else ""


def leaves(page: Page) -> Iterator[Leaf]:
    """Every scalar and alias that is a value, in the order of the document."""
    if isinstance(page.root, Leaf):
        yield page.root
    elif page.root is not None:
        yield from _leaves(page.root)


def _leaves(collection: Collection) -> Iterator[Leaf]:
    for entry in collection.entries:
        if isinstance(entry.value, Leaf):
            yield entry.value
        else:
            yield from _leaves(entry.value)


def _page_lines(page: Page) -> list[str]:
    lines = list(page.header)
    if isinstance(page.root, Leaf):
        return [*lines, *_leaf_lines(page.root, 0)]
    return lines if page.root is None else [*lines, *_block_lines(page.root)]


def _block_lines(collection: Collection) -> list[str]:
    """The lines of a collection in block style, beginning in the first column."""
    if not collection.entries:
        return ["{}" if collection.mapping else "[]"]
    lines: list[str] = []
    for index, entry in enumerate(collection.entries):
        written = _mapping_entry(entry) if collection.mapping else _list_entry(entry)
        before = entry.before if index else _without_leading_blanks(entry.before)
        lines += [*before, *written]
    return lines + collection.after


def _without_leading_blanks(lines: list[str]) -> list[str]:
    return next((lines[index:] for index, line in enumerate(lines) if line), [])


def _mapping_entry(entry: Entry) -> list[str]:
    assert entry.key is not None
    key, value = f"{entry.key.text}:", entry.value
    if isinstance(value, Collection) and _is_block(value):
        head = " ".join(part for part in (key, value.anchor) if part)
        return [_beside(head, entry.beside), *_indented(_block_lines(value))]
    first, *rest = _value_lines(entry)
    lines = [f"{key} {first}" if first else key, *rest]
    return [*lines[:-1], _beside(lines[-1], entry.beside)]


def _list_entry(entry: Entry) -> list[str]:
    value = entry.value
    if isinstance(value, Collection) and _is_block(value):
        inner = _block_lines(value)
        if value.anchor or value.entries[0].before:
            return [_beside(f"- {value.anchor}".rstrip(), entry.beside), *_indented(inner)]
        head = [entry.beside.lstrip()] if entry.beside else []
        return [*head, f"- {inner[0]}", *_indented(inner[1:])]
    first, *rest = _value_lines(entry)
    lines = [f"- {first}".rstrip(), *rest]
    return [*lines[:-1], _beside(lines[-1], entry.beside)]


def _is_block(collection: Collection) -> bool:
    return collection.text is None and bool(collection.entries)


def _value_lines(entry: Entry) -> list[str]:
    value = entry.value
    if isinstance(value, Leaf):
        return _leaf_lines(value, entry.column)
    if value.text is None:
        return [" ".join(part for part in (value.anchor, *_block_lines(value)) if part)]
    first, *rest = value.text.split("\n")
    # Lines of a flow collection keep their distance from the key, at least what makes them belong to it.
    shifted = [
        " " * max(INDENT if not line.strip().startswith(("}", "]")) else 0, _columns(line) - entry.column)
        + line.strip()
        for line in rest
    ]
    return [first, *(line if line.strip() else "" for line in shifted)]


def _leaf_lines(leaf: Leaf, column: int) -> list[str]:
    first, *rest = leaf.text.split("\n")
    if not rest:
        return [first]
    if not leaf.block:
        return [first, *(" " * INDENT + line.lstrip(" \t") if line.strip() else "" for line in rest)]
    header = BLOCK_HEADER.match(first)
    digits = re.sub(r"\D", "", header["marks"]) if header else ""
    if digits:
        source, target = column + int(digits), int(digits)
    else:
        source, target = next((_columns(line) for line in rest if line.strip()), 0), INDENT
    return [first, *(" " * target + line[source:] if line[source:] else "" for line in rest)]


def _columns(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _beside(line: str, comment: str) -> str:
    return line + comment


def _indented(lines: list[str]) -> list[str]:
    return [" " * INDENT + line if line else "" for line in lines]

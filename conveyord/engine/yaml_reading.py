"""Reads a YAML text into the tree of yaml_layout.py, and gives every comment its entry."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from yaml.cyaml import CParser
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from conveyord.engine.yaml_layout import BLOCK_HEADER, Collection, Entry, Leaf, Page

_COMMENT = re.compile(r"(?:^|(?<=\s))#[^\n]*", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Comment:
    first: int
    column: int
    text: str
    beside: bool  # something other than dashes stands before it on its line


def read_pages(text: str) -> list[Page]:
    """The documents of `text`, whose lines must end in a line feed alone. Raises yaml.YAMLError if it is not YAML."""
    return _Reader(text).pages()


def comments(text: str) -> list[str]:
    """Every comment of `text` without its indentation, sorted."""
    return sorted(comment.text for comment in _Reader(text).comments)


def _events(text: str) -> Iterator[Event]:
    parser = CParser(text)
    while parser.check_event():
        yield parser.get_event()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._events = list(_events(text))
        self._spans = [self._span(event) for event in self._events if isinstance(event, ScalarEvent)]
        self.comments = list(self._comments())

    def _span(self, event: Event) -> tuple[int, int]:
        return event.start_mark.index, event.end_mark.index

    def _comments(self) -> Iterator[_Comment]:
        at = 0
        for first, end in [*self._spans, (len(self._text), len(self._text))]:
            for match in _COMMENT.finditer(self._text, at, max(at, first)):
                line = self._text.rfind("\n", 0, match.start()) + 1
                ahead = self._text[line : match.start()]
                yield _Comment(match.start(), len(ahead), match[0].rstrip(), bool(ahead.strip(" \t-")))
            at = max(at, end)

    def pages(self) -> list[Page]:
        starts = [event for event in self._events if isinstance(event, DocumentStartEvent)]
        bounds = [start.start_mark.index for start in starts[1:]] + [len(self._text)]
        pages = []
        events = iter(self._events)
        first = 0
        for end in bounds:
            for event in events:
                if isinstance(event, DocumentStartEvent):
                    break
            pages.append(self._page(events, first, end))
            first = end
        return pages

    def _page(self, events: Iterator[Event], first: int, end: int) -> Page:
        event = next(events, None)
        root = None if event is None else self._node(event, events)
        begin, stop = (bisect_left(self.comments, at, key=lambda comment: comment.first) for at in (first, end))
        mine = self.comments[begin:stop]
        if not isinstance(root, Collection):
            return Page(root, [comment.text for comment in mine])
        page = Page(root)
        self._blanks(root)
        _Placing(self._text, page, root, mine).place()
        return page

    def _node(self, event: Event, events: Iterator[Event]) -> Leaf | Collection:
        first, end = self._span(event)
        if isinstance(event, AliasEvent):
            return Leaf(self._text[first:end])
        if isinstance(event, ScalarEvent):
            text = self._text[first:end]
            block = event.style in ("|", ">")
            if block:
                text = text.removesuffix("\n") if _keeps_ends(text) else text.rstrip("\n ")
            return Leaf(text, event.value, block)
        assert isinstance(event, MappingStartEvent | SequenceStartEvent), event
        mapping = isinstance(event, MappingStartEvent)
        made = Collection(mapping, flow=bool(event.flow_style), anchor=f"&{event.anchor}" if event.anchor else "")
        stop = self._entries(made, events)
        if made.flow:
            made.text = self._text[first : stop.end_mark.index]
        return made

    def _entries(self, made: Collection, events: Iterator[Event]) -> Event:
        """Read the entries of a collection; gives the event that ends it."""
        for event in events:
            if isinstance(event, MappingEndEvent | SequenceEndEvent):
                return event
            key = None
            first, end = self._span(event)
            if made.mapping:
                node = self._node(event, events)
                # A key that is a collection is refused when a definition is loaded; here it is kept as text.
                key = node if isinstance(node, Leaf) else Leaf(node.text or "?")
                event = next(events)
            elif not made.flow:
                first = self._text.rfind("-", 0, first)
            value = self._node(event, events)
            if value != Leaf(""):
                end = self._end(event, value)
            column = first - (self._text.rfind("\n", 0, first) + 1)
            made.entries.append(Entry(key, value, column, first, end))
        raise AssertionError("every collection ends with an event of its own")

    def _end(self, event: Event, value: Leaf | Collection) -> int:
        first: int = event.start_mark.index
        if isinstance(value, Leaf):
            return first + len(value.text)
        if value.text is not None:
            return first + len(value.text)
        return value.entries[-1].end if value.entries else first

    def _blanks(self, collection: Collection) -> None:
        """Remember a blank line above an entry that has no comment above it."""
        for index, entry in enumerate(collection.entries):
            if isinstance(entry.value, Collection) and not entry.value.flow:
                self._blanks(entry.value)
            if index and not _ends_kept(collection.entries[index - 1]) and _blank_above(self._text, entry.first):
                entry.before.append("")


def _keeps_ends(text: str) -> bool:
    """Whether a block scalar holds the blank lines behind it (`|+`)."""
    header = BLOCK_HEADER.match(text)
    return header is not None and "+" in header["marks"]


def _ends_kept(entry: Entry) -> bool:
    """Whether the blank lines behind an entry belong to its last scalar."""
    value = entry.value
    if isinstance(value, Leaf):
        return value.block and _keeps_ends(value.text)
    return not value.flow and bool(value.entries) and _ends_kept(value.entries[-1])


def _blank_above(text: str, at: int) -> bool:
    """Whether the line above the one at `at` is there and blank."""
    line = text.rfind("\n", 0, at)
    if line <= 0:
        return False
    above = text.rfind("\n", 0, line)
    return not text[above + 1 : line].strip()


class _Placing:
    """Gives every comment of a document its entry."""

    def __init__(self, text: str, page: Page, root: Collection, found: list[_Comment]) -> None:
        self._text = text
        self._page = page
        self._comments = found
        self._order: list[tuple[Entry, tuple[Collection, ...]]] = list(_preorder(root, ()))
        self._placed_before: Entry | None = None

    def place(self) -> None:
        position = 0
        for comment in self._comments:
            while position < len(self._order) and self._order[position][0].first < comment.first:
                position += 1
            last = self._order[position - 1] if position else None
            following = self._order[position] if position < len(self._order) else None
            if last is not None and self._within(last[0], comment):
                continue  # inside a flow collection, which is written as it stands
            if last is None:
                self._add(self._page.header, comment, blank=self._blank(comment))
            elif comment.beside and not last[0].beside:
                last[0].beside = self._gap(comment) + comment.text
            else:
                blank = self._blank(comment) and not _ends_kept(last[0])
                self._add(self._lines_for(comment, last, following), comment, blank=blank)
        self._close_header()

    def _gap(self, comment: _Comment) -> str:
        """The spaces in front of a comment: two, or more if its author lined it up with others."""
        ahead = self._text[comment.first - comment.column : comment.first]
        return " " * max(2, len(ahead) - len(ahead.rstrip(" ")))

    def _within(self, entry: Entry, comment: _Comment) -> bool:
        verbatim = isinstance(entry.value, Collection) and entry.value.flow
        return verbatim and comment.first < entry.end

    def _lines_for(
        self,
        comment: _Comment,
        last: tuple[Entry, tuple[Collection, ...]],
        following: tuple[Entry, tuple[Collection, ...]] | None,
    ) -> list[str]:
        if following is not None and (comment.column <= following[0].column or self._placed_before is following[0]):
            self._placed_before = following[0]
            return following[0].before
        open_still = () if following is None else following[1]
        for collection in reversed(last[1]):
            closed = not any(collection is one for one in open_still)
            if closed and (collection.entries[0].column <= comment.column or collection is last[1][0]):
                return collection.after
        assert following is not None, "without a following entry the root is closed"
        self._placed_before = following[0]
        return following[0].before

    def _blank(self, comment: _Comment) -> bool:
        return _blank_above(self._text, comment.first)

    def _add(self, lines: list[str], comment: _Comment, *, blank: bool) -> None:
        # A blank line that `_blanks` saw right above the entry stands below this comment.
        below = [lines.pop()] if lines and lines[-1] == "" else []
        lines += [*([""] if blank else []), comment.text, *below]

    def _close_header(self) -> None:
        header, first = self._page.header, self._order[0][0] if self._order else None
        if header and first is not None and _blank_above(self._text, first.first):
            header.append("")


def _preorder(collection: Collection, above: tuple[Collection, ...]) -> Iterator[tuple[Entry, tuple[Collection, ...]]]:
    """Every entry outside flow collections, with the collections it lies in, outermost first."""
    path = (*above, collection)
    for entry in collection.entries:
        yield entry, path
        if isinstance(entry.value, Collection) and not entry.value.flow:
            yield from _preorder(entry.value, path)

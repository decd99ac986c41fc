"""The `ascii` format: boxes from top to bottom, joined by lines, for a terminal and for a diff.

A line that passes another one without touching it is drawn through, as `─│─`; where lines join there is a
corner or a tee. So a picture has one reading: every arrow leaves its box by the one *stem* below it and
arrives at a *port* of its own above the target, and no port stands below another box's stem.
What does not fit the width is drawn as a tree instead (conveyord/core/pipeline/drawing/tree.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from conveyord.core.pipeline.drawing.layers import Item, Layers, Segment, layered, placed
from conveyord.core.pipeline.drawing.picture import Box, Group, columns, groups, shortened
from conveyord.core.pipeline.drawing.tree import tree
from conveyord.core.pipeline.optimiser import Plan

COLUMNS_MAX = 100
LABEL_COLUMNS_MAX = 22  # of one line of a label; longer ones are wrapped, so that four branches fit side by side
GAP_COLUMNS = 2
BEND_COLUMNS = 3  # room for a line to step aside from a stem above it

_UP, _DOWN, _RIGHT, _LEFT = 1, 2, 4, 8
_WIRES = {
    _UP | _DOWN: "│",
    _LEFT | _RIGHT: "─",
    _DOWN | _RIGHT: "╭",
    _DOWN | _LEFT: "╮",
    _UP | _RIGHT: "╰",
    _UP | _LEFT: "╯",
    _UP | _DOWN | _RIGHT: "├",
    _UP | _DOWN | _LEFT: "┤",
    _DOWN | _LEFT | _RIGHT: "┬",
    _UP | _LEFT | _RIGHT: "┴",
    _UP | _DOWN | _LEFT | _RIGHT: "┼",
}


def draw_ascii(plan: Plan, *, columns_max: int = COLUMNS_MAX) -> str:
    """Every group of pipelines under its title, in Unicode box characters, ending in a line feed.

    columns_max: wider groups are drawn as trees, whose width depends on their depth alone.
    """
    parts = []
    for group in groups(plan):
        lines = _Drawing(group).lines()
        if max(map(columns, lines)) > columns_max:
            lines = tree(group)
        parts.append("\n".join((group.title, "", *lines)) + "\n")
    return "\n".join(parts)


@dataclass(frozen=True, slots=True)
class _Way:
    """A segment between two rows of boxes: down from `stem`, aside, down to `port`. All are columns."""

    segment: Segment
    stem: int
    port: int


class _Drawing:
    """One group on a canvas that grows downwards."""

    def __init__(self, group: Group) -> None:
        self._boxes = {box.number: box for box in group.boxes}
        self._labels = [_wrapped(arrow.label) for arrow in group.arrows]
        self._arrows = group.arrows
        self._layers: Layers = layered(group)
        self._sizes = self._widths()
        self._left = placed(self._layers, sizes=self._sizes, gap=GAP_COLUMNS)
        self._stem: dict[Item, int] = {}
        self._wires: defaultdict[tuple[int, int], defaultdict[Item, int]] = defaultdict(lambda: defaultdict(int))
        self._text: dict[tuple[int, int], str] = {}
        self._row = 0

    def lines(self) -> list[str]:
        """The picture, without spaces at the ends of lines."""
        for number, layer in enumerate(self._layers.items):
            ways = self._ways(number)
            if ways:
                self._draw_ways(ways)
            self._draw_layer(layer, {way.segment.target: way.port for way in ways})
        for place, wires in self._wires.items():
            # Where two cross, the one that goes down is drawn through.
            mask = next(iter(wires.values())) if len(wires) == 1 else _UP | _DOWN
            self._text.setdefault(place, _WIRES[mask])
        return self._rows()

    def _widths(self) -> dict[Item, int]:
        """The width of every item: its text, and the labels of the arrows that arrive side by side above it."""
        needs: defaultdict[Item, int] = defaultdict(int)
        for segment in (each for layer in self._layers.segments for each in layer):
            needs[segment.target] += self._need(segment) + 1
        return {
            item: max(needs[item] + 3, *(columns(line) + 4 for line in self._boxes[item].lines))
            if item in self._boxes
            else BEND_COLUMNS
            for layer in self._layers.items
            for item in layer
        }

    def _label(self, segment: Segment) -> list[str]:
        """What stands beside the last piece of an arrow."""
        return self._labels[segment.arrow] if segment.target in self._boxes else []

    def _need(self, segment: Segment) -> int:
        """Columns from a port to the next one."""
        return max((columns(line) + 3 for line in self._label(segment)), default=2)

    def _ways(self, layer: int) -> list[_Way]:
        """The ways into a layer, each target's from left to right."""
        arriving: defaultdict[Item, list[Segment]] = defaultdict(list)
        for segment in sorted(self._layers.segments[layer], key=lambda each: (self._stem[each.source], each.arrow)):
            arriving[segment.target].append(segment)
        owner = {self._stem[each.source]: each.source for each in self._layers.segments[layer]}
        return [way for target in arriving for way in self._ports(target, arriving[target], owner)]

    def _ports(self, target: Item, segments: Sequence[Segment], owner: Mapping[int, Item]) -> Iterator[_Way]:
        """A port for each segment, as near below its stem as the target's width allows.

        Every choice leaves each later port at least two columns to choose from, and two stems are never
        next to each other, so that there is always one that is below no other item's stem.
        """
        box = target in self._boxes
        first = self._left[target] + box
        end = self._left[target] + self._sizes[target] - box
        rest = sum(self._need(segment) + 1 for segment in segments)
        for segment in segments:
            rest -= self._need(segment) + 1
            last = end - rest - (self._need(segment) - 1 if self._label(segment) else 1)
            stem = self._stem[segment.source]
            free = [port for port in range(first, last + 1) if owner.get(port, segment.source) == segment.source]
            port = min(free, key=lambda port: (abs(port - stem), port))
            first = port + self._need(segment)
            yield _Way(segment, stem, port)

    def _draw_ways(self, ways: Sequence[_Way]) -> None:
        """Draw everything between two layers: turns first, then labels, then arrow heads."""
        tracks = _tracks(ways)
        turns = max(tracks.values(), default=-1) + 1
        end = self._row + turns + max(len(self._label(way.segment)) for way in ways) + 1
        for way in ways:
            net = way.segment.source
            turn = self._row + tracks.get(net, 0)
            if way.stem != way.port:
                self._vertical(net, way.stem, self._row, turn, below=False)
                self._horizontal(net, turn, way.stem, way.port)
                self._vertical(net, way.port, turn, end, above=False)
            else:
                self._vertical(net, way.stem, self._row, end)
            for offset, line in enumerate(self._label(way.segment)):
                self._write(self._row + turns + offset, way.port + 2, line)
            if way.segment.target in self._boxes:
                self._text[end - 1, way.port] = "▼"
        self._row = end

    def _vertical(
        self, net: Item, column: int, first: int, end: int, *, above: bool = True, below: bool = True
    ) -> None:
        """A line down a column. above, below: whether it goes on beyond the first, or the last of its rows.

        With `below` false, `end` is the row it turns in; with `above` false, `first` is.
        """
        last = end if not below else end - 1
        for row in range(first, last + 1):
            up = _UP if above or row > first else 0
            down = _DOWN if below or row < last else 0
            self._wires[row, column][net] |= up | down

    def _horizontal(self, net: Item, row: int, one: int, other: int) -> None:
        first, last = sorted((one, other))
        for column in range(first, last + 1):
            self._wires[row, column][net] |= (_LEFT if column > first else 0) | (_RIGHT if column < last else 0)

    def _draw_layer(self, layer: Sequence[Item], ports: Mapping[Item, int]) -> None:
        """Draw a row of boxes, with their stems down to the lowest of them, and the bends beside them."""
        height = max(len(self._boxes[item].lines) + 2 if item in self._boxes else 1 for item in layer)
        sources = {segment.source for each in self._layers.segments for segment in each}
        for item in layer:
            if item in self._boxes:
                self._stem[item] = self._left[item] + self._sizes[item] // 2
                bottom = self._draw_box(self._boxes[item], stem=item in sources)
                if item in sources:
                    self._vertical(item, self._stem[item], bottom, self._row + height)
            else:
                self._stem[item] = ports[item]
                self._vertical(item, self._stem[item], self._row, self._row + height)
        self._row += height

    def _draw_box(self, box: Box, *, stem: bool) -> int:
        """Draw one box from the current row on, and return the row below it."""
        left, width = self._left[box.number], self._sizes[box.number]
        dash, bar = ("╌", "╎") if box.dashed else ("─", "│")
        bottom = list("└" + dash * (width - 2) + "┘")
        if stem:
            bottom[self._stem[box.number] - left] = "┬"
        self._write(self._row, left, "┌" + dash * (width - 2) + "┐")
        for row, line in enumerate(box.lines, self._row + 1):
            self._write(row, left, f"{bar} {line}")
            self._write(row, left + width - 1, bar)
        self._write(self._row + len(box.lines) + 1, left, "".join(bottom))
        return self._row + len(box.lines) + 2

    def _write(self, row: int, column: int, text: str) -> None:
        for character in text:
            width = columns(character)
            if not width:  # a combining mark belongs to the character before it
                self._text[row, column - 1] = self._text.get((row, column - 1), " ") + character
                continue
            self._text[row, column] = character
            if width == 2:
                self._text[row, column + 1] = ""
            column += width

    def _rows(self) -> list[str]:
        last: defaultdict[int, int] = defaultdict(lambda: -1)
        for row, column in self._text:
            last[row] = max(last[row], column)
        return [
            "".join(self._text.get((row, column), " ") for column in range(last[row] + 1)).rstrip()
            for row in range(self._row)
        ]


def _tracks(ways: Sequence[_Way]) -> dict[Item, int]:
    """For each item whose ways turn aside, the row to do it in: the first that is free over all of their columns."""
    spans: dict[Item, tuple[int, int]] = {}
    for way in ways:
        low, high = spans.get(way.segment.source, (way.stem, way.stem))
        spans[way.segment.source] = (min(low, way.port), max(high, way.port))
    ends: list[int] = []  # the last column taken in each row
    tracks: dict[Item, int] = {}
    for item, (low, high) in sorted(spans.items(), key=lambda each: (each[1], each[0])):
        if low == high:
            continue
        track = next((row for row, taken in enumerate(ends) if taken < low - 1), len(ends))
        ends[track : track + 1] = [high]
        tracks[item] = track
    return tracks


def _wrapped(label: str) -> list[str]:
    """`label` in lines of at most LABEL_COLUMNS_MAX columns, broken between words where there are any."""
    lines: list[str] = []
    for word in label.split(" ") if label else ():
        if lines and columns(lines[-1]) + 1 + columns(word) <= LABEL_COLUMNS_MAX:
            lines[-1] += " " + word
            continue
        while columns(word) > LABEL_COLUMNS_MAX:
            head = shortened(word, LABEL_COLUMNS_MAX)[:-1]
            lines.append(head)
            word = word[len(head) :]
        lines.append(word)
    return lines

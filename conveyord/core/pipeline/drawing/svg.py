"""The `svg` format: a picture of its own, without scripts, fonts or links.

Boxes bring their own background, and lines and labels are of a middle grey, so that it can be read on a
white page and on a black one, whatever the reader's settings say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape

from conveyord.core.pipeline.drawing.layers import Item, Layers, Segment, layered, placed
from conveyord.core.pipeline.drawing.picture import Arrow, Box, Group, columns, groups
from conveyord.core.pipeline.optimiser import Plan

# All in pixels. The text is monospaced, so that its width is known without measuring it.
CHARACTER_WIDTH = 7.3
LINE_HEIGHT = 17
PADDING = 10
PORT_HEIGHT = 22  # between arrows that arrive at one box: room for a label above each
LAYER_GAP = 48  # for the lines to bend in
ITEM_GAP = 20
BEND_HEIGHT = 10
MARGIN = 16
TITLE_HEIGHT = 26
HEAD = 7

_STYLE = (
    "text{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#111827}"
    ".title{font-weight:bold;fill:#6f7785}.label{fill:#6f7785}.name{font-weight:bold}.more{fill:#374151}"
    "rect{stroke:#6f7785;stroke-width:1.2}.source{fill:#d1fae5}.transform{fill:#e5e7eb}.sink{fill:#dbeafe}"
    ".dashed{stroke-dasharray:5 4;fill:#fee2e2}.arrow{fill:none;stroke:#6f7785;stroke-width:1.4}"
    ".spill{stroke-dasharray:5 4}.head{fill:#6f7785}"
)


def draw_svg(plan: Plan) -> str:
    """One document, groups below one another, each from left to right under its title."""
    body: list[str] = []
    width, top = 0, MARGIN
    for group in groups(plan):
        drawing = _Drawing(group, top=top)
        body += drawing.elements
        width, top = max(width, drawing.right), drawing.bottom + MARGIN
    size = f'width="{width + MARGIN}" height="{top}" viewBox="0 0 {width + MARGIN} {top}"'
    title = escape(", ".join(group.title for group in groups(plan)))
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    return "\n".join([opening, f"<title>{title}</title>", f"<style>{_STYLE}</style>", *body, "</svg>", ""])


class _Drawing:
    """One group. `elements` is its part of the document; `right` and `bottom` are where it ends."""

    def __init__(self, group: Group, *, top: int) -> None:
        self._boxes = {box.number: box for box in group.boxes}
        self._arrows = group.arrows
        self._layers: Layers = layered(group)
        self._heights = self._sizes()
        begin = placed(self._layers, sizes=self._heights, gap=ITEM_GAP)
        self._top = {item: top + TITLE_HEIGHT + y for item, y in begin.items()}
        self._left, self._widths = self._across()
        self.right = max(
            [MARGIN + _text_width(group.title), *(self._left[item] + self._widths[item] for item in self._boxes)]
        )
        self.bottom = max(self._top[item] + self._heights[item] for item in self._top)
        title = f'<text class="title" x="{MARGIN}" y="{top + 12}">{escape(group.title)}</text>'
        self.elements = [title, *self._lines(), *map(self._box, group.boxes)]

    def _sizes(self) -> dict[Item, int]:
        """The height of every item: its lines, and the arrows that arrive."""
        arriving: defaultdict[Item, int] = defaultdict(int)
        for segment in (each for layer in self._layers.segments for each in layer):
            arriving[segment.target] += 1
        return {
            item: max(len(self._boxes[item].lines) * LINE_HEIGHT + 2 * PADDING, arriving[item] * PORT_HEIGHT + PADDING)
            if item in self._boxes
            else BEND_HEIGHT
            for layer in self._layers.items
            for item in layer
        }

    def _across(self) -> tuple[dict[Item, int], dict[Item, int]]:
        """Where each item's layer begins from the left, behind room for labels; and how wide the item is."""
        left, widths, x = {}, {}, MARGIN
        for layer, segments in zip(self._layers.items, self._layers.segments, strict=True):
            if segments:
                x += LAYER_GAP + max(self._label_width(segment) for segment in segments)
            width = max((_box_width(self._boxes[item]) for item in layer if item in self._boxes), default=0)
            for item in layer:
                left[item] = x
                widths[item] = _box_width(self._boxes[item]) if item in self._boxes else width
            x += width
        return left, widths

    def _label_width(self, segment: Segment) -> int:
        label = self._arrows[segment.arrow].label if segment.target in self._boxes else ""
        return _text_width(label) + 2 * PADDING if label else 0

    def _lines(self) -> list[str]:
        """The arrows, each a path through its bends, with its label and head."""
        paths: defaultdict[int, list[str]] = defaultdict(list)
        ends: dict[int, tuple[int, int]] = {}
        for segments in self._layers.segments:
            for segment, y in self._ports(segments).items():
                source = segment.source
                x, middle = self._left[source] + self._widths[source], self._middle(source)
                # Boxes of one layer differ in width: go straight to where the widest ends.
                edge = max(x, self._left[segment.target] - LAYER_GAP - self._label_room(segments))
                turn = edge + LAYER_GAP - 2 * HEAD
                half = (edge + turn) // 2
                if not paths[segment.arrow]:
                    paths[segment.arrow].append(f"M{x} {middle}")
                end = self._left[segment.target] - (HEAD if segment.target in self._boxes else 0)
                paths[segment.arrow].append(f"H{edge}C{half} {middle} {half} {y} {turn} {y}H{end}")
                if segment.target not in self._boxes:
                    paths[segment.arrow].append(f"H{self._left[segment.target] + self._widths[segment.target]}")
                ends[segment.arrow] = (self._left[segment.target], y)
        return [self._arrow(arrow, paths[index], ends[index]) for index, arrow in enumerate(self._arrows)]

    def _label_room(self, segments: Sequence[Segment]) -> int:
        return max(self._label_width(segment) for segment in segments)

    def _middle(self, item: Item) -> int:
        return self._top[item] + self._heights[item] // 2

    def _ports(self, segments: Sequence[Segment]) -> Mapping[Segment, int]:
        """The height at which each segment arrives: spread over the box in the order of where they come from."""
        arriving: defaultdict[Item, list[Segment]] = defaultdict(list)
        for segment in sorted(segments, key=lambda each: (self._middle(each.source), each.arrow)):
            arriving[segment.target].append(segment)
        return {
            segment: self._middle(target) + round((index - (len(each) - 1) / 2) * PORT_HEIGHT)
            for target, each in arriving.items()
            for index, segment in enumerate(each)
        }

    def _arrow(self, arrow: Arrow, path: Sequence[str], end: tuple[int, int]) -> str:
        x, y = end
        spill = " spill" if arrow.spills else ""
        parts = [f'<path class="arrow{spill}" d="{"".join(path)}"/>']
        parts.append(f'<path class="head" d="M{x} {y}l-{HEAD + 2} -4v8z"/>')
        if arrow.label:
            position = f'x="{x - HEAD - 5}" y="{y - 5}" text-anchor="end"'
            parts.append(f'<text class="label" {position}>{escape(arrow.label)}</text>')
            parts.insert(0, f"<title>{escape(arrow.meaning)}</title>")
        return f"<g>{''.join(parts)}</g>"

    def _box(self, box: Box) -> str:
        x, y = self._left[box.number], self._top[box.number]
        size = f'width="{self._widths[box.number]}" height="{self._heights[box.number]}"'
        corner = {"source": 14, "transform": 3, "sink": 3}[box.kind]
        dashed = " dashed" if box.dashed else ""
        rows = self._heights[box.number] - len(box.lines) * LINE_HEIGHT
        first = y + rows // 2 + 12
        texts = (
            f'<text class="{"more" if row else "name"}" x="{x + PADDING}" y="{first + row * LINE_HEIGHT}">'
            f"{escape(line)}</text>"
            for row, line in enumerate(box.lines)
        )
        rectangle = f'<rect class="{box.kind}{dashed}" x="{x}" y="{y}" {size} rx="{corner}"/>'
        return f"<g>{rectangle}{''.join(texts)}</g>"


def _text_width(text: str) -> int:
    return round(columns(text) * CHARACTER_WIDTH)


def _box_width(box: Box) -> int:
    return max(map(_text_width, box.lines)) + 2 * PADDING

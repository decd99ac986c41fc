"""Where boxes stand in a layered drawing, in any unit and along either axis.

Boxes are put into layers so that every arrow points to a later layer, an arrow over several layers gets
a *bend* in each layer between, items are ordered within their layer so that few arrows cross, and moved
apart no further than their size needs. Source: Sugiyama, Tagawa, Toda 1981; the placing is isotonic
regression (pool adjacent violators), which is exact for a given order.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from conveyord.core.pipeline.drawing.picture import Group

SWEEPS = 8  # down and up; pipelines settle after two or three

Item = int
"""A box by its number, or a bend by a negative number."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of an arrow from one layer to the next. `arrow` is the arrow's index in the group."""

    source: Item
    target: Item
    arrow: int


@dataclass(frozen=True, slots=True)
class Layers:
    """Items by layer, each in drawing order, and the segments that lead into each layer (none into the first)."""

    items: tuple[tuple[Item, ...], ...]
    segments: tuple[tuple[Segment, ...], ...]


def layered(group: Group) -> Layers:
    """The layers of a group. Deterministic."""
    layer_of = _longest_paths(group)
    items: list[list[Item]] = [[] for _ in range(max(layer_of.values(), default=0) + 1)]
    segments: list[list[Segment]] = [[] for _ in items]
    joined = {number for arrow in group.arrows for number in (arrow.source, arrow.target)}
    for box in group.boxes:
        items[layer_of[box.number]].append(box.number)
    bends = 0
    for index, arrow in enumerate(group.arrows):
        previous = arrow.source
        for layer in range(layer_of[arrow.source] + 1, layer_of[arrow.target]):
            bends += 1
            items[layer].append(-bends)
            segments[layer].append(Segment(previous, -bends, index))
            previous = -bends
        segments[layer_of[arrow.target]].append(Segment(previous, arrow.target, index))
    ordered = _ordered(items, segments)
    # A box without arrows pulls nowhere: it stands behind the others of its layer.
    alone = [tuple(sorted(layer, key=lambda item: item >= 0 and item not in joined)) for layer in ordered]
    return Layers(tuple(alone), tuple(map(tuple, segments)))


def placed(layers: Layers, *, sizes: Mapping[Item, int], gap: int) -> dict[Item, int]:
    """Where each item begins along its layer, from 0: near what it is joined to, at least `gap` from the next.

    sizes: of every item along the layer, bends included, in the unit of the result.
    """
    parents, children = _neighbours(layers.segments)
    centre: dict[Item, float] = {}
    for layer in layers.items:
        begin = 0
        for item in layer:
            centre[item] = begin + sizes[item] / 2
            begin += sizes[item] + gap
    joined = [[item for item in layer if parents[item] or children[item]] for layer in layers.items]
    for sweep in range(SWEEPS):
        near = children if sweep % 2 else parents
        for settling in reversed(joined) if sweep % 2 else joined:
            _settle(settling, near, centre, sizes=sizes, gap=gap)
    for whole, settled in zip(layers.items, joined, strict=True):
        end = max((centre[item] + sizes[item] / 2 + gap for item in settled), default=0.0)
        for item in whole:
            if not (parents[item] or children[item]):
                centre[item] = end + sizes[item] / 2
                end += sizes[item] + gap
    first = min((centre[item] - sizes[item] / 2 for item in centre), default=0.0)
    return {item: round(centre[item] - sizes[item] / 2 - first) for item in centre}


def _settle(
    layer: Sequence[Item],
    near: Mapping[Item, Sequence[Item]],
    centre: dict[Item, float],
    *,
    sizes: Mapping[Item, int],
    gap: int,
) -> None:
    """Move the items of one layer as near to their neighbours as their order and sizes allow."""
    blocks: list[tuple[float, int]] = []  # (sum, count) of beginnings, less the room that earlier items take
    room, rooms = 0, []
    for item in layer:
        wanted = sum(centre[other] for other in near[item]) / len(near[item]) if near[item] else centre[item]
        block = (wanted - sizes[item] / 2 - room, 1)
        while blocks and blocks[-1][0] / blocks[-1][1] > block[0] / block[1]:
            before = blocks.pop()
            block = (before[0] + block[0], before[1] + block[1])
        blocks.append(block)
        rooms.append(room)
        room += sizes[item] + gap
    means = [total / count for total, count in blocks for _ in range(count)]
    for item, mean, before_it in zip(layer, means, rooms, strict=True):
        # Whole units here, so that two items never come closer than `gap` by being rounded at the end.
        centre[item] = round(mean) + before_it + sizes[item] / 2


def _longest_paths(group: Group) -> dict[int, int]:
    """Layer by box: one after the last parent's; a source right before its first child, a box without arrows last."""
    parents, children = defaultdict(list), defaultdict(list)
    for arrow in group.arrows:
        parents[arrow.target].append(arrow.source)
        children[arrow.source].append(arrow.target)
    layer_of: dict[int, int] = {}
    for box in group.boxes:
        layer_of[box.number] = max((layer_of[parent] + 1 for parent in parents[box.number]), default=0)
    last = max(layer_of.values(), default=0)
    for box in group.boxes:
        if not parents[box.number]:
            layer_of[box.number] = min((layer_of[child] - 1 for child in children[box.number]), default=last)
    return layer_of


def _ordered(items: list[list[Item]], segments: list[list[Segment]]) -> tuple[tuple[Item, ...], ...]:
    """The order of fewest crossings that barycentre sweeps come by, the definition's order if they find none better."""
    parents, children = _neighbours(segments)
    best, fewest = [tuple(layer) for layer in items], _crossings(items, segments)
    for sweep in range(SWEEPS):
        if not fewest:
            break
        if sweep % 2 == 0:
            for above, layer in pairwise(items):
                layer.sort(key=_barycentre(above, parents, layer))
        else:
            for layer, below in zip(items[-2::-1], items[:0:-1], strict=True):
                layer.sort(key=_barycentre(below, children, layer))
        crossings = _crossings(items, segments)
        if crossings < fewest:
            best, fewest = [tuple(layer) for layer in items], crossings
    return tuple(best)


def _barycentre(
    beside: Sequence[Item], near: Mapping[Item, Sequence[Item]], layer: Sequence[Item]
) -> Callable[[Item], float]:
    """A sort key: the mean place of an item's neighbours in the layer `beside`, its own place if it has none."""
    place = {item: index for index, item in enumerate(beside)}
    own = {item: index for index, item in enumerate(layer)}

    def key(item: Item) -> float:
        return sum(place[other] for other in near[item]) / len(near[item]) if near[item] else float(own[item])

    return key


def _neighbours(
    segments: Sequence[Sequence[Segment]],
) -> tuple[defaultdict[Item, list[Item]], defaultdict[Item, list[Item]]]:
    """Parents and children in the layers beside, by item."""
    parents: defaultdict[Item, list[Item]] = defaultdict(list)
    children: defaultdict[Item, list[Item]] = defaultdict(list)
    for segment in (each for layer in segments for each in layer):
        parents[segment.target].append(segment.source)
        children[segment.source].append(segment.target)
    return parents, children


def _crossings(items: Sequence[Sequence[Item]], segments: Sequence[Sequence[Segment]]) -> int:
    place = {item: index for layer in items for index, item in enumerate(layer)}
    count = 0
    for layer in segments:
        seen: list[int] = []  # ends of the segments that begin further left
        for _, end in sorted((place[segment.source], place[segment.target]) for segment in layer):
            count += len(seen) - bisect_right(seen, end)
            insort(seen, end)
    return count

"""Which rows of a batch go along which edge of one output. Blocking, without state between batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from conveyord.core.pipeline.graph import Edge
from conveyord.engine.conditions import RowCondition
from conveyord.engine.sql import without_views

Masks = list[pa.BooleanArray | None]
"""For each edge the rows that it takes; None for all of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Exit:
    """One edge that leaves a stage, and the pipelines it belongs to."""

    edge: Edge
    members: frozenset[str]
    condition: RowCondition | None = None


class Router:
    """The edges of one output. Of the edges of a pipeline, `otherwise` takes what its conditional ones do not."""

    def __init__(self, exits: Sequence[Exit]) -> None:
        self.exits = tuple(exits)
        self.output = exits[0].edge.output
        self.is_plain = all(way.condition is None and not way.edge.otherwise for way in exits)

    def masks(self, data: pa.RecordBatch) -> Masks:
        """The rows that each edge takes. Raises what `RowCondition.rows` raises."""
        if self.is_plain:
            return [None] * len(self.exits)
        told = {way: way.condition.rows(data) for way in self.exits if way.condition is not None}
        masks: Masks = []
        for way in self.exits:
            if way.edge.otherwise:
                siblings = [mask for other, mask in told.items() if other.members & way.members]
                masks.append(pc.invert(any_of(siblings)) if siblings else None)
            else:
                masks.append(told.get(way))
        return masks

    def joined(self, pieces: Sequence[Masks], data: pa.RecordBatch) -> Masks:
        """The masks of `data`, whose rows those of `pieces` are, one after the other."""
        if not pieces:
            return self.masks(data)
        return [None if parts[0] is None else pa.concat_arrays(parts) for parts in zip(*pieces, strict=True)]

    def untaken(self, masks: Masks) -> dict[str, int]:
        """By pipeline, how many rows none of its edges takes."""
        counts: dict[str, int] = {}
        for pipeline in frozenset[str]().union(*(way.members for way in self.exits)):
            own = [mask for way, mask in zip(self.exits, masks, strict=True) if pipeline in way.members]
            some = [mask for mask in own if mask is not None]
            if len(some) == len(own):
                taken = any_of(some)
                counts[pipeline] = len(taken) - taken.true_count
        return counts


def any_of(masks: Sequence[pa.BooleanArray]) -> pa.BooleanArray:
    """Where at least one of `masks`, of which there is one or more, is true."""
    taken = masks[0]
    for mask in masks[1:]:
        taken = pc.or_(taken, mask)
    return taken


def chosen(data: pa.RecordBatch, mask: pa.BooleanArray | None) -> pa.RecordBatch:
    """The rows of `data` where `mask` is true; all of them for None."""
    if mask is None or mask.true_count == data.num_rows:
        return data
    return without_views(data).filter(mask)

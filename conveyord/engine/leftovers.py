"""What an earlier run left on disk, and whether this one can go on from it.

Spilled frames are worth something only if they follow, without a gap, on what every sink behind the edge
holds. Dead letters stand only for records that a sink has put behind it; others are read again, and may
turn out well this time. Where some sinks are past a record and others are not, its letter is for the former
only from then on: the latter get what the record becomes this time, be it a row or a letter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from conveyord.core.errors import Refused
from conveyord.core.flow.dead_letters import DeadLetter, LetterKey
from conveyord.core.flow.positions import Partition, Positions
from conveyord.core.pipeline.graph import MAIN, Pipeline
from conveyord.engine.copies import SOURCE as COPIES
from conveyord.engine.dead_lettering import BEHIND
from conveyord.storage.dead_letters.letters import Selection
from conveyord.storage.dead_letters.store import DeadLetterStore
from conveyord.storage.spill.frames import FrameMeta

Frames = Iterable[tuple[int, FrameMeta]]


def followed(frames: Frames, held: Sequence[Positions]) -> tuple[Positions, ...] | None:
    """Where each of the sinks that are at `held` will be once it has all `frames`; None if there is a gap."""
    reached = list(held)
    for _, meta in frames:
        for number, positions in enumerate(reached):
            if all(positions.covers(span) for span in meta.spans):
                continue
            if any(span.first > 0 and span.partition not in positions for span in meta.spans):
                return None  # what came before went straight on, and was lost with the run
            try:
                moved = positions.advanced(meta.spans)
            except ValueError:
                return None
            reached[number] = Positions(moved, {**moved.states, **meta.states})
    return tuple(reached)


@dataclass(frozen=True, slots=True)
class Point:
    """Where a letter's row goes on from: the stage it arrived at, or the output of it by which it had left."""

    stage: str
    output: str | None = None


def point_of(key: LetterKey, pipeline: Pipeline) -> Point | None:
    """Where a letter failed; None if the pipeline has no such stage any more."""
    named, names = key.stage, {stage.name for stage in pipeline.stages}
    if not named.endswith(BEHIND):
        return Point(named) if named in names else None
    named = named.removesuffix(BEHIND)
    if named in names:
        return Point(named, MAIN)
    stage, _, output = named.rpartition(".")
    return Point(stage, output) if stage in names else None


class Lacks:
    """Which sinks of one pipeline lack what a letter stands for, by what each of them holds."""

    def __init__(
        self,
        pipeline: Pipeline,
        held: Mapping[str, Positions | None],
        reached: Mapping[str, Positions | None] | None = None,
    ) -> None:
        """held: by sink, under the pipeline's own names. A sink that keeps no positions is never counted.
        reached: what each will have once it has what was spilled before it; without it nothing is.
        """
        self._pipeline = pipeline
        self._keeping = frozenset(sink for sink, positions in held.items() if positions is not None)
        self._held = held
        self._reached = held if reached is None else reached
        spilling = [edge.target for edge in pipeline.edges if edge.on_slow == "spill"]
        self._behind_spills = frozenset[str]().union(*(pipeline.below(target) for target in spilling))
        self._below: dict[str, frozenset[str] | None] = {}

    def below(self, key: LetterKey) -> frozenset[str] | None:
        """The sinks that rows reach from where a letter failed; None if its stage is gone."""
        if key.stage not in self._below:
            point = point_of(key, self._pipeline)
            reached = None if point is None else self._pipeline.below(point.stage, point.output) & self._keeping
            self._below[key.stage] = reached
        return self._below[key.stage]

    def meant(self, letter: DeadLetter) -> frozenset[str] | None:
        """The sinks of this pipeline that a letter is for; None if there is no place for it at the moment.

        Empty if none that keeps positions was behind its stage when it failed.
        """
        below = self.below(letter.key)
        if below is None or letter.sinks is None:
            return None if below is None else frozenset()
        return (letter.sinks & below) or None

    def absent(self, letter: DeadLetter) -> frozenset[str]:
        """What a letter waits for that the pipeline does not have: its stage, or else sinks."""
        below = self.below(letter.key)
        return frozenset([letter.key.stage]) if below is None else (letter.sinks or frozenset()) - below

    def past(self, key: LetterKey, sinks: Iterable[str]) -> frozenset[str]:
        """Those of `sinks` that are past the record of a letter."""
        return frozenset(sink for sink in sinks if self._is_past(key, sink))

    def _is_past(self, key: LetterKey, sink: str) -> bool:
        # What was spilled is not read again, but the stages behind the spill have it still before them.
        point = point_of(key, self._pipeline)
        is_behind_spill = point is not None and point.stage in self._behind_spills
        positions = (self._held if is_behind_spill else self._reached)[sink]
        position = None if positions is None else positions.get(key.partition)
        return position is not None and key.offset < position.offset

    def admit(self, letter: DeadLetter) -> DeadLetter | None:
        """A letter that failed in a run, for the sinks that were not past its record when the run started.

        The others have had it, or a letter of an earlier run is theirs. None if there is nobody who lacks it: its
        record was only read again for a sink that it does not reach.
        """
        below = self.below(letter.key)
        return letter if not below else only_for(letter, below - self.past(letter.key, below))


def only_for(letter: DeadLetter, lacking: frozenset[str]) -> DeadLetter | None:
    """`letter` for the sinks that lack it; None if none does.

    They are named even if all do: a sink that is taken out of the pipeline for a while keeps its claim.
    """
    return replace(letter, sinks=lacking) if lacking else None


def drop_unread(store: DeadLetterStore, pipeline: Pipeline, lacks: Lacks, *, copied_to: int) -> int:
    """Take letters from the sinks that have not passed their records, which are read again. Blocking.

    A letter for which no sink is left is deleted; returns how many are. Sinks that the pipeline does not have at
    the moment keep theirs, and letters stay as they are whose stage it does not have, or whose sinks keep no
    positions. Those that `dlq.sink` has keep their ids, so that it gets no second copy if they fail again.
    Raises Refused if one is queued for replay to a sink for which its record would be read again.
    """
    unread: list[int] = []
    fewer: dict[int, frozenset[str]] = {}
    for stored in store.select(Selection(pipeline=pipeline.identity), payloads=False):
        meant = lacks.meant(stored.letter)
        again = (meant or frozenset()) - lacks.past(stored.letter.key, meant or ())
        if not again:
            continue
        if stored.state == "queued":
            raise Refused(
                f"pipeline {pipeline.identity}: dead letter {stored.id} is queued for replay, and its record would be "
                f"read again for {', '.join(sorted(again))}; finish the replay with `conveyord dlq replay` first"
            )
        if left := (stored.letter.sinks or frozenset()) - again:
            fewer[stored.id] = left
        else:
            unread.append(stored.id)
    store.restrict(fewer)
    return store.drop(pipeline.identity, unread, copied_to=copied_to)


def copied_to(pipeline: Pipeline, held: Mapping[str, Positions | None]) -> int:
    """The highest id of a letter that the pipeline's `dlq.sink` has."""
    sink = None if pipeline.dlq is None else pipeline.dlq.sink
    positions = None if sink is None else held[sink]
    partition = Partition(COPIES, pipeline.identity)
    return 0 if positions is None or partition not in positions else positions[partition].offset

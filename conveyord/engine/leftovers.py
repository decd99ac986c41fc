"""What an earlier run left on disk, and whether this one can go on from it.

Spilled frames are worth something only if they follow, without a gap, on what every sink behind the edge
holds. Dead letters stand only for records that a sink has put behind it; others are read again, and may
turn out well this time: then the sink gets what the record becomes, be it a row or a letter, and the former letter
is for it no longer. But whether its source has a record still is not known before it was read, so no letter goes
sooner (`engine/rereading.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from conveyord.core.flow.dead_letters import KEEPS_NONE, DeadLetter, LetterKey
from conveyord.core.flow.positions import Partition, Positions
from conveyord.core.pipeline.graph import MAIN, Pipeline
from conveyord.engine.copies import COPIED
from conveyord.engine.copies import SOURCE as LETTERS
from conveyord.engine.dead_lettering import BEHIND
from conveyord.storage.dead_letters.letters import Claim, Selection, StoredLetter
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


def point_of(stage: str, pipeline: Pipeline) -> Point | None:
    """Where letters failed whose keys name their stage so; None if the pipeline has no such stage any more."""
    names = {one.name for one in pipeline.stages}
    if not stage.endswith(BEHIND):
        return Point(stage) if stage in names else None
    stage = stage.removesuffix(BEHIND)
    if stage in names:
        return Point(stage, MAIN)
    stage, _, output = stage.rpartition(".")
    return Point(stage, output) if stage in names else None


@dataclass(frozen=True, slots=True)
class Standing:
    """How far one sink is.

    destination: what it writes to, by which letters know it; see `Sink.destination`. held: what it has; None if it
    keeps no positions. reached: what it will have once it has what was spilled before it; None: nothing was. share_of:
    see `Sink.share_of`.
    """

    destination: str
    held: Positions | None
    reached: Positions | None = None
    share_of: Callable[[Partition], str | None] = lambda _: None

    def claimant(self, partition: Partition) -> str:
        """What stands for it among the sinks of a letter whose record is of `partition`."""
        if self.held is None:
            return KEEPS_NONE
        share = self.share_of(partition)
        return self.destination if share is None else f"{self.destination}, {share}"


class Lacks:
    """Which sinks of one pipeline lack what a letter stands for, by what each of them has."""

    def __init__(self, pipeline: Pipeline, standings: Mapping[str, Standing]) -> None:
        """standings: of the pipeline's sinks, by their names."""
        self._pipeline = pipeline
        self._standings = standings
        spilling = [edge.target for edge in pipeline.edges if edge.on_slow == "spill"]
        self._behind_spills = frozenset[str]().union(*(pipeline.below(target) for target in spilling))
        self._kinds = {stage.name: stage.kind for stage in pipeline.stages}
        self._below: dict[tuple[str, bool], tuple[Standing, ...] | None] = {}

    def below(self, key: LetterKey) -> frozenset[str] | None:
        """Those that rows reach from where a letter failed, as `Standing.claimant`; None if its stage is gone."""
        is_of_source = key.stage == key.partition.source
        place = key.stage, is_of_source
        if place not in self._below:
            point = point_of(key.stage, self._pipeline)
            if point is not None and point.output is None and is_of_source != (self._kinds[point.stage] == "source"):
                point = None  # another stage has that name: what a source could not read is no row
            reached = frozenset[str]() if point is None else self._pipeline.below(point.stage, point.output)
            found = tuple(one for name, one in self._standings.items() if name in reached)
            self._below[place] = None if point is None else found
        below = self._below[place]
        return None if below is None else frozenset(one.claimant(key.partition) for one in below)

    def _claimants(self, key: LetterKey) -> dict[str, Standing]:
        return {standing.claimant(key.partition): standing for standing in self._standings.values()}

    def absent(self, key: LetterKey, sink: str) -> str | None:
        """What a letter's way to a sink lacks in this definition: its stage, or the sink behind it. None: nothing."""
        below = self.below(key)
        if below is None:
            return f"stage {key.stage}"
        if sink in below:
            return None
        return f"{sink} behind stage {key.stage}" if sink in self._claimants(key) else sink

    def is_past(self, key: LetterKey, sink: str) -> bool:
        """Whether a sink has put the record of a letter behind it; one that keeps no positions always has."""
        standing = self._claimants(key)[sink]
        if standing.held is None:
            return True
        # What was spilled is not read again, but the stages behind the spill have it still before them.
        is_behind_spill = self._is_behind_spill(key)
        return _covers(standing.held if is_behind_spill or standing.reached is None else standing.reached, key)

    def _is_behind_spill(self, key: LetterKey) -> bool:
        point = point_of(key.stage, self._pipeline)
        return point is not None and point.stage in self._behind_spills

    def unread(self, stored: StoredLetter) -> list[Claim]:
        """Which sinks of a letter have its record still to come, in whatever state it is, if its source has it."""
        key = stored.letter.key
        known = stored.claims.keys() & self._claimants(key).keys()
        found = [sink for sink in known if not self.is_past(key, sink)]
        if found and KEEPS_NONE in known:
            found.append(KEEPS_NONE)
        return [Claim(stored.id, sink) for sink in found]

    def spilled(self, key: LetterKey, unread: Sequence[Claim]) -> list[Claim]:
        """For which sinks such a record lies on disk, from where it goes on to them without being read again."""
        standings = self._claimants(key)
        reached = {claim: standings[claim.sink].reached for claim in unread if self._is_behind_spill(key)}
        found = [claim for claim, positions in reached.items() if positions is not None and _covers(positions, key)]
        return [*found, *(claim for claim in unread if claim.sink == KEEPS_NONE)] if found else []

    def knows(self, key: LetterKey, sink: str) -> bool:
        """Whether a sink of a letter is in this definition."""
        return sink in self._claimants(key)

    def arrived(self, key: LetterKey, sinks: Collection[str]) -> list[str]:
        """Which of `sinks`, for which the record of a letter was read again, have what it became.

        Those that keep no positions go with any other.
        """
        standings = self._claimants(key)
        found = [sink for sink in sinks if sink in standings and _has_since(standings[sink].held, key)]
        return [*found, KEEPS_NONE] if found and KEEPS_NONE in sinks else found

    def admit(self, letter: DeadLetter) -> DeadLetter | None:
        """A letter that failed in a run, for the sinks that were not past its record when the run started.

        The others have had it, or a letter of an earlier run is theirs. None if there is nobody who lacks it: its
        record was only read again for a sink that it does not reach.
        """
        below = self.below(letter.key) or frozenset()
        lacking = frozenset(sink for sink in below if sink == KEEPS_NONE or not self.is_past(letter.key, sink))
        return replace(letter, sinks=lacking) if lacking else None


def _covers(positions: Positions, key: LetterKey) -> bool:
    position = positions.get(key.partition)
    return position is not None and key.offset < position.offset


def _has_since(held: Positions | None, key: LetterKey) -> bool:
    """Whether a sink that holds so much has what became of a letter's record since that was read again."""
    if held is None:
        return False
    if key.partition.source == LETTERS:  # nobody knows of which record it is: see `LetterQueries.untold`
        return any(partition.source != LETTERS for partition in held)
    return _covers(held, key)


def let_go_of_arrived(store: DeadLetterStore, pipeline: Pipeline, lacks: Lacks, *, copied_to: int) -> int:
    """Take letters from the sinks for which a run read their records again, and which have them since. Blocking.

    A letter for which no sink is left is deleted; returns how many are. Those that `dlq.sink` has keep their ids, so
    that it gets no second copy if they fail again.
    """
    sinks: dict[int, list[str]] = {}
    for claim in store.on_their_way(pipeline.identity):
        sinks.setdefault(claim.letter, []).append(claim.sink)
    letters = store.select(Selection(ids=tuple(sinks)), payloads=False)
    claims = [
        Claim(stored.id, sink) for stored in letters for sink in lacks.arrived(stored.letter.key, sinks[stored.id])
    ]
    return store.give_up(pipeline.identity, claims, copied_to=copied_to)


def copied_to(pipeline: Pipeline, standings: Mapping[str, Standing]) -> int:
    """The highest id of a letter that the pipeline's `dlq.sink` has."""
    sink = None if pipeline.dlq is None else pipeline.dlq.sink
    positions = None if sink is None else standings[sink].held
    return 0 if positions is None or COPIED not in positions else positions[COPIED].offset

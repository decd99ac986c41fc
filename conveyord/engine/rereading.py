"""What a run reads again of the records that dead letters stand for, and which letters may go therefore.

A letter that a sink has not passed may be the last there is of its record: the file was archived, a partition's
beginning has moved on, a journal was lost. So it goes when its record was read again and has arrived, which takes two
steps, because no crash may come between a table and the letters:

    before a batch goes on    it is noted, durably, that the records in it are on their way to the sinks that lack them
    once all has arrived      the letter is taken from those sinks; where a run ends early, the next one, or a replay,
                              sees by the sinks' positions which of these records have arrived

What fails again is put under its key anew, and so is no longer on its way. A letter whose record does not come stays.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import structlog

from conveyord.core.flow.dead_letters import LetterKey
from conveyord.core.flow.positions import Partition, Span
from conveyord.core.pipeline.graph import Pipeline
from conveyord.engine.copies import SOURCE as LETTERS
from conveyord.engine.dead_lettering import LetterBox
from conveyord.engine.leftovers import Lacks, let_go_of_arrived
from conveyord.storage.dead_letters.letters import Claim, Selection

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Expected:
    """Claims by the offsets of their records, which ascend, in one partition: those of all pipelines that read it."""

    offsets: list[int] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    def add(self, offset: int, claim: Claim) -> None:
        """Expect the record at `offset`."""
        at = bisect_right(self.offsets, offset)
        self.offsets.insert(at, offset)
        self.claims.insert(at, claim)

    def within(self, span: Span) -> list[Claim]:
        """Those of records in a span."""
        return self.claims[self._slice(span)]

    def drop(self, span: Span) -> None:
        """Expect the records in a span no longer."""
        own = self._slice(span)
        del self.offsets[own], self.claims[own]

    def _slice(self, span: Span) -> slice:
        return slice(bisect_left(self.offsets, span.first), bisect_left(self.offsets, span.end))


class Rereading:
    """The letters of one run whose records some sinks have still to come."""

    def __init__(self, box: LetterBox) -> None:
        self._box = box
        self._expected: dict[Partition, _Expected] = {}
        self._of_any: dict[str, list[Claim]] = {}
        self._pipelines: list[tuple[Pipeline, Lacks, int]] = []

    async def begin(self, pipeline: Pipeline, lacks: Lacks, *, names: Mapping[str, str], copied_to: int) -> None:
        """Let go of the letters whose records have arrived since, and expect the others that some sink lacks.

        names: the pipeline's own names of sources to the run's. copied_to: the highest id of a letter that its
        `dlq.sink` has. Also where letters are queued for a replay: that was to another table, or it was emptied since.
        """
        self._pipelines.append((pipeline, lacks, copied_to))
        work = partial(let_go_of_arrived, self._box.store, pipeline, lacks, copied_to=copied_to)
        _tell(pipeline, await self._box.ask(work))
        found: list[tuple[LetterKey, Claim]] = await self._box.ask(self._begun, pipeline, lacks)
        for key, claim in sorted(found, key=lambda one: one[0].offset):  # sorted: each goes to the end, or near it
            if key.partition.source == LETTERS:  # nobody knows of which record it is, so any may be that one
                for name in names.values():
                    self._of_any.setdefault(name, []).append(claim)
                continue
            place = Partition(names.get(key.partition.source, key.partition.source), key.partition.name)
            self._expected.setdefault(place, _Expected()).add(key.offset, claim)

    def _begun(self, pipeline: Pipeline, lacks: Lacks) -> list[tuple[LetterKey, Claim]]:
        """What is to be read again, once that is noted. Blocking."""
        store = self._box.store
        found, spilled = [], []
        on_their_way = set(store.on_their_way(pipeline.identity))
        for stored in store.select(Selection(pipeline=pipeline.identity), payloads=False):
            key, unread = stored.letter.key, lacks.unread(stored)
            on_disk = lacks.spilled(key, unread)
            spilled += on_disk
            found += [(key, claim) for claim in unread if claim not in on_disk]
        fresh = [claim for claim in spilled if claim not in on_their_way]
        store.expect([*(claim for _, claim in found), *fresh])
        store.come_again(fresh)
        return found

    async def sent(self, spans: tuple[Span, ...]) -> None:
        """What lies in `spans` was read, and is about to go on. Durable on return."""
        known = [(self._expected[span.partition], span) for span in spans if span.partition in self._expected]
        sources = {span.partition.source for span in spans if span.end > span.first}
        claims = [claim for expected, span in known for claim in expected.within(span)]
        claims += [claim for source in sources for claim in self._of_any.get(source, ())]
        if not claims:
            return
        await self._box.ask(self._box.store.come_again, claims)
        # Only now: if that failed, the same spans come again.
        for expected, span in known:
            expected.drop(span)
        for source in sources:
            self._of_any.pop(source, None)

    async def end(self) -> None:
        """Every sink has all that was sent: let go of the letters that it stands for, and say which stay."""
        waiting = [*(expected.claims for expected in self._expected.values()), *self._of_any.values()]
        left = {claim.letter for claims in waiting for claim in claims}
        for pipeline, lacks, copied_to in self._pipelines:
            _tell(pipeline, await self._box.ask(self._ended, pipeline, lacks, copied_to))
            chosen = Selection(pipeline=pipeline.identity, ids=tuple(left))
            if left and (kept := await self._box.ask(self._box.store.count, chosen)):
                log.warning(
                    "dead letters stay, as their records were not read again; if the source has none of them any more, "
                    "these are the last there is of them: see `conveyord dlq list` and `conveyord dlq export`",
                    pipeline=pipeline.identity,
                    letters=kept,
                )

    def _ended(self, pipeline: Pipeline, lacks: Lacks, copied_to: int) -> int:
        """Blocking."""
        store = self._box.store
        if copied_to or (pipeline.dlq is not None and pipeline.dlq.sink is not None):
            copied_to = max(copied_to, store.last_id(pipeline.identity))  # it has been given all there are
        on_their_way = store.on_their_way(pipeline.identity)
        ids = tuple({claim.letter for claim in on_their_way})
        keys = {stored.id: stored.letter.key for stored in store.select(Selection(ids=ids), payloads=False)}
        here = [claim for claim in on_their_way if lacks.knows(keys[claim.letter], claim.sink)]
        return store.give_up(pipeline.identity, here, copied_to=copied_to)


def _tell(pipeline: Pipeline, dropped: int) -> None:
    if dropped:
        log.info("records of dead letters were read again", pipeline=pipeline.identity, letters=dropped)

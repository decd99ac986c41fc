"""The queue against a list, by random operations, crashes and damage."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from conveyord.core.errors import StorageFull
from conveyord.storage.spill.budget import SpillBudget
from conveyord.storage.spill.inspection import QueueName, inspect, report
from tests.storage.spill_rig import batch, files_of, flip, meta, opened, segments, value_of

BUDGET = 12_000
SIZES = st.sampled_from([0, 0, 0, 300, 4_000])


class SpillMachine(RuleBasedStateMachine):
    """`held` is what the queue must hold, oldest first; `read` how much of it was read."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="conveyord-spill-")) / "q"
        self.budget = SpillBudget(BUDGET)
        self.held: list[int] = []
        self.read = 0
        self.settled = 0
        self.value = 0

    @initialize()
    def open(self) -> None:
        self.queue = opened(self.directory, budget=self.budget)

    @rule(size=SIZES)
    def append(self, size: int) -> None:
        try:
            number = self.queue.append(meta(self.value), batch(self.value, size=size))
        except StorageFull:
            assert self.queue.bytes > 0
            return
        self.held.append(self.value)
        self.value += 1
        assert number == self.settled + len(self.held)

    @rule()
    def read_one(self) -> None:
        found = self.queue.read()
        if self.read == len(self.held):
            assert found is None
            return
        assert found is not None
        assert found[0] == self.settled + self.read + 1
        assert value_of(found) == self.held[self.read]
        self.read += 1

    @rule(part=st.floats(0, 1))
    def settle(self, part: float) -> None:
        count = round(part * len(self.held))
        self.queue.settle(self.settled + count)
        self._forget(count)

    @rule(part=st.floats(0, 1))
    def discard_after(self, part: float) -> None:
        count = round(part * len(self.held))
        self.queue.discard_after(self.settled + count)
        del self.held[count:]
        self.read = min(self.read, count)

    @rule()
    def discard_all(self) -> None:
        self.queue.discard_all()
        self._forget(len(self.held))

    @rule()
    def reopen(self) -> None:
        self._closed()
        self.queue = opened(self.directory, budget=self.budget)
        assert self.queue.recovered.frames == len(self.held)
        assert (self.queue.recovered.quarantined, self.queue.recovered.torn_bytes) == ((), 0)

    @rule()
    def reopen_for_another_definition_and_back(self) -> None:
        self._closed()
        opened(self.directory, digest="b").close()
        self.queue = opened(self.directory, budget=self.budget)
        self.held.clear()

    @precondition(lambda self: segments(self.directory))
    @rule(data=st.data())
    def damage_while_closed(self, data: st.DataObject) -> None:
        self._closed()
        path = data.draw(st.sampled_from(segments(self.directory)))
        size = path.stat().st_size
        kind = data.draw(st.sampled_from(["flip", "cut", "remove", "grow"]))
        if kind == "flip":
            flip(path, data.draw(st.integers(0, size - 1)), bit=data.draw(st.integers(0, 7)))
        elif kind == "cut":
            path.write_bytes(path.read_bytes()[: data.draw(st.integers(0, size - 1))])
        elif kind == "remove":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes() + data.draw(st.binary(min_size=1, max_size=50)))
        self.queue = opened(self.directory, budget=self.budget)
        count = self.queue.frames
        assert count <= len(self.held)
        del self.held[count:]  # a prefix: reading shows whether it is the right one

    @invariant()
    def numbers_and_budget_agree_with_the_disk(self) -> None:
        assert self.queue.settled == self.settled
        assert self.queue.frames == len(self.held)
        on_disk = sum(path.stat().st_size for path in segments(self.directory))
        assert self.queue.bytes == self.budget.in_use == on_disk
        assert self.held or on_disk == 0

    @invariant()
    def metas_are_those_of_what_is_held(self) -> None:
        numbers = range(self.settled + 1, self.settled + 1 + len(self.held))
        assert list(self.queue.metas()) == list(zip(numbers, map(meta, self.held), strict=True))

    @invariant()
    def looking_at_it_shows_the_same_and_changes_nothing(self) -> None:
        files = files_of(self.directory)
        name = QueueName("p", "e", self.directory)
        shown, seen = report(name, now_seconds=0.0), inspect(name)
        assert (shown.frames, shown.health, seen.fault) == (len(self.held), "ok", None)
        assert sum(span.end - span.first for span in seen.spans) == len(self.held)
        assert files_of(self.directory) == files

    def teardown(self) -> None:
        self.queue.close()
        assert self.budget.in_use == 0
        shutil.rmtree(self.directory.parent)

    def _forget(self, count: int) -> None:
        del self.held[:count]
        self.settled += count
        self.read = max(self.read - count, 0)

    def _closed(self) -> None:
        self.queue.close()
        self.read = 0
        assert self.budget.in_use == 0


TestSpillMachine = SpillMachine.TestCase

"""Whatever is done to dead letters, in whatever order, leaves what a plain list says."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from conveyord.storage.dead_letters.letters import Claim, Selection
from conveyord.storage.dead_letters.reader import DeadLetterReader
from tests.storage.dead_letters_rig import LANE, PIPELINE, letter, opened


@dataclass
class Kept:
    """A letter of the model. variant: 0 if it has its key; less if another made it give way; more if it came beside."""

    offset: int
    variant: int
    raw: bytes | None
    attempts: int
    claims: dict[str, int | None]


class Model(RuleBasedStateMachine):
    """Any sequence of operations, with the store closed and opened in between, leaves what a list says."""

    offsets = st.integers(0, 5)
    sinks = st.sampled_from(["a", "b", "c"])

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self._home = tempfile.TemporaryDirectory()
        self._dir = Path(self._home.name)
        self._store = opened(self._dir)
        self._at = 0
        self._letters: dict[int, Kept] = {}  # by id
        self._sequence = 0

    def teardown(self) -> None:
        self._store.close()
        self._home.cleanup()

    def _there(self, offsets: set[int]) -> list[int]:
        return sorted(each for each, kept in self._letters.items() if kept.offset in offsets and kept.claims)

    @rule(
        offsets=st.lists(offsets, max_size=4),
        sinks=st.sets(sinks, min_size=1),
        raws=st.lists(st.sampled_from([b"a", b"b"]) | st.binary(max_size=70_000), min_size=4, max_size=4),
    )
    def put(self, offsets: list[int], sinks: set[str], raws: list[bytes]) -> None:
        """Some may have the same key: then they are different rows, none of which takes the place of another."""
        self._at += 1
        given = list(zip(offsets, raws, strict=False))
        self._store.put([letter(offset, raw=raw, sinks=frozenset(sinks)) for offset, raw in given], self._at)
        for number, (offset, raw) in enumerate(given):
            self._put_one(offset, offsets[:number].count(offset), sinks, raw)
        there = Counter((kept.offset, kept.raw) for kept in self._letters.values() if kept.claims.keys() >= sinks)
        assert there >= Counter(given)

    def _put_one(self, offset: int, variant: int, sinks: set[str], raw: bytes) -> None:
        of_record = [kept for kept in self._letters.values() if kept.offset == offset]
        here = [kept for kept in of_record if kept.variant == variant]
        if here and here[0].raw not in (raw, None):
            here[0].claims = {sink: number for sink, number in here[0].claims.items() if sink not in sinks}
            if here[0].claims:
                here[0].variant = min(0, *(kept.variant for kept in of_record)) - 1
                here = []
        if here:
            (kept,) = here
            kept.raw, kept.attempts, kept.claims = raw, kept.attempts + 1, {**kept.claims, **dict.fromkeys(sinks)}
        else:
            known = {stored.id for stored in self._store.select()}
            new = min(known - self._letters.keys())
            self._letters[new] = Kept(offset, variant, raw, 1, dict.fromkeys(sinks))

    @rule(offsets=st.sets(offsets), sink=sinks)
    def queue(self, offsets: set[int], sink: str) -> None:
        some = [each for each in self._there(offsets) if self._letters[each].claims.get(sink, 0) is None]
        assert self._store.queue(PIPELINE, [Claim(each, sink) for each in self._there(offsets)]) == len(some)
        for each in some:
            self._sequence += 1
            self._letters[each].claims[sink] = self._sequence

    @rule(up_to=st.integers(0, 30), sink=sinks)
    def settle(self, up_to: int, sink: str) -> None:
        arrived = [each for each, kept in self._letters.items() if 0 < (kept.claims.get(sink) or 0) <= up_to]
        assert sorted(self._store.settle(LANE._replace(sink=sink), up_to, self._at)) == sorted(arrived)
        self._take(arrived, sink)

    def _take(self, letters: list[int], sink: str) -> None:
        for each in letters:
            del self._letters[each].claims[sink]
            if not self._letters[each].claims:
                self._letters[each].raw = None

    @rule(offsets=st.sets(offsets), sink=sinks)
    def withdraw(self, offsets: set[int], sink: str) -> None:
        some = [each for each in self._there(offsets) if self._letters[each].claims.get(sink)]
        assert self._store.withdraw([Claim(each, sink) for each in self._there(offsets)]) == len(some)
        for each in some:
            self._letters[each].claims[sink] = None

    @rule(offsets=st.sets(offsets), sink=sinks)
    def give_up(self, offsets: set[int], sink: str) -> None:
        some = [each for each in self._there(offsets) if sink in self._letters[each].claims]
        gone = [each for each in some if self._letters[each].claims.keys() == {sink}]
        assert self._store.give_up(PIPELINE, [Claim(each, sink) for each in some], copied_to=0) == len(gone)
        self._take(some, sink)
        for each in gone:
            del self._letters[each]

    @rule(offsets=st.sets(offsets))
    def purge(self, offsets: set[int]) -> None:
        gone = self._there(offsets)
        assert self._store.purge(Selection(ids=tuple(gone))) == len(gone)
        for each in gone:
            del self._letters[each]

    @rule(offset=offsets)
    def edit(self, offset: int) -> None:
        for each in self._there({offset}):
            if all(number is None for number in self._letters[each].claims.values()):
                self._store.edit(each, raw=b"edited")
                self._letters[each].raw = b"edited"

    @rule()
    def reopen(self) -> None:
        self._store.close()
        self._store = opened(self._dir)

    @invariant()
    def holds_what_the_model_says(self) -> None:
        with DeadLetterReader(self._dir) as reader:
            letters = {stored.id: stored for stored in reader.select()}
        found = {
            each: (one.letter.key.offset, one.letter.key.variant, one.letter.raw, one.letter.attempts, one.claims)
            for each, one in letters.items()
        }
        there = {each: kept for each, kept in self._letters.items() if kept.claims}
        assert found == {
            each: (one.offset, one.variant, one.raw, one.attempts, one.claims) for each, one in there.items()
        }
        for sink in "abc":
            numbers = {kept.claims[sink]: each for each, kept in there.items() if kept.claims.get(sink)}
            queued = self._store.queued(LANE._replace(sink=sink), 0, 100)
            assert [(number, stored.id) for number, stored in queued] == sorted(numbers.items())


TestModel = Model.TestCase
TestModel.settings = settings(stateful_step_count=25)

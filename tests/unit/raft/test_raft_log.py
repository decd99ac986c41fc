"""The log against a plain list, whatever is appended, truncated, compacted and let go."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from conveyord.core.errors import Corrupt
from conveyord.core.raft.log import Log
from conveyord.core.raft.types import ROOT_CHAIN, Entry, Kind, Mark, are_whole, chain_after, make_entry, size_of


def entries_of(*terms: int, first: int = 1, chain: bytes = ROOT_CHAIN) -> list[Entry]:
    found = list[Entry]()
    for index, term in enumerate(terms, first):
        entry = make_entry(chain, index, term, Kind.COMMAND, b"%d" % index)
        found.append(entry)
        chain = entry.chain
    return found


class AgainstAList(RuleBasedStateMachine):
    """all: every entry that was ever compacted or is in the log. kept: up to where nothing is truncated."""

    def __init__(self) -> None:
        super().__init__()
        self.log, self.all, self.base, self.kept = Log(Mark()), list[Entry](), 0, 0

    @rule(steps=st.integers(0, 2), data=st.binary(max_size=20))
    def append(self, steps: int, data: bytes) -> None:
        term = max(1, self.log.last_term + steps)
        self.all.append(self.log.append(term, Kind.COMMAND, data))

    @rule(back=st.integers(0, 6))
    def truncate(self, back: int) -> None:
        first = max(self.log.last + 1 - back, self.kept + 1, self.base + 1)
        if first <= self.log.last:
            self.log.truncate(first)
            del self.all[first - 1 :]

    @rule(share=st.floats(0, 1))
    def compact(self, share: float) -> None:
        index = self.base + int((self.log.last - self.base) * share)
        if index > self.base:
            entry = self.all[index - 1]
            self.log.compact(Mark(index, entry.term, entry.chain))
            self.base, self.kept = index, max(self.kept, index)

    @precondition(lambda self: self.log.last > self.base)
    @rule(bytes_max=st.integers(0, 600), share=st.floats(0, 1))
    def shrink(self, bytes_max: int, share: float) -> None:
        keep_from = self.base + 1 + int((self.log.last - self.base - 1) * share)
        before = self.log.window
        self.log.shrink(keep_from, bytes_max)
        self.kept = max(self.kept, self.log.window)
        assert before <= self.log.window <= max(keep_from, before)

    @rule(back=st.integers(0, 10), term=st.integers(0, 12))
    def agree(self, back: int, term: int) -> None:
        index = max(self.base, self.log.last - back)
        found = self.log.last_not_above(index, term)
        terms = {self.base: self.log.base.term, **{e.index: e.term for e in self.all[self.base :]}}
        assert found == max([self.base, *(at for at in terms if at <= index and terms[at] <= term)])

    @rule(first=st.integers(0, 12), length=st.integers(0, 12), bytes_max=st.integers(0, 600))
    def slice(self, first: int, length: int, bytes_max: int) -> None:
        at = self.log.window + first - 3
        found = self.log.slice(at, at + length, bytes_max)
        if at < self.log.window:
            assert found is None
            return
        assert found is not None
        wanted = self.all[at - 1 : at - 1 + length]
        assert list(found) == wanted[: len(found)]
        if len(found) < len(wanted):
            assert found
            assert size_of(wanted[: len(found) + 1]) > bytes_max

    @invariant()
    def it_is_the_list(self) -> None:
        log = self.log
        assert log.last == len(self.all)
        assert log.last_term == (self.all[-1].term if self.all else 0)
        assert log.base.index == self.base
        assert log.term(self.base - 1) is None and log.term(log.last + 1) is None
        assert [log.term(entry.index) for entry in self.all[self.base :]] == [e.term for e in self.all[self.base :]]
        assert [log.entry(e.index) for e in self.all[log.window - 1 :]] == self.all[log.window - 1 :]
        assert log.window_bytes == size_of(self.all[log.window - 1 :])
        assert log.size(log.window, log.last + 1) == log.window_bytes
        assert log.chain(log.last) is not None
        chain = ROOT_CHAIN
        for entry in self.all:
            chain = chain_after(chain, entry.index, entry.term, entry.crc)
            assert entry.chain == chain
            assert are_whole([entry])


AgainstAList.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_the_log_is_a_list = AgainstAList.TestCase


def test_a_loaded_log_knows_every_term_and_has_the_newest_entries() -> None:
    everything = entries_of(1, 1, 2, 2, 2, 5, 5)
    log = Log(Mark(), runs=[(1, 1), (3, 2)], entries=everything[4:])
    assert [log.term(index) for index in range(9)] == [0, 1, 1, 2, 2, 2, 5, 5, None]
    assert (log.window, log.last, log.stable) == (5, 7, 7)
    assert log.slice(3, 8, 100) is None
    assert log.conflict(everything[2:4]) is None


def test_a_compaction_below_the_window_leaves_what_is_in_it() -> None:
    everything = entries_of(*[1] * 20)
    log = Log(Mark(), entries=everything)
    log.shrink(15, 100)
    assert log.window == 15
    size = log.window_bytes
    log.compact(Mark(10, 1, everything[9].chain))
    assert (log.base.index, log.window, log.last, log.window_bytes) == (10, 15, 20, size)
    assert log.slice(15, 21, 10_000) == tuple(everything[14:])


def test_a_conflict_is_the_first_entry_with_another_term_or_none_at_all() -> None:
    log = Log(Mark(), entries=entries_of(1, 1, 2))
    assert log.conflict(entries_of(1, 1, 2)) is None
    assert log.conflict(entries_of(1, 1, 3, 3)) == 3
    assert log.conflict(entries_of(1, 1, 2, 2)) == 4


def test_terms_may_rise_among_entries_that_come_together() -> None:
    log, whole = Log(Mark(), entries=entries_of(1, 1)), entries_of(1, 1, 1, 2, 2, 4)
    log.extend(whole[2:])
    assert [log.term(index) for index in range(1, 7)] == [1, 1, 1, 2, 2, 4]
    assert [log.last_not_above(6, term) for term in (1, 2, 3, 4)] == [3, 5, 5, 6]


@pytest.mark.parametrize("place", ["data", "chain"])
def test_an_entry_that_does_not_follow_from_ours_is_found_at_once(place: str) -> None:
    log = Log(Mark(), entries=entries_of(1, 1))
    other = entries_of(1, 1, 1, chain=b"12345678")[2]
    chain = entries_of(1, 1)[1].chain
    wrong = other if place == "chain" else make_entry(chain, 3, 1, Kind.COMMAND, b"else")._replace(chain=b"12345678")
    with pytest.raises(Corrupt, match="entry 3"):
        log.extend([wrong])

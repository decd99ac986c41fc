"""Acknowledgement floors: whatever the order of settlement, only a contiguous floor moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.flow.acks import AckLedger
from conveyord.core.flow.positions import Partition, Position, Span

A = Partition("source", "a")
B = Partition("source", "b")


def spans(partition: Partition, *ends: int) -> list[Span]:
    firsts = (0, *ends[:-1])
    return [Span(partition, first, end, f"m{end}") for first, end in zip(firsts, ends, strict=True)]


def test_the_floor_waits_for_the_oldest_hole() -> None:
    ledger = AckLedger()
    first, second, third = (ledger.track((span,)) for span in spans(A, 10, 20, 30))
    assert ledger.settle(second) == {}
    assert ledger.settle(third) == {}
    assert ledger.settle(first) == {A: Position(30, "m30")}
    assert ledger.in_flight == 0


def test_a_batch_over_two_partitions_moves_each_floor() -> None:
    ledger = AckLedger()
    ticket = ledger.track((*spans(A, 10), *spans(B, 7)))
    assert ledger.settle(ticket) == {A: Position(10, "m10"), B: Position(7, "m7")}


def test_late_settlement_after_a_revoke_moves_nothing() -> None:
    ledger = AckLedger()
    ticket = ledger.track((spans(A, 10)[0],))
    ledger.revoke(A)
    assert ledger.settle(ticket) == {}
    assert A not in ledger.floor


def test_settlement_of_a_former_assignment_does_not_move_the_new_one() -> None:
    ledger = AckLedger()
    old = ledger.track((spans(A, 10)[0],))
    ledger.revoke(A)
    new = ledger.track((Span(A, 0, 5, "new"),))
    assert ledger.settle(old) == {}
    assert ledger.settle(new) == {A: Position(5, "new")}


def test_a_gap_is_refused_when_it_is_tracked() -> None:
    ledger = AckLedger()
    ledger.track((Span(A, 0, 10),))
    with pytest.raises(ValueError, match="next span starts at 11"):
        ledger.track((Span(A, 11, 20),))


def test_settling_twice_is_refused() -> None:
    ledger = AckLedger()
    ticket = ledger.track((Span(A, 0, 10),))
    ledger.settle(ticket)
    with pytest.raises(KeyError):
        ledger.settle(ticket)


@given(
    st.lists(st.tuples(st.sampled_from([A, B]), st.integers(0, 9)), max_size=40),
    st.randoms(use_true_random=False),
)
def test_the_floor_is_always_the_longest_settled_prefix(lengths: list[tuple[Partition, int]], random) -> None:  # type: ignore[no-untyped-def]
    ledger = AckLedger()
    tracked = []
    ends = {A: 0, B: 0}
    for partition, length in lengths:
        span = Span(partition, ends[partition], ends[partition] + length)
        ends[partition] = span.end
        tracked.append((span, ledger.track((span,))))
    settled: set[int] = set()
    order = list(range(len(tracked)))
    random.shuffle(order)
    for index in order:
        ledger.settle(tracked[index][1])
        settled.add(index)
        for partition in (A, B):
            prefix = 0
            for i, (span, _) in enumerate(tracked):
                if span.partition == partition:
                    if i not in settled:
                        break
                    prefix = span.end
            floor = ledger.floor.get(partition)
            assert (floor.offset if floor else 0) == prefix
    assert ledger.oldest_in_flight is None

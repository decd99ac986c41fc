"""What a proposal's index tells of it, once an entry was applied there."""

from __future__ import annotations

from conveyord.core.raft.messages import Accepted
from conveyord.core.raft.proposals import Proposals


def test_the_entry_of_its_term_answers_a_proposal_and_another_one_loses_it() -> None:
    proposals = Proposals()
    proposals.accepted(Accepted(1, 5, 2))
    proposals.accepted(Accepted(2, 6, 2))
    proposals.accepted(Accepted(3, 5, 4))  # it led again, and the entry of term 2 is gone
    assert proposals.committed(4, 1) == ((), ())
    assert [proposals.wait_for(*places) for places in ((1, 4), (1, 5), (6, 6), (7, 9))] == [False, True, True, False]
    assert proposals.committed(5, 4) == ((3,), (1,))
    assert proposals.committed(6, 3) == ((), (2,))
    assert not proposals.wait_for(1, 9)


def test_of_what_a_snapshot_stands_for_the_outcome_is_unknown() -> None:
    proposals = Proposals()
    for number, index in enumerate((5, 6, 9)):
        proposals.accepted(Accepted(number, index, 1))
    assert sorted(proposals.skipped(6)) == [0, 1]
    assert proposals.committed(9, 1) == ((2,), ())


def test_of_what_lies_behind_the_end_of_a_log_that_was_cut_the_outcome_is_unknown() -> None:
    proposals = Proposals()
    for number, index in enumerate((5, 6, 7, 9)):
        proposals.accepted(Accepted(number, index, 1))
    assert sorted(proposals.beyond(6)) == [2, 3]
    assert proposals.beyond(6) == []
    assert proposals.committed(6, 2) == ((), (1,))
    assert proposals.committed(5, 1) == ((0,), ())

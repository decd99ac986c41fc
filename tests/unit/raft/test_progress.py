"""What a leader knows of a peer: the table of `progress.py`, and the limits in flight."""

from __future__ import annotations

from conveyord.core.raft.progress import Mode, Progress
from conveyord.core.raft.types import Options

LIMITS = Options(inflight_messages=2, inflight_bytes=100)


def replicating(match: int = 5) -> Progress:
    progress = Progress(next=match + 1, acked_at=0.0, match=match)
    progress.replicate()
    return progress


def test_a_probe_goes_out_alone_until_it_is_answered() -> None:
    progress = Progress(next=8, acked_at=0.0)
    assert progress.may_send(LIMITS, 0)
    progress.sent(9, 10)
    assert (progress.next, progress.may_send(LIMITS, 0)) == (8, False)
    progress.heard(LIMITS, 0)
    assert progress.may_send(LIMITS, 0)
    progress.sent(9, 10)
    assert progress.agreed(9)
    assert (progress.match, progress.next, progress.may_send(LIMITS, 0)) == (9, 10, True)


def test_who_replicates_is_sent_as_much_as_may_be_in_flight_by_number_and_by_bytes() -> None:
    progress = replicating()
    progress.sent(6, 1)
    assert (progress.next, progress.may_send(LIMITS, 0)) == (7, True)
    progress.sent(7, 1)
    assert not progress.may_send(LIMITS, 0)
    progress = replicating()
    progress.sent(6, 100)
    assert not progress.may_send(LIMITS, 0)
    assert progress.agreed(6)
    assert progress.may_send(LIMITS, 0)


def test_who_lacks_much_that_is_committed_has_less_in_flight_until_it_has_caught_up() -> None:
    options = Options(inflight_bytes=100, catch_up_entries=10, catch_up_bytes=50)
    progress = replicating(match=5)
    assert [progress.limit_bytes(options, commit) for commit in (0, 15, 16)] == [100, 100, 50]
    progress.sent(6, 50)
    assert progress.may_send(options, 15)
    assert not progress.may_send(options, 16)
    progress.heard(options, 16)
    assert progress.may_send(options, 16)
    progress.sent(7, 50)
    assert progress.agreed(6)
    assert progress.may_send(options, 16)


def test_one_heartbeat_lets_one_message_out_however_much_was_lost() -> None:
    options = Options(inflight_bytes=100, catch_up_entries=10, catch_up_bytes=20)
    progress = replicating(match=5)
    for index in range(6, 16):
        progress.sent(index, 10)
    progress.heard(options, 1_000)
    assert progress.may_send(options, 1_000)
    progress.sent(16, 10)
    assert not progress.may_send(options, 1_000)


def test_an_acknowledgement_stands_for_all_before_it_and_an_old_one_for_nothing() -> None:
    progress = replicating()
    progress.sent(6, 50)
    progress.sent(7, 50)
    assert progress.agreed(7)
    assert not progress.agreed(6)
    assert (progress.match, progress.next, progress.may_send(LIMITS, 0)) == (7, 8, True)


def test_what_was_in_flight_is_forgotten_when_the_mode_changes() -> None:
    progress = replicating()
    progress.sent(6, 50)
    progress.sent(7, 50)
    progress.probe(7)
    progress.replicate()
    progress.sent(6, 50)
    assert progress.may_send(LIMITS, 0)


def test_a_probe_never_goes_below_what_is_known_to_agree() -> None:
    progress = replicating(match=5)
    progress.probe(2)
    assert (progress.mode, progress.next) == (Mode.PROBE, 6)


def test_nothing_is_sent_beside_a_snapshot_or_while_the_disk_reads() -> None:
    progress = replicating()
    progress.fetching = 6
    assert not progress.may_send(LIMITS, 0)
    progress.snapshot()
    assert not progress.may_send(LIMITS, 0)
    progress.heard(LIMITS, 0)
    assert not progress.may_send(LIMITS, 0)
    progress.probe(9)
    assert (progress.next, progress.may_send(LIMITS, 0)) == (9, True)

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
    assert progress.may_send(LIMITS)
    progress.sent(9, 10)
    assert (progress.next, progress.may_send(LIMITS)) == (8, False)
    progress.heard(LIMITS)
    assert progress.may_send(LIMITS)
    progress.sent(9, 10)
    assert progress.agreed(9)
    assert (progress.match, progress.next, progress.may_send(LIMITS)) == (9, 10, True)


def test_who_replicates_is_sent_as_much_as_may_be_in_flight_by_number_and_by_bytes() -> None:
    progress = replicating()
    progress.sent(6, 1)
    assert (progress.next, progress.may_send(LIMITS)) == (7, True)
    progress.sent(7, 1)
    assert not progress.may_send(LIMITS)
    progress = replicating()
    progress.sent(6, 100)
    assert not progress.may_send(LIMITS)
    assert progress.agreed(6)
    assert progress.may_send(LIMITS)


GROWING = Options(inflight_bytes=100, inflight_bytes_min=20)


def test_who_takes_more_gets_twice_as_much_with_each_heartbeat_up_to_the_limit() -> None:
    progress, index, found = replicating(match=5), 6, [replicating().limit_bytes(GROWING)]
    for _ in range(4):
        while progress.may_send(GROWING):
            progress.sent(index, 10)
            index += 1
        assert progress.agreed(index - 2)
        progress.heard(GROWING)
        found.append(progress.limit_bytes(GROWING))
    assert found == [20, 40, 80, 100, 100]


def test_who_takes_less_is_left_with_twice_what_it_takes() -> None:
    progress = replicating(match=5)
    for index in range(6, 11):
        progress.sent(index, 20)
    assert progress.agreed(10)
    progress.heard(GROWING)
    progress.sent(11, 30)
    assert progress.agreed(11)
    assert progress.limit_bytes(GROWING) == 100
    progress.heard(GROWING)
    assert progress.limit_bytes(GROWING) == 60
    progress.heard(GROWING)
    assert progress.limit_bytes(GROWING) == 20


def test_who_acknowledges_nothing_gets_no_more_but_one_message_with_each_heartbeat() -> None:
    options = Options(inflight_bytes=100, inflight_bytes_min=30)
    progress, index = replicating(match=5), 6
    for _ in range(5):
        sent = 0
        while progress.may_send(options):
            progress.sent(index, 10)
            index, sent = index + 1, sent + 1
        assert sent == (3 if index == 9 else 1)
        progress.heard(options)
        assert progress.limit_bytes(options) == 30


def test_what_is_in_flight_when_the_limit_falls_is_not_what_the_next_message_waits_for() -> None:
    """However much was lost: one heartbeat is enough."""
    progress = replicating(match=5)
    progress.sent(6, 50)
    assert progress.agreed(6)
    progress.heard(GROWING)
    for index in range(7, 17):
        progress.sent(index, 10)
    assert progress.agreed(7)
    progress.heard(Options(inflight_bytes=20, inflight_bytes_min=20))
    assert progress.may_send(Options(inflight_bytes=20, inflight_bytes_min=20))


def test_another_mode_begins_with_little() -> None:
    progress = replicating(match=5)
    progress.sent(6, 50)
    assert progress.agreed(6)
    progress.heard(GROWING)
    assert progress.limit_bytes(GROWING) == 100
    progress.probe(7)
    progress.replicate()
    assert progress.limit_bytes(GROWING) == 20


def test_an_acknowledgement_stands_for_all_before_it_and_an_old_one_for_nothing() -> None:
    progress = replicating()
    progress.sent(6, 50)
    progress.sent(7, 50)
    assert progress.agreed(7)
    assert not progress.agreed(6)
    assert (progress.match, progress.next, progress.may_send(LIMITS)) == (7, 8, True)


def test_what_was_in_flight_is_forgotten_when_the_mode_changes() -> None:
    progress = replicating()
    progress.sent(6, 50)
    progress.sent(7, 50)
    progress.probe(7)
    progress.replicate()
    progress.sent(6, 50)
    assert progress.may_send(LIMITS)


def test_a_probe_never_goes_below_what_is_known_to_agree() -> None:
    progress = replicating(match=5)
    progress.probe(2)
    assert (progress.mode, progress.next) == (Mode.PROBE, 6)


def test_nothing_is_sent_beside_a_snapshot_or_while_the_disk_reads() -> None:
    progress = replicating()
    progress.fetching = 6
    assert not progress.may_send(LIMITS)
    progress.snapshot()
    assert not progress.may_send(LIMITS)
    progress.heard(LIMITS)
    assert not progress.may_send(LIMITS)
    progress.probe(9)
    assert (progress.next, progress.may_send(LIMITS)) == (9, True)

"""What the ports of core/flow/record_log.py promise, over a fake, librdkafka's mock and a real Kafka alike."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise

import pytest

from conveyord.core.errors import Refused
from conveyord.core.flow.positions import Position
from conveyord.core.flow.record_log import (
    LOG_END,
    LOG_START,
    Extent,
    Meta,
    OutOfRange,
    PartitionReader,
    Records,
    Tail,
    TopicPartition,
    Vanished,
)
from tests.kafka.cluster import COMPACTED, Record, eventually
from tests.kafka.log_rig import Logs, Member, polled, reaches, records_in
from tests.kafka.mock import Beyond

METAS: tuple[Meta, ...] = ("key", "headers", "timestamp")


def numbered(count: int, *, partition: int = 0, first: int = 0) -> list[Record]:
    """Records whose values say where they stand, a millisecond apart."""
    return [
        Record(value=b"%d" % number, key=b"k%d" % number, timestamp_ms=1000 + number, partition=partition)
        for number in range(first, first + count)
    ]


def read(reader: PartitionReader, place: TopicPartition, first: int, end: int) -> list[tuple[int, bytes | None]]:
    """The records of a range, which its pieces tile."""
    pieces = list(reader.read(place, first, end))
    assert pieces[-1].end == end
    assert all(before.end <= after.offsets[0] for before, after in pairwise(pieces) if after.offsets)
    return records_in(pieces, place)


# ---------------------------------------------------------------------------- topics


def test_a_topic_is_told_with_its_partitions_and_one_that_is_not_there_is_left_out(logs: Logs) -> None:
    topics = [logs.topic(partitions) for partitions in (1, 4)]
    reader = logs.reader()
    found = reader.topics([topics[1]])
    assert {name: one.partitions for name, one in found.items()} == {topics[1]: (0, 1, 2, 3)}
    assert {name: one.name for name, one in found.items()} == {topics[1]: topics[1]}
    assert set(topics) <= set(reader.topics())
    assert not [name for name in reader.topics() if name.startswith("__")]


def test_an_incarnation_stays_while_a_topic_does(logs: Logs) -> None:
    topic = logs.topic()
    before = logs.reader().topics([topic])[topic].incarnation
    logs.cluster.produce(topic, [b"0"])
    assert logs.reader().topics([topic])[topic].incarnation == before != ""


@pytest.mark.beyond_mock(Beyond.MISSING, Beyond.ADMIN)
def test_what_is_not_there_is_left_out_and_a_topic_made_anew_is_another(logs: Logs) -> None:
    topic = logs.topic()
    reader = logs.reader()
    before = reader.topics([topic])[topic].incarnation
    logs.cluster.delete_topic(topic)
    assert reader.topics([topic]) == {}
    gone = TopicPartition(topic, 0)
    assert reader.extents([gone]) == {}
    assert reader.offsets_at([gone], LOG_END) == {}
    logs.cluster.create_topic(topic, partitions=1)
    assert reader.topics([topic])[topic].incarnation != before
    assert reader.extents([gone, TopicPartition(topic, 1)]) == {gone: Extent(0, 0)}


@pytest.mark.beyond_mock(Beyond.ADMIN)
def test_partitions_that_are_added_are_told(logs: Logs) -> None:
    topic = logs.topic()
    reader = logs.reader()
    before = reader.topics([topic])[topic]
    logs.cluster.add_partitions(topic, 3)
    after = reader.topics([topic])[topic]
    assert (before.partitions, after.partitions) == ((0,), (0, 1, 2))
    assert before.incarnation == after.incarnation


# ---------------------------------------------------------------------------- offsets


def test_extents_are_the_first_offset_and_the_end(logs: Logs) -> None:
    topic = logs.topic(2)
    for record in numbered(4):  # the mock deletes whole batches only
        logs.cluster.produce(topic, [record])
    logs.cluster.delete_records(topic, 0, before=3)
    places = [TopicPartition(topic, number) for number in range(2)]
    assert logs.reader().extents(places) == {places[0]: Extent(3, 4), places[1]: Extent(0, 0)}
    assert logs.reader().extents([]) == {}


def test_the_start_and_the_end_can_be_asked_for(logs: Logs) -> None:
    topic = logs.topic()
    logs.cluster.produce(topic, numbered(3))
    place = TopicPartition(topic, 0)
    assert logs.reader().offsets_at([place], LOG_START) == {place: 0}
    assert logs.reader().offsets_at([place], LOG_END) == {place: 3}


@pytest.mark.beyond_mock(Beyond.TIMES)
def test_a_time_is_answered_with_the_first_record_from_then_on_or_the_end(logs: Logs) -> None:
    topic = logs.topic()
    logs.cluster.produce(
        topic, [Record(value=b"", timestamp_ms=stamp, partition=0) for stamp in (1000, 3000, 2000, 5000)]
    )
    place, reader = TopicPartition(topic, 0), logs.reader()
    asked = {time_ms: reader.offsets_at([place], time_ms)[place] for time_ms in (0, 1000, 1001, 3001, 5001)}
    assert asked == {0: 0, 1000: 0, 1001: 1, 3001: 3, 5001: 4}


@pytest.mark.beyond_mock(Beyond.ABORTED)
def test_an_open_transaction_holds_the_end(logs: Logs) -> None:
    topic = logs.topic()
    logs.cluster.produce(topic, [b"before"])
    producer = logs.cluster.begin(topic, [b"undecided"])
    logs.cluster.produce(topic, [b"behind"])
    place, reader = TopicPartition(topic, 0), logs.reader()
    assert reader.extents([place]) == {place: Extent(0, 1)}
    tail = logs.tail()
    tail.assign({place: 0})
    assert records_in(polled(tail, reaches({place: 1})), place) == [(0, b"before")]
    assert records_in(tail.poll(0.3), place) == []
    producer.commit_transaction(30)
    found = polled(tail, reaches({place: 4}))
    assert records_in(found, place) == [(1, b"undecided"), (2, b"behind")]
    eventually(lambda: reader.extents([place]) == {place: Extent(0, 4)}, "the marker is not there")


def test_a_group_goes_on_at_what_was_committed_for_it(logs: Logs) -> None:
    topic, group, reader = logs.topic(3), logs.group(), logs.reader()
    places = [TopicPartition(topic, number) for number in range(3)]
    logs.cluster.produce(topic, [record for number in range(3) for record in numbered(5, partition=number)])
    assert reader.committed(group, places) == {}
    tail = logs.tail(group=group)
    tail.assign(dict.fromkeys(places, 0))
    polled(tail, reaches(dict.fromkeys(places, 5)))
    tail.commit({places[0]: Position(3, "of this topic"), places[2]: Position(5)}, wait=True)
    assert reader.committed(group, places) == {places[0]: Position(3, "of this topic"), places[2]: Position(5)}
    tail.commit({places[0]: Position(4)}, wait=False)
    eventually(
        lambda: bool(tail.poll(0.01)) or reader.committed(group, places)[places[0]] == Position(4),
        "it is not committed",
    )
    assert list(tail.errors()) == []
    assert reader.committed(logs.group(), places) == {}
    assert reader.committed(group, []) == {}


def test_who_is_in_no_group_commits_nothing(logs: Logs) -> None:
    topic = logs.topic()
    place, tail = TopicPartition(topic, 0), logs.tail()
    tail.assign({place: 0})
    tail.commit({place: Position(0)}, wait=True)
    assert list(tail.errors()) == []


# ---------------------------------------------------------------------------- reading a range


def test_a_range_is_read_whole_and_in_the_middle(logs: Logs) -> None:
    topic = logs.topic(2)
    logs.cluster.produce(topic, numbered(2500, partition=1))
    place, reader = TopicPartition(topic, 1), logs.reader()
    expected = [(number, b"%d" % number) for number in range(2500)]
    assert read(reader, place, 0, 2500) == expected
    assert read(reader, place, 700, 1900) == expected[700:1900]
    assert read(reader, place, 2499, 2500) == expected[2499:]
    assert list(reader.read(place, 7, 7)) == []


@pytest.mark.beyond_mock(Beyond.ABORTED)
def test_holes_at_both_ends_of_a_range_are_read_over(logs: Logs) -> None:
    topic = logs.topic()
    logs.cluster.produce_aborted(topic, [b"taken back"] * 2)
    logs.cluster.produce_committed(topic, [b"kept"])
    logs.cluster.produce_aborted(topic, [b"taken back"])
    place, reader = TopicPartition(topic, 0), logs.reader()
    eventually(lambda: reader.extents([place])[place] == Extent(0, 7), "the markers are not there")
    assert read(reader, place, 0, 7) == [(3, b"kept")]
    assert read(reader, place, 1, 3) == []
    assert read(reader, place, 3, 4) == [(3, b"kept")]
    assert read(reader, place, 4, 7) == []


@pytest.mark.beyond_mock(Beyond.ADMIN)
def test_what_compaction_took_is_read_over(logs: Logs) -> None:
    topic = logs.topic(config=COMPACTED)
    keys = (b"a", b"b", b"a", b"c", b"b", b"a")
    logs.cluster.produce(topic, [Record(key=key, value=key, partition=0) for key in keys])
    logs.cluster.compact(topic)
    place, reader = TopicPartition(topic, 0), logs.reader()
    assert read(reader, place, 0, 6) == [(3, b"c"), (4, b"b"), (5, b"a")]
    assert read(reader, place, 0, 3) == []
    assert read(reader, place, 1, 5) == [(3, b"c"), (4, b"b")]


def test_a_range_of_which_a_part_is_gone_is_refused(logs: Logs) -> None:
    topic = logs.topic()
    for record in numbered(6):
        logs.cluster.produce(topic, [record])
    logs.cluster.delete_records(topic, 0, before=4)
    place, reader = TopicPartition(topic, 0), logs.reader()
    assert read(reader, place, 4, 6) == [(4, b"4"), (5, b"5")]
    for first, end in ((0, 6), (3, 6), (0, 2)):
        with pytest.raises(Refused, match=topic):
            list(reader.read(place, first, end))


def test_a_range_that_was_never_there_is_refused(logs: Logs) -> None:
    topic = logs.topic()
    logs.cluster.produce(topic, numbered(2))
    place, reader = TopicPartition(topic, 0), logs.reader()
    for first, end in ((0, 3), (2, 3), (5, 6)):
        with pytest.raises(Refused, match=topic):
            list(reader.read(place, first, end))


@pytest.mark.beyond_mock(Beyond.MISSING)
def test_a_range_of_a_topic_that_is_not_there_is_refused(logs: Logs) -> None:
    with pytest.raises(Refused):
        list(logs.reader().read(TopicPartition("never-made", 0), 0, 1))


def test_reading_that_is_given_up_holds_nothing(logs: Logs) -> None:
    topic = logs.topic()
    logs.cluster.produce(topic, numbered(2500))
    place, reader = TopicPartition(topic, 0), logs.reader()
    pieces = reader.read(place, 0, 2500)
    assert isinstance(pieces, Iterator)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert read(reader, place, 0, 1) == [(0, b"0")]


# ---------------------------------------------------------------------------- following


def test_records_of_a_partition_come_in_order_and_all_of_them(logs: Logs) -> None:
    topic = logs.topic(3)
    places = [TopicPartition(topic, number) for number in range(3)]
    logs.cluster.produce(topic, [record for place in places for record in numbered(1500, partition=place.number)])
    tail = logs.tail()
    tail.assign(dict.fromkeys(places[:2], 0))
    tail.assign({places[2]: 1000})
    events = polled(tail, reaches(dict.fromkeys(places, 1500)))
    for place, first in zip(places, (0, 0, 1000), strict=True):
        assert records_in(events, place) == [(number, b"%d" % number) for number in range(first, 1500)]
    for event in events:
        assert isinstance(event, Records)
        assert event.value_bytes == sum(len(value or b"") for value in event.values)
        assert not event.offsets or (event.end > event.offsets[-1] and event.newest_ms == 1000 + event.offsets[-1])


def test_records_that_come_while_the_end_is_told_stay_in_order(logs: Logs) -> None:
    """The end of a partition is told between records within one poll."""
    topic, count = logs.topic(), 40
    place, tail = TopicPartition(topic, 0), logs.tail()
    tail.assign({place: 0})

    def write() -> None:
        for record in numbered(count):
            logs.cluster.produce(topic, [record])

    writer = threading.Thread(target=write)
    writer.start()
    events = polled(tail, reaches({place: count}), seconds=0.5)
    writer.join()
    assert records_in(events, place) == [(number, b"%d" % number) for number in range(count)]
    ends = [event.end for event in events if isinstance(event, Records)]
    assert ends == sorted(ends)


@pytest.mark.beyond_mock(Beyond.ABORTED)
def test_the_end_is_told_beyond_what_follows_the_last_record(logs: Logs) -> None:
    topic = logs.topic()
    logs.cluster.produce_committed(topic, [b"0"])
    logs.cluster.produce_aborted(topic, [b"taken back"] * 3)
    place, tail = TopicPartition(topic, 0), logs.tail()
    tail.assign({place: 0})
    assert records_in(polled(tail, reaches({place: 6})), place) == [(0, b"0")]
    assert tail.ends() == {place: 6}


def test_an_empty_partition_tells_its_end(logs: Logs) -> None:
    place, tail = TopicPartition(logs.topic(), 0), logs.tail()
    tail.assign({place: 0})
    found = polled(tail, bool)
    assert [(event.end, list(event.offsets)) for event in found if isinstance(event, Records)] == [(0, [])]


@pytest.mark.parametrize("start", [1, 100], ids=["before the start", "beyond the end"])
def test_an_offset_where_nothing_is_is_told_and_nothing_is_skipped(logs: Logs, start: int) -> None:
    topic = logs.topic(2)
    for record in numbered(4):
        logs.cluster.produce(topic, [record])
    logs.cluster.delete_records(topic, 0, before=3)
    logs.cluster.produce(topic, numbered(2, partition=1))
    gone, other = (TopicPartition(topic, number) for number in range(2))
    tail = logs.tail()
    tail.assign({gone: start, other: 0})
    found = polled(tail, lambda events: OutOfRange(gone) in events and reaches({other: 2})(events))
    assert records_in(found, gone) == []
    tail.unassign([gone])
    tail.assign({gone: 3})
    assert records_in(polled(tail, reaches({gone: 4})), gone) == [(3, b"3")]


@pytest.mark.beyond_mock(Beyond.MISSING)
def test_a_partition_that_vanishes_is_told_and_the_others_go_on(logs: Logs) -> None:
    gone, kept = logs.topic(), logs.topic()
    logs.cluster.produce(gone, numbered(2))
    places = [TopicPartition(gone, 0), TopicPartition(kept, 0)]
    tail = logs.tail()
    tail.assign(dict.fromkeys(places, 0))
    polled(tail, reaches({places[0]: 2}))
    logs.cluster.delete_topic(gone)
    polled(tail, lambda events: Vanished(places[0]) in events)
    logs.cluster.produce(kept, numbered(2))
    assert len(records_in(polled(tail, reaches({places[1]: 2})), places[1])) == 2


def test_nothing_comes_of_what_is_not_followed_any_more(logs: Logs) -> None:
    topic = logs.topic(2)
    places = [TopicPartition(topic, number) for number in range(2)]
    tail = logs.tail()
    tail.assign(dict.fromkeys(places, 0))
    tail.unassign([places[0]])
    logs.cluster.produce(topic, [*numbered(2), *numbered(2, partition=1)])
    found = polled(tail, reaches({places[1]: 2}))
    assert {event.partition for event in found} == {places[1]}
    assert list(tail.ends()) == [places[1]]


def test_nothing_comes_while_it_is_paused_and_all_of_it_afterwards(logs: Logs) -> None:
    topic = logs.topic(2)
    places = [TopicPartition(topic, number) for number in range(2)]
    tail = logs.tail()
    tail.assign({places[0]: 0})
    polled(tail, reaches({places[0]: 0}))
    tail.pause()
    tail.assign({places[1]: 0})
    logs.cluster.produce(topic, [*numbered(3), *numbered(3, partition=1)])
    assert [event for _ in range(10) for event in tail.poll(0.05) if records_in([event], event.partition)] == []
    tail.resume()
    found = polled(tail, reaches(dict.fromkeys(places, 3)))
    for place in places:
        assert records_in(found, place) == [(number, b"%d" % number) for number in range(3)]


def test_a_record_has_what_was_asked_for_beside_its_value(logs: Logs) -> None:
    topic = logs.topic()
    headers = (("trace", b"\x00\xff"), ("trace", b"again"), ("none", None))
    logs.cluster.produce(
        topic,
        [
            Record(value=b"v", key=b"\xff", headers=headers, timestamp_ms=1_000_000_000_000, partition=0),
            Record(value=None, key=b"gone", timestamp_ms=7, partition=0),
            Record(value=b"", key=None, timestamp_ms=8, partition=0),
        ],
    )
    place = TopicPartition(topic, 0)
    tail = logs.tail(wants=METAS)
    tail.assign({place: 0})
    for found in (polled(tail, reaches({place: 3})), list(logs.reader().read(place, 0, 3, wants=METAS))):
        pieces = [piece for piece in found if isinstance(piece, Records)]
        assert [value for piece in pieces for value in piece.values] == [b"v", None, b""]
        assert [key for piece in pieces for key in piece.keys or ()] == [b"\xff", b"gone", None]
        assert [tuple(one) for piece in pieces for one in piece.headers or ()] == [headers, (), ()]
        assert [at for piece in pieces for at in piece.times_ms or ()] == [1_000_000_000_000, 7, 8]


def test_what_was_not_asked_for_is_not_fetched(logs: Logs) -> None:
    topic = logs.topic()
    logs.cluster.produce(topic, numbered(1))
    place = TopicPartition(topic, 0)
    for wants in ((), ("key",), ("headers",), ("timestamp",)):
        tail = logs.tail(wants=wants)  # type: ignore[arg-type]
        tail.assign({place: 0})
        (piece, *_) = polled(tail, reaches({place: 1}))
        assert isinstance(piece, Records)
        had = {"key": piece.keys, "headers": piece.headers, "timestamp": piece.times_ms}
        assert {name for name, values in had.items() if values is not None} == set(wants)


@pytest.mark.beyond_mock(Beyond.ADMIN)
def test_a_message_of_20_mb_comes_whole(logs: Logs) -> None:
    topic = logs.topic(config={"max.message.bytes": "30000000"})
    large = b"x" * 20_000_000
    logs.cluster.produce(topic, [b"small", large, b"small"], message_max_bytes=30_000_000)
    place = TopicPartition(topic, 0)
    tail = logs.tail()
    tail.assign({place: 0})
    expected = [(0, b"small"), (1, large), (2, b"small")]
    assert records_in(polled(tail, reaches({place: 3})), place) == expected
    assert read(logs.reader(), place, 0, 3) == expected


# ---------------------------------------------------------------------------- groups


def follow(tails: Mapping[int, Tail], members: Sequence[Member], found: list[tuple[TopicPartition, int]]) -> None:
    """Poll each once, and note what came."""
    for number, tail in tails.items():
        for event in tail.poll(0.05):
            assert isinstance(event, Records)
            found += [(event.partition, offset) for offset in event.offsets]
            members[number].at[event.partition] = event.end


@pytest.mark.beyond_mock(Beyond.HANDOVER)
def test_two_members_share_partitions_and_hand_them_over_at_the_committed_offset(logs: Logs) -> None:
    topic, group, count = logs.topic(4), logs.group(), 50
    places = {TopicPartition(topic, number) for number in range(4)}
    logs.cluster.produce(topic, [record for place in places for record in numbered(count, partition=place.number)])
    members = [Member(logs.reader(), group) for _ in range(2)]
    found: list[tuple[TopicPartition, int]] = []
    tails = {0: logs.open_tail(group)}
    tails[0].subscribe([topic], members[0])
    eventually(lambda: follow(tails, members, found) or len(found) == 4 * count, "not everything came")
    assert members[0].owned == places
    tails[1] = logs.open_tail(group)
    tails[1].subscribe([topic], members[1])
    eventually(
        lambda: follow(tails, members, found) or all(len(member.owned) == 2 for member in members), "it was not shared"
    )
    assert members[0].owned | members[1].owned == places
    logs.cluster.produce(
        topic, [record for place in places for record in numbered(count, partition=place.number, first=count)]
    )
    eventually(lambda: follow(tails, members, found) or len(found) >= 8 * count, "not everything came")
    tails.pop(0).close()
    assert members[0].owned == set()
    eventually(lambda: follow(tails, members, found) or members[1].owned == places, "nobody took over")
    logs.cluster.produce(topic, [b"last"])
    eventually(lambda: follow(tails, members, found) or (TopicPartition(topic, 0), 2 * count) in found, "it is stuck")
    tails[1].close()
    assert len(found) == len(set(found)) == 8 * count + 1


def test_a_pattern_gives_the_topics_that_match_and_those_that_come_later(logs: Logs) -> None:
    stem = logs.group()
    names = [f"{stem}-a", f"{stem}-b"]
    logs.cluster.create_topic(names[0], partitions=1)
    other = logs.topic()
    member, found = Member(logs.reader(), stem), list[tuple[TopicPartition, int]]()
    tails = {0: logs.tail(group=stem)}
    tails[0].subscribe([f"^{stem}-.*"], member)
    eventually(lambda: follow(tails, [member], found) or bool(member.owned), "nothing was assigned")
    assert member.owned == {TopicPartition(names[0], 0)}
    logs.cluster.create_topic(names[1], partitions=1)
    logs.cluster.produce(names[1], [b"0"])
    logs.cluster.produce(other, [b"0"])
    eventually(lambda: follow(tails, [member], found) or len(found) == 1, "the new topic was not read")
    assert member.owned == {TopicPartition(name, 0) for name in names}


class Choosy(Member):
    """Reads partition 0 alone, whatever it is given."""

    def assigned(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        starts = super().assigned(partitions)
        return {place: start for place, start in starts.items() if place.number == 0}


def test_nothing_comes_of_what_was_given_and_is_not_wanted_and_it_can_be_given_up(logs: Logs) -> None:
    topic, group = logs.topic(4), logs.group()
    logs.cluster.produce(topic, [record for p in range(4) for record in numbered(3, partition=p)])
    members = [Choosy(logs.reader(), group), Member(logs.reader(), group)]
    found: list[tuple[TopicPartition, int]] = []
    tails = {0: logs.open_tail(group)}
    tails[0].subscribe([topic], members[0])
    eventually(lambda: follow(tails, members, found) or len(found) == 3, "not everything came")
    assert len(members[0].owned) == 4
    tails[0].pause()
    tails[0].resume()
    for _ in range(10):
        follow(tails, members, found)
    assert {place.number for place, _ in found} == {0}
    tails[1] = logs.open_tail(group)
    tails[1].subscribe([topic], members[1])
    eventually(lambda: follow(tails, members, found) or len(members[1].owned) == 2, "it was not shared")
    tails[0].close()
    eventually(lambda: follow({1: tails[1]}, members, found) or len(members[1].owned) == 4, "nobody took over")
    tails[1].close()


@pytest.mark.parametrize("error", [Refused("not these"), ArithmeticError("not these")], ids=["ours", "a bug"])
def test_what_a_listener_raises_comes_out_of_the_poll(logs: Logs, error: Exception) -> None:
    class Refusing(Member):
        def assigned(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
            raise error

        def revoked(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Position]:
            return {}

    tail = logs.open_tail(logs.group())
    tail.subscribe([logs.topic()], Refusing(logs.reader(), "g"))
    with pytest.raises(type(error), match="not these"):
        polled(tail, lambda _events: False)
    tail.close()


def test_what_is_paused_stays_paused_over_a_handover(logs: Logs) -> None:
    topic, group = logs.topic(2), logs.group()
    logs.cluster.produce(topic, [*numbered(3), *numbered(3, partition=1)])
    member, found = Member(logs.reader(), group), list[tuple[TopicPartition, int]]()
    tails = {0: logs.tail(group=group)}
    tails[0].pause()
    tails[0].subscribe([topic], member)
    eventually(lambda: follow(tails, [member], found) or len(member.owned) == 2, "nothing was assigned")
    for _ in range(10):
        follow(tails, [member], found)
    assert found == []
    tails[0].resume()
    eventually(lambda: follow(tails, [member], found) or len(found) == 6, "it is not resumed")

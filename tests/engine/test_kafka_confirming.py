"""Records wait in the hopper until a look that began after they had come shows their topic to be what it was."""

from __future__ import annotations

import trio
import trio.testing

from conveyord.core.flow.record_log import TopicPartition
from conveyord.engine.kafka.hopper import Hopper, Job
from tests.engine.test_kafka_hopper import BATCHING, PLACE, Clock, records, taken

OTHER = TopicPartition("u", 0)


async def spans(hopper: Hopper) -> list[tuple[TopicPartition, int, int]]:
    """What leaves now."""
    found = []
    while isinstance(job := await taken(hopper), Job):
        found.append((job.partition, job.first, job.end))
    return found


async def opened(clock: Clock) -> Hopper:
    hopper = Hopper(BATCHING, confirms=True, clock=clock)
    for place in (PLACE, OTHER):
        hopper.open(place, 0)
        hopper.put(records(place, [0, 1], 2))
    await trio.testing.wait_all_tasks_blocked()
    return hopper


async def test_nothing_leaves_that_came_after_the_look_began() -> None:
    clock = Clock()
    hopper = await opened(clock)
    clock.pass_linger()
    assert await spans(hopper) == []
    topics, moment = await hopper.until_unconfirmed()
    assert topics == {PLACE.topic, OTHER.topic}
    clock.now += 1
    hopper.put(records(PLACE, [2, 3], 4))
    hopper.confirm(topics, moment)
    clock.pass_linger()
    assert await spans(hopper) == [(PLACE, 0, 2), (OTHER, 0, 2)]
    topics, moment = await hopper.until_unconfirmed()
    assert topics == {PLACE.topic}, "nothing of the other one waits"
    hopper.confirm(topics, moment)
    clock.pass_linger()
    assert await spans(hopper) == [(PLACE, 2, 4)]


async def test_a_topic_that_is_not_confirmed_keeps_its_records_and_holds_up_no_other() -> None:
    clock = Clock()
    hopper = await opened(clock)
    _, moment = await hopper.until_unconfirmed()
    hopper.confirm({OTHER.topic}, moment)
    clock.pass_linger()
    assert await spans(hopper) == [(OTHER, 0, 2)]
    assert hopper.tips() == {PLACE: 2, OTHER: 2}
    hopper.close([PLACE])
    with trio.move_on_after(0):
        await hopper.until_unconfirmed()
        raise AssertionError("nothing is left to confirm")
    assert not hopper.is_full


async def test_what_waits_counts_as_held_and_is_there_to_take_types_from() -> None:
    clock = Clock()
    hopper = await opened(clock)
    hopper.put(records(PLACE, [2], 3, size=BATCHING.held_bytes))
    assert hopper.is_full
    assert len(hopper.sample(PLACE.topic)) == 3
    hopper.confirm(*await hopper.until_unconfirmed())
    assert hopper.is_full
    clock.pass_linger()
    assert (PLACE, 0, 3) in await spans(hopper)
    assert hopper.is_low

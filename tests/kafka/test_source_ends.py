"""The `kafka` source that ends for what went on beside the reading: the group's partitions are given up as ever."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from conveyord.core.errors import ConveyordError, Refused, Superseded
from tests.kafka.log_rig import FakeLogs
from tests.kafka.source_rig import Sinks, running
from tests.kafka.test_source_groups import SHARED, Other, committed, two_partitions


@pytest.mark.parametrize("settles", [True, False])
async def test_a_run_whose_topic_is_deleted_gives_up_the_others_as_it_would_at_any_end(
    hasty_clock: MockClock, *, settles: bool
) -> None:
    """Found in review: another member read a second time what the sinks of this one committed at its end."""
    logs, group, sinks = FakeLogs(), "g", Sinks(settles=settles)
    topic = two_partitions(logs, 6)
    doomed = logs.topic()
    async with running(logs, sinks=sinks, topics=[topic, doomed], group_id=group, batch_rows=2, **SHARED) as run:
        await run.until_rows(12)
        other = Other(logs, group, topic)
        logs.cluster.delete_topic(doomed)
        for _ in range(200):
            other.tail.poll(0.0)
            await trio.sleep(0.1)
        sinks.settle()
        await run.end()
        told = committed(logs, group)
    expected: type[ConveyordError] = Refused if settles else Superseded
    assert isinstance(run.error, expected), run.error
    if settles:
        assert {at[-1] for name, at in told.items() if name.startswith(topic)} == {6}, told

"""What is gone was not read: no letter of a record in a gap may go for it, or be replaced by that of the gap."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from conveyord.core.flow.positions import Span
from conveyord.core.flow.record_log import TopicPartition
from conveyord.engine.kafka.hopper import Hopper, Release
from tests.engine.source_rig import Letters
from tests.kafka.log_rig import FakeLogs
from tests.kafka.source_rig import Sinks, numbered, running
from tests.kafka.test_source import gap
from tests.kafka.test_source_groups import SHARED, Other, two_partitions


async def test_a_gap_is_not_among_what_was_read(hasty_clock: MockClock) -> None:
    logs, letters, read = FakeLogs(), Letters(), list[Span]()
    topic, fence = await gap(logs)

    async def note(spans: tuple[Span, ...]) -> None:
        read.extend(span for span in spans if span.end > span.first)

    async with running(logs, follow=False, topics=topic, fences=(fence,), letters=letters) as run:
        run.outlet._before = note
        await run.end()
    assert [(span.first, span.end) for span in read] == [(8, 10)]
    assert [(one.place.record.offset, one.place.part) for one in letters.rejected] == [(3, 1)], "no record has a part 1"


@pytest.mark.parametrize("sent", range(3))
@pytest.mark.parametrize("gap_in", range(2))
async def test_a_gap_in_what_is_being_given_away_is_its_next_readers(
    hasty_clock: MockClock, monkeypatch: pytest.MonkeyPatch, gap_in: int, sent: int
) -> None:
    """Jobs of a partition are on their way while it is found to have a gap, and taken from this member."""
    logs, group, letters, releases = FakeLogs(), "g", Letters(), list[Release]()
    release = Hopper.release

    def noted(hopper: Hopper, partitions: Collection[TopicPartition]) -> Release:
        releases.append(release(hopper, partitions))
        return releases[-1]

    monkeypatch.setattr(Hopper, "release", noted)
    sinks = Sinks(is_full=True)
    topic = two_partitions(logs, 6)
    options = {"topics": topic, "group_id": group, "batch_rows": 2, **SHARED}
    async with running(logs, sinks=sinks, letters=letters, **options) as run:
        await run.until(lambda: run.source.health.lag_records == 12)
        with logs.log.changed:  # at once, or they would be read before they are gone
            logs.log.produce(topic, numbered(8, first=100 * gap_in + 6, partition=gap_in))
            logs.log.delete_records(topic, gap_in, before=10)
        await run.until(lambda: set(vars(run.ports.tails[0])["positions"].values()) == {6})
        other = Other(logs, group, topic)
        await run.until(lambda: bool(releases))
        for _ in range(sent):
            sinks.let()
            await wait_all_tasks_blocked()
            sinks.is_full = True
        await trio.sleep(1)
        sinks.let()
        await run.until(other.has(1))
        (given,) = other.member.owned
        kept = 1 - given.number
        behind = [*range(10, 14)] if kept == gap_in else []
        await run.until(lambda: len([n for n in sinks.column("n") if n // 100 == kept]) == 6 + len(behind))
        await run.stop()
    assert run.error is None
    assert [n % 100 for n in sinks.column("n") if n // 100 == kept] == [*range(6), *behind]
    assert [n % 100 for n in sinks.column("n") if n // 100 != kept] == list(range(other.member.at[given]))
    assert [one.place.record.offset for one in letters.rejected] == ([6] if behind else [])

"""The types of topics: several are settled at a time, and what comes out for one depends on its own records alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest
import trio

from conveyord.core.errors import Retryable
from conveyord.core.flow.record_log import Records, TopicPartition, total_bytes
from conveyord.engine.kafka.hopper import Batching, Hopper, Job
from conveyord.engine.kafka.typing import SAMPLE_SECONDS, TYPED_AT_ONCE, Beginnings, TopicTypes
from conveyord.engine.payloads.contract import Payloads
from conveyord.engine.payloads.json import JsonPayloads
from conveyord.engine.payloads.options import format_config
from tests.engine.graph_rig import fast_clock

BATCHING = Batching(job_bytes=1 << 20, job_records=1000, linger_seconds=0.0, held_bytes=1 << 20)
POISON = b'{"poison": 1}'


class Typing:
    """Topics with records in a hopper, and what has become of their types."""

    def __init__(self, topics: Mapping[str, Sequence[Sequence[bytes]]], *, is_at_its_end: bool = True) -> None:
        """topics: the values of each partition. is_at_its_end: nothing more is to come of any."""
        self.hopper = Hopper(BATCHING)
        self.types = TopicTypes(format_config("json"), "in", is_single=False)
        self.at_once = self.at_once_max = 0
        places = {
            TopicPartition(topic, number): list(values)
            for topic, partitions in topics.items()
            for number, values in enumerate(partitions)
        }
        for place, values in places.items():
            self.hopper.open(place, 0)
            self.put(place, values)
        self._ends = {place: len(values) + (not is_at_its_end) for place, values in places.items()}
        self._json = JsonPayloads()

    def put(self, place: TopicPartition, values: Sequence[bytes]) -> None:
        """Have these be the first of a partition."""
        if values:
            self.hopper.put(Records(place, range(len(values)), values, len(values), total_bytes(values)))

    async def next_job(self) -> Job:
        job = await self.hopper.take(trio.Event())
        assert isinstance(job, Job)
        return job

    async def settle(self, job: Job) -> None:
        """Have the types of the topic of a job settled."""
        beginnings = Beginnings(self.hopper, lambda: self._ends, self.types)
        await beginnings.settle(job, self, self._in_thread, stop=trio.Event())

    def decode(self, values: Sequence[bytes], schema: pa.Schema | None) -> Payloads:
        if POISON in values:
            raise Retryable("the registry does not answer")
        return self._json.decode(values, schema)

    async def _in_thread(self, work: Callable[..., pa.Schema], *given: Any) -> pa.Schema:
        self.at_once += 1
        self.at_once_max = max(self.at_once, self.at_once_max)
        await trio.sleep(0.01)
        self.at_once -= 1
        return work(*given)

    def names(self, topic: str) -> list[str] | None:
        schema = self.types.of(topic)
        return None if schema is None else schema.names


def in_trio(work: Callable[[], Any]) -> None:
    trio.run(work, clock=fast_clock())


def test_topics_that_begin_together_are_waited_for_together_and_some_are_decoded_at_a_time() -> None:
    async def live() -> None:
        count = 3 * TYPED_AT_ONCE
        typing = Typing({f"t{n:02}": [[b'{"n%d": 1}' % n]] for n in range(count)}, is_at_its_end=False)
        began = trio.current_time()
        await typing.settle(await typing.next_job())
        assert trio.current_time() - began < 3 * SAMPLE_SECONDS
        assert [typing.names(f"t{n:02}") for n in range(count)] == [[f"n{n}"] for n in range(count)]
        assert typing.at_once_max == TYPED_AT_ONCE

    in_trio(live)


@pytest.mark.parametrize("first", [0, 1])
def test_types_are_the_same_whichever_partition_comes_first(first: int) -> None:
    async def live() -> None:
        values = [[b'{"a": 1}', b'{"b": 1}'], [b'{"c": 1}', b'{"a": "text"}']]
        typing = Typing({"t": [[], []]})
        typing.put(TopicPartition("t", first), values[first])
        job = await typing.next_job()
        typing.put(TopicPartition("t", 1 - first), values[1 - first])
        await typing.settle(job)
        schema = typing.types.of("t")
        assert schema.names == ["a", "b", "c"]

    in_trio(live)


def test_a_topic_whose_types_cannot_be_had_fails_no_other_before_its_turn() -> None:
    async def live() -> None:
        typing = Typing({"a": [[b'{"x": 1}']], "b": [[POISON]], "c": [[]]})
        await typing.settle(await typing.next_job())
        assert [typing.names(topic) for topic in "abc"] == [["x"], None, None]
        with pytest.raises(Retryable, match="registry"):
            await typing.settle(await typing.next_job())

    in_trio(live)

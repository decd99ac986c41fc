"""The types of each topic's columns: taken from its first records, grown with later ones, stored with positions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress

import pyarrow as pa
import trio

from conveyord.core.errors import ConveyordError
from conveyord.core.flow.positions import Positions
from conveyord.core.flow.record_log import TopicPartition
from conveyord.engine.contracts import OperatorConfig
from conveyord.engine.decoding import SAMPLE_BYTES
from conveyord.engine.kafka.hopper import Hopper, Job
from conveyord.engine.payloads.contract import PayloadDecoder
from conveyord.engine.schema_memory import remembered_schema, schema_to_remember
from conveyord.runtime.nurseries import unwrapped

SAMPLE_SECONDS = 5.0  # until types are inferred from what is there, if that is less than a sample
TYPED_AT_ONCE = 8
"""Topics of which samples are decoded at a time: enough to hide a registry's waits, and 128 MiB of samples at most."""


class TopicTypes:
    """The newest schema of each topic. For the trio thread, unless a method says otherwise."""

    def __init__(self, config: OperatorConfig, stage: str, *, is_single: bool) -> None:
        """config: of the format, since types hold for that alone. is_single: there is but one topic."""
        self._config = config
        self._stage = stage
        self._is_single = is_single
        self._schemas: dict[str, pa.Schema] = {}
        self._stored: dict[str, tuple[pa.Schema, str]] = {}

    def recall(self, fences: Sequence[Positions]) -> None:
        """Take up what an earlier run settled on."""
        topics = {partition.name.rpartition("[")[0] for fence in fences for partition in fence}
        for topic in topics - self._schemas.keys():
            schema = remembered_schema(self._config, [fence.states.get(self._key(topic)) for fence in fences])
            if schema is not None:
                self._schemas[topic] = schema

    def of(self, topic: str) -> pa.Schema | None:
        """The schema of a topic; None if nothing of it was read yet."""
        return self._schemas.get(topic)

    def grow(self, topic: str, schema: pa.Schema) -> None:
        """The schema of a topic is `schema` from now on."""
        self._schemas[topic] = schema

    def states(self, topic: str) -> dict[str, str]:
        """What to store with the positions of a topic."""
        schema = self._schemas.get(topic)
        if schema is None:
            return {}
        stored = self._stored.get(topic)
        if stored is None or stored[0] is not schema:
            stored = self._stored[topic] = schema, schema_to_remember(self._config, schema)
        return {self._key(topic): stored[1]}

    def _key(self, topic: str) -> str:
        return self._stage if self._is_single else f"{self._stage}/{topic}"


InThread = Callable[..., Awaitable[pa.Schema]]
"""Runs a blocking function with its arguments in a thread."""


class Beginnings:
    """The first records of topics, from which their types are taken. For the trio thread."""

    def __init__(self, hopper: Hopper, ends: Callable[[], Mapping[TopicPartition, int]], types: TopicTypes) -> None:
        """ends: of the partitions that are read, as far as they are known."""
        self._hopper = hopper
        self._ends = ends
        self._types = types

    async def settle(self, job: Job, decoder: PayloadDecoder, in_thread: InThread, *, stop: trio.Event) -> None:
        """Take the types of the topic that `job` is of from the first 16 MiB of it, or from what there is; and with it
        those of all other topics that begin, so that many together are not waited for one after the other.

        What a topic's types are depends on its own records alone. Raises what `decoder` raises for the topic of `job`;
        for another one when a job of that comes.
        """
        topics = {job.partition.topic, *(topic for topic in self._beginning() if self._types.of(topic) is None)}

        def is_enough() -> bool:
            held, unended = self._hopper.value_bytes(), self._unended(or_unknown=True)
            return all(topic not in unended or held.get(topic, 0) >= SAMPLE_BYTES for topic in topics)

        await self._hopper.gather(is_enough, seconds=SAMPLE_SECONDS, stop=stop)
        limiter = trio.CapacityLimiter(TYPED_AT_ONCE)

        async def infer(topic: str) -> None:
            async with limiter:
                values = self._hopper.sample(topic, taken=job if topic == job.partition.topic else None)
                schema = await in_thread(inferred, decoder, values)
            # Tombstones alone, or nothing, tell no types: then the first values do, and may have done so meanwhile.
            if schema.names and self._types.of(topic) is None:
                self._types.grow(topic, schema)

        async def infer_other(topic: str) -> None:
            with suppress(ConveyordError):
                await infer(topic)

        with unwrapped():
            async with trio.open_nursery() as nursery:
                for topic in topics:
                    nursery.start_soon(infer if topic == job.partition.topic else infer_other, topic)

    def _beginning(self) -> set[str]:
        """Topics of which something is here, or known to come."""
        return {topic for topic, size in self._hopper.value_bytes().items() if size} | self._unended(or_unknown=False)

    def _unended(self, *, or_unknown: bool) -> set[str]:
        """Topics of which more is to come, or may come because nobody knows where they end."""
        ends = self._ends()
        return {
            place.topic
            for place, tip in self._hopper.tips().items()
            if (tip < ends[place] if place in ends else or_unknown)
        }


def inferred(decoder: PayloadDecoder, values: Iterable[bytes]) -> pa.Schema:
    """The schema that the first 16 MiB of `values` have. Blocking. Raises what the decoder raises."""
    sample, size = list[bytes](), 0
    for value in values:
        size += len(value)
        if sample and size > SAMPLE_BYTES:
            break
        sample.append(value)
    return decoder.decode(sample, None).schema

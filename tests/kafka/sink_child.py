"""A process that writes the numbers 0 to `end` to a topic, from where its sink says on; somebody kills it now and then.

Arguments: brokers, topic, data directory, end, and the options of the sink as JSON. Prints each position it has stored.
"""

from __future__ import annotations

import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

import pyarrow as pa
import trio

from conveyord.core.flow.positions import Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.messages import Ack, Batch, Eos, Message
from tests.kafka.cluster import Cluster
from tests.kafka.sink_rig import FILE, sink_to

BATCH_ROWS_MAX = 400


async def run(brokers: str, topic: str, data_dir: Path, end: int, options: dict[str, object]) -> None:
    sink = sink_to(Cluster(brokers), topic, data_dir, **options)
    random = Random()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(sink.close)
        held = await sink.open()
        at = held[FILE].offset if FILE in held else 0
        send, receive = trio.open_memory_channel[Message](4)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.run, receive)
            print(f"began at {at}", flush=True)
            while at < end:
                count = min(random.randint(1, BATCH_ROWS_MAX), end - at)
                await send.send(batch(at, at + count))
                at += count
            await send.send(Eos())


def batch(first: int, end: int) -> Batch:
    data = pa.record_batch({"n": pa.array(range(first, end), pa.int64())})
    settled = Ack(lambda: print(end, flush=True))
    return Batch(data, (Span(FILE, first, end),), Tally(read=end - first), settled, {"in": f"at {end}"})


if __name__ == "__main__":
    trio.run(run, sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5]))

"""Source `dice`: throws of dice, always the same for the same seed."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import trio
from pydantic import Field

from conveyord.core.errors import Refused
from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.contracts import OperatorConfig, Outlet, Source

SCHEMA = pa.schema([pa.field("throw", pa.int64()), pa.field("value", pa.int64())])
BYTES_PER_ROW = 16  # two integers


class DiceConfig(OperatorConfig):
    """Throws dice: columns `throw` (0, 1, 2, ...) and `value`. The same seed gives the same throws."""

    # Every field needs a description: `conveyord plugins`, `conveyord create` and editors show it. A required field
    # also needs an example that works, from which `conveyord create` makes a definition that validates.
    throws: int = Field(ge=0, le=1_000_000_000, description="How many throws there are.", examples=[1000])
    seed: int = Field(default=0, description="Another seed gives other throws.")
    sides: int = Field(default=6, ge=2, le=1_000_000, description="The values go from 1 to this.")
    batch_rows: int = Field(default=10_000, ge=1, le=1_000_000, description="Rows in one batch, at most.")


class DiceSource(Source):
    """Reads one partition, `dice`, whose offsets are the numbers of the throws.

    What makes a source exactly-once is that reading again from an offset gives the same records. Here a throw
    follows from the seed and its number alone; a file or a Kafka partition has the property by nature.
    """

    Config = DiceConfig
    pure = True  # what comes out follows from configuration and position, so pipelines that run together may share it

    async def run(self, out: Outlet, *, fences: tuple[Positions, ...], drain: trio.Event) -> None:
        """See `Source.run`.

        Raises Refused if a fence was written under another seed or other sides: its rows are of other throws.
        """
        config: DiceConfig = self.config
        # The stage's name keeps the positions of several sources in one pipeline apart.
        partition = Partition(self.context.stage, "dice")
        # The mark is stored with every position. It tells later whether the partition is still the same.
        mark = f"{config.seed}/{config.sides}"
        held = [fence[partition].offset if partition in fence else 0 for fence in fences]
        for fence in fences:
            if partition in fence and fence[partition].mark != mark:
                raise Refused(
                    f"stage {self.context.stage!r}: the sink holds throws of seed/sides {fence[partition].mark}, the "
                    f"definition says {mark}; give the pipeline another name, or set them back"
                )
        # Start where the sink that is furthest behind has to go on, and end a batch wherever another one goes on:
        # what a sink already holds is then left out by whole batches.
        first = min(held, default=0)
        cuts = sorted({offset for offset in held if offset > first} | {config.throws})
        out.expects(max(0, config.throws - first) * BYTES_PER_ROW)
        for cut in cuts:
            while first < min(cut, config.throws):
                if drain.is_set():  # asked to stop in order: what was sent will still be committed
                    return
                end = min(first + config.batch_rows, cut, config.throws)
                # Python computes here, so it goes into a thread; the event loop must never be kept busy.
                data = await self.context.in_thread(throws, config, first, end)
                span = Span(partition, first, end, mark)
                await out.send(data, (span,), Tally(read=end - first), raw_bytes=(end - first) * BYTES_PER_ROW)
                first = end


def throws(config: DiceConfig, first: int, end: int) -> pa.RecordBatch:
    """The throws `[first, end)`. Blocking."""
    numbers = range(first, end)
    values = [1 + _random(config.seed, number) % config.sides for number in numbers]
    return pa.record_batch([pa.array(numbers, pa.int64()), pa.array(values, pa.int64())], schema=SCHEMA)


def _random(seed: int, number: int) -> int:
    # Not `random.Random`: its state would have to be stored with the positions, and a hash needs none.
    digest = hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")

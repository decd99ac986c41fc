"""A third party's plugin: a source that ticks, for tests that need a run to last until they stop it."""

from __future__ import annotations

import sys

import pyarrow as pa
import trio

from conveyord.core.errors import Refused
from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.contracts import OperatorConfig, Outlet, Source


class Ticker(Source):
    """One row per tick. Says `ticking` on stderr once the first row is on its way."""

    class Config(OperatorConfig):
        ticks: int = 1_000_000
        stubborn: bool = False
        fail: str = ""

    async def run(self, out: Outlet, *, fences: tuple[Positions, ...], drain: trio.Event) -> None:
        partition = Partition(self.context.stage, "clock")
        first = min((fence[partition].offset if partition in fence else 0 for fence in fences), default=0)
        for tick in range(first, self.config.ticks):
            if drain.is_set() and not self.config.stubborn:
                return
            data = pa.record_batch({"tick": pa.array([tick], pa.int64())})
            await out.send(data, (Span(partition, tick, tick + 1),), Tally(read=1), raw_bytes=8)
            if tick == first:
                sys.stderr.write("ticking\n")
            if self.config.fail == "bug":
                raise KeyError("a bug of the plugin")
            if self.config.fail == "refused":
                raise Refused("clock: it goes backwards; set it right and run again")
            await trio.sleep(0.001)

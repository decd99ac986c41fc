"""What the engine itself costs: a hop from stage to stage, and fan-out to sinks that wait.

A hop is the difference between a chain of 33 stages that pass everything on and a chain of one, for each
batch and stage, of the CPU time of the process (and of wall time, which neighbours stretch). Beside it, in the
same rounds, the same chains of bare trio tasks that read one memory channel and write the next: less than that
no engine on trio can cost. A stage that computes goes through a thread, which is measured too, without a target.

Fan-out is one source to three sinks that wait 5, 3 and 1 ms on every batch, as on a disk or a network, against
the slowest of them alone.

    python -m benchmarks.graph --rounds 9 --json out.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import trio

from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.pipeline.graph import Edge
from conveyord.engine.batch_transform import BatchTransform
from conveyord.engine.contracts import (
    Inbound,
    Operator,
    OperatorConfig,
    OperatorContext,
    Outlet,
    Sink,
    SinkReport,
    Source,
)
from conveyord.engine.graph import Graph, Link, Node, run_graph
from conveyord.engine.messages import Batch
from conveyord.engine.outlet import TrackedOutlet
from conveyord.engine.routing import Exit
from conveyord.engine.summary import RunProgress
from conveyord.operators.transform_passthrough import PassthroughConfig, PassthroughTransform

CAPACITY = 8  # batches on an edge, as conveyord.toml has it by default
LONG = 33
HOP_BATCHES = 1_000
THREAD_BATCHES = 200
WAITS_MS = (5, 3, 1)
WAIT_BATCHES = 200
PIPELINE = "default/bench"

Chain = Callable[[int, int], None]
"""Takes so many batches through so many stages."""


class Generating(Source):
    """Sends one batch again and again, as records that follow each other."""

    Config = OperatorConfig

    def __init__(self, context: OperatorContext, data: pa.RecordBatch, batches: int) -> None:
        super().__init__(OperatorConfig(), context)
        self._data, self._batches = data, batches

    async def run(self, out: Outlet, *, fences: tuple[Positions, ...], drain: trio.Event) -> None:  # noqa: ARG002
        partition, rows = Partition(self.context.stage, "generated"), self._data.num_rows
        for number in range(self._batches):
            span = Span(partition, number * rows, (number + 1) * rows)
            await out.send(self._data, (span,), Tally(read=rows), raw_bytes=0)


class Waiting(Sink):
    """Waits on every batch, if it is told to, counts it and settles it."""

    Config = OperatorConfig
    delivery = "at-least-once"

    def __init__(self, context: OperatorContext, wait_seconds: float = 0) -> None:
        super().__init__(OperatorConfig(), context)
        self._wait_seconds = wait_seconds

    async def open(self) -> None:
        """It keeps nothing."""

    async def run(self, inbound: Inbound) -> None:
        async for message in inbound:
            if isinstance(message, Batch):
                if self._wait_seconds:
                    await trio.sleep(self._wait_seconds)
                self.taken += message.tally
                message.ack.settle()

    def report(self) -> SinkReport:
        return SinkReport(self.context.stage, self.taken.rows, 0, 0)


class InThread(BatchTransform):
    """Computes nothing, in a thread."""

    Config = OperatorConfig

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        return data


async def run(source: Source, chain: Sequence[Operator], sinks: Sequence[Sink]) -> None:
    """Run `source`, then `chain`, then all of `sinks`, and see that every row arrives."""
    members, operators = frozenset([PIPELINE]), [source, *chain, *sinks]
    nodes = [
        Node(
            number,
            operator,
            members,
            outlet=TrackedOutlet([RunProgress()]) if number == 0 else None,
            fences=(Positions(),),
        )
        for number, operator in enumerate(operators)
    ]
    ways = [(number, number + 1) for number in range(len(chain))]
    ways += [(len(chain), len(chain) + 1 + number) for number in range(len(sinks))]
    links = [
        Link(first, second, Exit(Edge(operators[first].context.stage, operators[second].context.stage), members))
        for first, second in ways
    ]
    failures = await run_graph(
        Graph(tuple(nodes), tuple(links)),
        channel_capacity=CAPACITY,
        threads=source.context.threads,
        drain=trio.Event(),
    )
    outlet = nodes[0].outlet
    assert not failures.of(PIPELINE), failures.of(PIPELINE)
    assert outlet is not None
    assert outlet.oldest_age_seconds(0) is None, "not everything was settled"
    assert len({sink.taken.rows for sink in sinks}) == 1, "the sinks got different rows"


def context(stage: str) -> OperatorContext:
    return OperatorContext(PIPELINE, stage, Path(), trio.CapacityLimiter(2))


def engine_chain(data: pa.RecordBatch, *, in_thread: bool = False) -> Chain:
    """A source, so many stages and a sink."""

    def stage(number: int) -> Operator:
        if in_thread:
            return InThread(OperatorConfig(), context(f"stage-{number}"))
        return PassthroughTransform(PassthroughConfig(), context(f"stage-{number}"))

    async def go(batches: int, stages: int) -> None:
        chain = [stage(number) for number in range(stages)]
        await run(Generating(context("source"), data, batches), chain, [Waiting(context("sink"))])

    return lambda batches, stages: trio.run(go, batches, stages)


def bare_chain(data: pa.RecordBatch) -> Chain:
    """The same of bare trio tasks."""

    async def passing(receive: trio.MemoryReceiveChannel[object], send: trio.MemorySendChannel[object]) -> None:
        async with send:
            async for message in receive:
                await send.send(message)

    async def go(batches: int, stages: int) -> None:
        first, receive = trio.open_memory_channel[object](CAPACITY)
        taken = 0
        async with trio.open_nursery() as nursery:
            for _ in range(stages):
                send, behind = trio.open_memory_channel[object](CAPACITY)
                nursery.start_soon(passing, receive, send)
                receive = behind

            async def feed() -> None:
                async with first:
                    for _ in range(batches):
                        await first.send(data)

            nursery.start_soon(feed)
            async for _ in receive:
                taken += 1
        assert taken == batches

    return lambda batches, stages: trio.run(go, batches, stages)


def seconds(work: Callable[[], None]) -> tuple[float, float]:
    """CPU seconds of the process, and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure_hops(rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds of a hop by kind, and the median of its ratio to the bare hop of the same round."""
    one, many = (pa.record_batch({"n": pa.array(range(rows))}) for rows in (1, 65_536))
    kinds: dict[str, tuple[Chain, int]] = {
        "bare trio tasks": (bare_chain(one), HOP_BATCHES),
        "1 row": (engine_chain(one), HOP_BATCHES),
        "65,536 rows": (engine_chain(many), HOP_BATCHES),
        "through a thread, 65,536 rows": (engine_chain(many, in_thread=True), THREAD_BATCHES),
    }
    cpu_us: dict[str, list[float]] = {name: [] for name in kinds}
    wall_us: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds + 1):  # the first warms up
        for name, (chain, batches) in kinds.items():
            short, long = (seconds(partial(chain, batches, stages)) for stages in (1, LONG))
            for times, before, after in zip((cpu_us[name], wall_us[name]), short, long, strict=True):
                times.append((after - before) / (LONG - 1) / batches * 1e6)
    bare = cpu_us["bare trio tasks"][1:]
    return {
        name: {
            "cpu_us": statistics.median(times[1:]),
            "cpu_us_highest": max(times[1:]),
            "wall_us": statistics.median(wall_us[name][1:]),
            "times_bare": statistics.median(ours / theirs for ours, theirs in zip(times[1:], bare, strict=True)),
        }
        for name, times in cpu_us.items()
    }


def measure_fan_out(rounds: int) -> dict[str, Any]:
    """Wall seconds of the slowest sink alone and of the three together."""
    data = pa.record_batch({"n": pa.array(range(65_536))})

    async def go(waits_ms: Sequence[int]) -> None:
        sinks = [Waiting(context(f"sink-{wait_ms}"), wait_ms / 1000) for wait_ms in waits_ms]
        await run(Generating(context("source"), data, WAIT_BATCHES), [], sinks)

    def wall_seconds(waits_ms: Sequence[int]) -> float:
        started = time.perf_counter()
        trio.run(go, waits_ms)
        return time.perf_counter() - started

    pairs = [(wall_seconds(WAITS_MS[:1]), wall_seconds(WAITS_MS)) for _ in range(rounds)]
    return {
        "waits_ms": WAITS_MS,
        "batches": WAIT_BATCHES,
        "slowest_alone_seconds": statistics.median(alone for alone, _ in pairs),
        "together_seconds": statistics.median(together for _, together in pairs),
        "ratio": statistics.median(together / alone for alone, together in pairs),
        "ratios": [round(together / alone, 3) for alone, together in pairs],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    hops, fan_out = measure_hops(arguments.rounds), measure_fan_out(arguments.rounds)
    print("| hop, µs per batch | CPU | highest | wall | CPU, bare = 1 |\n|---|---:|---:|---:|---:|")
    for name, hop in hops.items():
        figures = " | ".join(f"{hop[key]:.1f}" for key in ("cpu_us", "cpu_us_highest", "wall_us"))
        print(f"| {name} | {figures} | {hop['times_bare']:.2f} |")
    print("\n| sinks waiting ms on a batch | wall s | slowest = 1 |\n|---|---:|---:|")
    print(f"| {WAITS_MS[0]} | {fan_out['slowest_alone_seconds']:.3f} | 1.00 |")
    print(f"| {', '.join(map(str, WAITS_MS))} | {fan_out['together_seconds']:.3f} | {fan_out['ratio']:.2f} |")
    if arguments.json:
        text = json.dumps({"rounds": arguments.rounds, "hop": hops, "fan_out": fan_out}, indent=2)
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()

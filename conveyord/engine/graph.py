"""Runs the stages of a pipeline as tasks joined by bounded channels.

How a stage ends decides how the others do, without anyone cancelling anyone:

    a stage returns       its outbound channel gets Eos and closes; what follows drains and finishes
    a stage fails         the same downstream; its inbound channel closes, so the stage before it finds
                          nobody listening (BrokenResourceError) and stops quietly, and so on upstream
    the run is cancelled  every stage is cancelled; nothing more is committed

So whatever was sent before a failure is still written and committed, and the failure is reported
with the stage's name once everything has come to rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import trio

from conveyord.core.errors import ConveyordError
from conveyord.core.flow.positions import Positions
from conveyord.engine.contracts import Outlet, Sink, Source, Transform
from conveyord.engine.failures import Failures, unwrapped
from conveyord.engine.messages import Eos, Message

Receive = trio.MemoryReceiveChannel[Message]
Send = trio.MemorySendChannel[Message]


@dataclass(frozen=True, slots=True)
class LinearGraph:
    """One source, transforms in order, one sink."""

    source: Source
    transforms: tuple[Transform, ...]
    sink: Sink


async def run_linear(
    graph: LinearGraph,
    *,
    fences: tuple[Positions, ...],
    outlet: Callable[[Send], Outlet],
    channel_capacity: int,
    drain: trio.Event,
) -> Failures:
    """Run every stage to its end and return what failed. Anything but a ConveyordError propagates.

    channel_capacity: messages that may wait between two stages; at the limit the upstream waits.
    outlet: wraps the source's send channel (positions and acknowledgements start there).
    """
    failures = Failures()
    with unwrapped():
        async with trio.open_nursery() as nursery:
            outbound, inbound = trio.open_memory_channel[Message](channel_capacity)
            first_outlet = outlet(outbound)

            async def run_source(_: None, __: Send) -> None:
                await graph.source.run(first_outlet, fences=fences, drain=drain)

            nursery.start_soon(_stage, graph.source.context.stage, run_source, None, outbound, failures)
            for transform in graph.transforms:
                upstream = inbound
                outbound, inbound = trio.open_memory_channel[Message](channel_capacity)
                stage = transform.context.stage
                nursery.start_soon(_stage, stage, transform.run, upstream, outbound, failures)

            async def run_sink(receive: Receive, _: None) -> None:
                await graph.sink.run(receive)

            nursery.start_soon(_stage, graph.sink.context.stage, run_sink, inbound, None, failures)
    return failures


async def _stage(
    name: str,
    run: Callable[..., Awaitable[None]],
    inbound: Receive | None,
    outbound: Send | None,
    failures: Failures,
) -> None:
    """Run one stage under the rules at the top of this file."""
    try:
        try:
            with unwrapped():
                await run(inbound, outbound)
        except trio.BrokenResourceError:
            pass  # the stage after this one failed and says why itself
        except ConveyordError as error:
            failures.add(name, error)
        if outbound is not None:
            with suppress(trio.BrokenResourceError):
                await outbound.send(Eos())
    finally:
        for channel in (inbound, outbound):
            if channel is not None:
                channel.close()

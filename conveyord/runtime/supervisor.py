"""Runs the services of a node: started in the order of what they need, drained the other way round.

| a service | on | what is done |
|---|---|---|
| starting | it fails | those that run are cancelled; its error, which names it, comes out |
| running | `stop` is set | it is asked to drain once all that were started after it have ended |
| running | it fails, or ends before it was asked to | the others are cancelled: they may need it; its error comes out |
| draining | `drain_seconds` for all of them are over | whoever is left is cancelled |

Nothing is started again here: a service that fails has had its own retries, and what it needs next is a process that
reads what is on disk. The init system gives it one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
import trio

from conveyord.core.errors import ConveyordError
from conveyord.runtime.nurseries import unwrapped

log = structlog.get_logger(__name__)


class Service(Protocol):
    """One role of a node, or what several of them share."""

    @property
    def name(self) -> str:
        """What it is called in logs and errors."""

    async def run(self, *, drain: trio.Event, task_status: trio.TaskStatus[Any]) -> None:
        """Open what it needs, say `started`, and serve until `drain` is set; then end what is under way, and return.

        It lets go of everything in any case. Raises ConveyordError for what an operator must mend.
        """


class ServiceEnded(ConveyordError):
    """A service ended although nobody had asked it to. That is a bug of ours."""

    code = "SERVICE_ENDED"


@dataclass(slots=True, eq=False)
class _Running:
    name: str
    drain: trio.Event = field(default_factory=trio.Event)
    has_ended: trio.Event = field(default_factory=trio.Event)


async def supervise(
    services: Sequence[Service],
    *,
    stop: trio.Event,
    drain_seconds: float,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> bool:
    """Run `services` until `stop` is set; `started` once all of them are. Returns whether all drained in time.

    services: each after those that it needs. drain_seconds: for all of them together. Raises what a service raises.
    """
    with unwrapped():
        async with trio.open_nursery() as nursery:
            running = list[_Running]()
            for service in services:
                one = _Running(service.name)
                await nursery.start(_hold, service, one)
                running.append(one)
                log.info("started", service=one.name)
            task_status.started()
            await stop.wait()
            with trio.move_on_after(drain_seconds) as grace:
                for one in reversed(running):
                    log.info("draining", service=one.name)
                    one.drain.set()
                    await one.has_ended.wait()
            if grace.cancelled_caught:
                left = [one.name for one in running if not one.has_ended.is_set()]
                log.warning("not drained in time, and cancelled", services=left, drain_seconds=drain_seconds)
                nursery.cancel_scope.cancel()
    return not grace.cancelled_caught


async def _hold(
    service: Service, one: _Running, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run one service in a nursery of its own. What goes wrong before it has started is raised as itself."""
    try:
        with unwrapped():
            async with trio.open_nursery() as nursery:
                await nursery.start(_run, service, one)
                task_status.started()
    finally:
        one.has_ended.set()


async def _run(service: Service, one: _Running, *, task_status: trio.TaskStatus[Any]) -> None:
    await service.run(drain=one.drain, task_status=task_status)
    if not one.drain.is_set():
        raise ServiceEnded(f"{service.name} ended by itself; the log says what it did last, report it as a bug")

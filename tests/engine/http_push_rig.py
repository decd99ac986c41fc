"""An `http` source that listens, run in this process against an outlet that settles when a test says so."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pyarrow as pa
import trio
from structlog.testing import capture_logs

from conveyord.core.flow.positions import Partition, Position, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.operators.source_http import HttpSource, HttpSourceConfig
from tests.engine.http_rig import context

URL = "http://127.0.0.1:0/events"
JSON = {"content-type": "application/json"}
LINES = {"content-type": "application/x-ndjson"}


class PushOut:
    """Takes what a source sends, and settles it at once or when it is told to. held: what was settled before."""

    def __init__(self, *, settles: bool = True, held: Positions = Positions()) -> None:
        self.settles = settles
        self.positions = held
        self.batches: list[tuple[pa.RecordBatch, Span, Tally]] = []
        self.within: list[float | None] = []
        self.gate = trio.Event()
        self.gate.set()
        self._moved: Callable[[Mapping[Partition, Position]], None] | None = None

    def expects(self, raw_bytes: int | None) -> None:
        assert raw_bytes is None

    def on_settled(self, moved: Callable[[Mapping[Partition, Position]], None]) -> None:
        self._moved = moved

    async def send(
        self,
        data: pa.RecordBatch,
        spans: tuple[Span, ...],
        tally: Tally,
        *,
        raw_bytes: int,
        states: Mapping[str, str],
        place_of: Any = None,
        within_seconds: float | None = None,
    ) -> None:
        await self.gate.wait()
        await trio.lowlevel.checkpoint()
        assert tally.rows == data.num_rows
        (span,) = spans
        if not self.positions.covers(span):
            self.positions = Positions(self.positions.advanced(spans), {**self.positions.states, **states})
            self.batches.append((data, span, tally))
            self.within.append(within_seconds)
        if self.settles:
            self.settle()

    def settle(self) -> None:
        """Say of everything that came that every sink has it."""
        assert self._moved is not None
        self._moved(dict(self.positions))

    async def watermark(self, watermark: object) -> None:
        raise AssertionError

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for data, _, _ in self.batches for row in data.to_pylist()]

    @property
    def numbers(self) -> list[int]:
        return [row["n"] for row in self.rows]


@dataclass
class Pushing:
    """A source that runs. client: to send requests with."""

    source: HttpSource
    out: PushOut
    drain: trio.Event
    url: str
    client: httpx.AsyncClient
    over: trio.Event = field(default_factory=trio.Event)

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    @property
    def journal(self) -> Any:
        return self.source._push._intake.journal

    async def post(self, value: Any, *, key: str | None = "k", **headers: str) -> httpx.Response:
        """Send JSON, or the lines of bytes."""
        named = dict(JSON if not isinstance(value, bytes) else LINES) | (
            {} if key is None else {"idempotency-key": key}
        )
        named |= {name.replace("_", "-"): text for name, text in headers.items()}
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return await self.client.post(self.url, content=body, headers=named)

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(20):
            while not condition():
                await trio.sleep(0.005)

    async def raw(self, data: bytes) -> bytes:
        """Send bytes on a connection of their own, and read until its end."""
        with trio.fail_after(20):
            async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
                await stream.send_all(data)
                return b"".join([piece async for piece in stream])


def source_of(data_dir: Path, *, more: dict[str, Any] | None = None, push: Any = None, **options: Any) -> HttpSource:
    config = HttpSourceConfig(**{"url": URL, "mode": "push", "push": push or {}, **options})
    assert HttpSource.mistakes(config) == {}
    return HttpSource(config, context(data_dir, "in", **(more or {})))


@asynccontextmanager
async def pushing(
    data_dir: Path,
    *held: Positions,
    out: PushOut | None = None,
    verify: Any = True,
    more: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Pushing]:
    """Run a source, and drain it at the end of the block."""
    source = source_of(data_dir, more=more, **options)
    out = out or PushOut(held=min(held, key=lambda one: sum(p.offset for p in one.values()), default=Positions()))
    drain, over = trio.Event(), trio.Event()

    async def run() -> None:
        try:
            await source.run(out, fences=held or (Positions(),), drain=drain)
        finally:
            over.set()

    with capture_logs() as logs:
        async with trio.open_nursery() as nursery, httpx.AsyncClient(timeout=30, verify=verify) as client:
            nursery.start_soon(run)
            with trio.fail_after(20):
                while not (said := [one["address"] for one in logs if one["event"] == "listening"]):
                    await trio.sleep(0.002)
            yield Pushing(source, out, drain, said[0], client, over)
            drain.set()
            await client.aclose()
            with trio.fail_after(20):
                await over.wait()
        await source.close()

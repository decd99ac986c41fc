"""What the tests of the `http` source share: a sink of one batch after the other, and servers that page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import trio
import trio.testing

from conveyord.core.flow.positions import Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.operators.source_http import HttpSource, HttpSourceConfig
from tests.engine.http_rig import Answer, Asked, Script, Server, context, said


class Out:
    """Takes what a source sends as a sink would, and stops the run when it has seen enough."""

    def __init__(
        self, held: Positions = Positions(), *, drain: trio.Event | None = None, batches_max: int = 1000
    ) -> None:
        self.positions = held
        self.batches: list[tuple[pa.RecordBatch, Tally]] = []
        self.places: list[tuple[int, bytes | None]] = []
        self._drain, self._batches_max = drain, batches_max

    def expects(self, raw_bytes: int | None) -> None:
        assert raw_bytes is None

    async def send(
        self,
        data: pa.RecordBatch,
        spans: tuple[Span, ...],
        tally: Tally,
        *,
        raw_bytes: int,
        states: Mapping[str, str],
        place_of: Any = None,
    ) -> None:
        await trio.lowlevel.checkpoint()
        assert tally.rows == data.num_rows
        self.positions = Positions(self.positions.advanced(spans), {**self.positions.states, **states})
        self.batches.append((data, tally))
        if place_of is not None:
            found = [place_of(row).record for row in range(data.num_rows)]
            self.places += [(record.offset, record.raw) for record in found]
        if self._drain is not None and len(self.batches) >= self._batches_max:
            self._drain.set()

    async def watermark(self, watermark: object) -> None:
        raise AssertionError

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for data, _ in self.batches for row in data.to_pylist()]

    @property
    def numbers(self) -> list[int]:
        return [row["n"] for row in self.rows]


def source_at(server: Server, data_dir: Path, *, more: dict[str, Any] | None = None, **options: Any) -> HttpSource:
    config = HttpSourceConfig(**{"url": server.url("/list"), "once": True, **options})
    assert HttpSource.mistakes(config) == {}
    return HttpSource(config, context(data_dir, "in", **(more or {})))


async def read(source: HttpSource, *held: Positions, batches_max: int | None = None, out: Out | None = None) -> Out:
    """Run a source from what sinks hold."""
    drain = trio.Event()
    out = out or Out(min(held, key=sum_of, default=Positions()), drain=drain, batches_max=batches_max or 1000)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(source.close)
        await source.run(out, fences=held or (Positions(),), drain=drain)
    return out


def sum_of(positions: Positions) -> int:
    return sum(position.offset for position in positions.values())


def rows(*numbers: int) -> list[dict[str, int]]:
    return [{"n": number} for number in numbers]


def listing(count: int, per_page: int) -> Script:
    """Pages of `count` numbered records by a token: `page` names the first record."""

    def script(asked: Asked) -> Answer:
        first = int(asked.query.get("page", 0))
        following = first + per_page
        more = {"next": following} if following < count else {"next": None}
        return said({"data": {"items": rows(*range(count)[first:following])}, **more})

    return script


TOKEN = {"records": "data.items", "cursor": {"param": "page", "path": "next"}}


def since(records: Sequence[dict[str, Any]], per_page: int, *, inclusive: bool = False) -> Script:
    """Records at or after `since` by their field `at`."""

    def script(asked: Asked) -> Answer:
        value = int(asked.query.get("since", -1))
        found = [row for row in records if row["at"] > value or (inclusive and row["at"] == value)]
        return said(found[:per_page])

    return script


SINCE = {"cursor": {"param": "since", "from_record": "at"}}


def linked(count: int, per_page: int, *, header: bool) -> Script:
    def script(asked: Asked) -> Answer:
        first = int(asked.query.get("from", 0))
        following = first + per_page
        link = f"/list?from={following}&k=1" if following < count else None
        items = rows(*range(count)[first:following])
        if header:
            named = {"link": f'</list?from=0>; rel="first", <{link}>; rel="next"'} if link else {}
            return said(items, **named)
        return said({"items": items, "paging": {"next": link} if link else {}})

    return script


async def read_now(source: HttpSource, held: Positions, batches_max: int | None) -> Out:
    return await read(source, held, batches_max=batches_max)

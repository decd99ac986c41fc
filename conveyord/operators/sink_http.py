"""Sink `http`: rows as JSON to an address, in requests of a bounded size, at least once.

A batch is done when the receiver has answered for each of its rows. Then its positions are stored, then it is
settled. A crash in between sends the batch again, under the same idempotency keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Literal

import structlog
import trio
from pydantic import Field

from conveyord.core.errors import BatchError, ConveyordError, Retryable
from conveyord.core.flow.positions import Positions
from conveyord.core.flow.tally import Tally
from conveyord.core.units import Bytes
from conveyord.engine.batch_transform import place_of, rejections
from conveyord.engine.contracts import Inbound, OperatorConfig, OperatorContext, Sink, SinkReport
from conveyord.engine.copies import COPIED
from conveyord.engine.http.answers import Busy, Declined, check
from conveyord.engine.http.options import HttpConfig, http_mistakes, open_client
from conveyord.engine.http.requests import Format, Piece, idempotency_key, pieces_of
from conveyord.engine.http.results import ResultsConfig, failed_rows
from conveyord.engine.messages import Batch, Eos
from conveyord.engine.poison import Poison, Salvaged
from conveyord.runtime.http_client import HttpClient, shown
from conveyord.runtime.nurseries import unwrapped
from conveyord.storage.run_positions import RunPositions, SinkKey

log = structlog.get_logger(__name__)

CLEANUP_SECONDS = 5.0  # to say goodbye on open connections
CONTENT_TYPES: Mapping[str, str] = {
    "json_array": "application/json",
    "json_lines": "application/x-ndjson",
    "json_each": "application/json",
}


class RequestSize(OperatorConfig):
    """How much goes into one request, at most. A request never holds rows of two batches."""

    rows: int = Field(default=500, ge=1, le=100_000, description="Rows in one request; `json_each` sends one.")
    bytes: Bytes = Field(
        default=1024 * 1024, ge=1, le=256 * 1024 * 1024, description="Bytes in one; a larger row is sent alone."
    )


class RateLimit(OperatorConfig):
    """How often the receiver is asked, repeated requests included."""

    requests_per_second: float | None = Field(
        default=None, gt=0, le=100_000, description="At most so many, spread evenly."
    )


class HttpSinkConfig(HttpConfig):
    """Sends rows as JSON in HTTP requests, at least once: what was under way in a crash is sent again.

    Positions are kept in the data directory, by the sink's name and address: under another name or to another
    address everything is sent from the beginning. 2xx means taken. 408, 425, 429, 5xx and failed connections are
    tried again as often as the pipeline's `dlq` says, after at least what Retry-After asks for (60 s at most). At
    400, 413 and 422, and where `results` tell, the records at fault become dead letters, if the pipeline has `dlq`.
    Everything else stops the run.
    """

    method: Literal["POST", "PUT"] = Field(default="POST", description="The method of every request.")
    format: Format = Field(
        default="json_array",
        description="One array of objects a request, one object a line, or one request an object.",
    )
    batch: RequestSize = Field(default_factory=RequestSize)
    concurrency: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Requests at a time. With more than one, rows of a batch may arrive in another order; batches "
        "stay in order.",
    )
    rate_limit: RateLimit = Field(default_factory=RateLimit)
    idempotency_key: bool = Field(
        default=True,
        description="Send an `Idempotency-Key`, made of the positions of the rows, by which the receiver can tell a "
        "repeated request. After a crash it is the same if the source reads the same bytes under the same options.",
    )
    results: ResultsConfig = Field(default_factory=ResultsConfig)


class HttpSink(Sink):
    """See docs/operators.md."""

    Config = HttpSinkConfig
    delivery = "at-least-once"

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self._client: HttpClient | None = None
        self._positions: RunPositions | None = None
        self._next_request_at = 0.0
        self._rows = 0
        self._commits = 0

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mapping[str, str]:
        """See `Operator.mistakes`."""
        assert isinstance(config, HttpSinkConfig)
        return http_mistakes(config)

    @property
    def destination(self) -> str:
        """See `Sink.destination`. A query counts, but may hold a key, so that only its digest is told."""
        config: HttpSinkConfig = self.config
        query = config.url.partition("?")[2]
        digest = f" ({hashlib.sha256(query.encode()).hexdigest()[:8]})" if query else ""
        return f"{config.method} {shown(config.url)}{digest}"

    async def open(self) -> Positions:
        """See `Sink.open`. Nothing is sent: what an address thinks of requests only a request tells."""
        self._client = await open_client(self.config, self.context, connections=self.config.concurrency)
        self._positions = await self.context.in_thread(RunPositions, self.context.data_dir)
        held = await self.context.in_thread(self._positions.load, self._key)
        if self.context.adopt_from is not None:
            self.took_over = held is None
            return await self.context.in_thread(self._positions.take_over, self._key, self.context.adopt_from)
        return held or Positions()

    @property
    def _key(self) -> SinkKey:
        return SinkKey(self.context.pipeline, self.context.stage, self.destination)

    async def run(self, inbound: Inbound) -> None:
        """See `Sink.run`. One batch at a time, so that positions move in order."""
        while True:
            match await inbound.receive():
                case Batch() as batch:
                    await self._take(batch)
                case Eos():
                    return

    async def close(self) -> None:
        """See `Operator.close`."""
        with trio.move_on_after(CLEANUP_SECONDS, shield=True):
            if self._client is not None:
                with suppress(OSError, trio.BrokenResourceError):
                    await self._client.aclose()
            if self._positions is not None:
                await trio.to_thread.run_sync(self._positions.close)

    def report(self) -> SinkReport:
        """See `Sink.report`. Rows count once the receiver has taken them and their positions are stored."""
        return SinkReport(name=self.context.stage, rows=self._rows, files=0, commits=self._commits)

    async def _take(self, batch: Batch) -> None:
        size: RequestSize = self.config.batch
        rows_max = 1 if self.config.format == "json_each" else size.rows
        pieces = await self.context.in_thread(partial(pieces_of, batch.data, rows_max=rows_max, bytes_max=size.bytes))
        failed = await self._delivered(batch, pieces)
        tally = batch.tally
        if failed:
            assert self.context.dead_letters is not None
            # Durable before the positions that cover the batch: a record is delivered or a letter, never neither.
            await self.context.dead_letters.put(await rejections(self.context, batch, Salvaged([], failed)))
            tally += Tally(dead=len(failed))
        assert self._positions is not None, "the engine opens a sink before it runs it"
        await self.context.in_thread(self._positions.store, self._key, batch.spans, batch.states)
        self.taken += tally
        self._rows += batch.data.num_rows - len(failed)
        self._commits += 1
        batch.ack.settle()

    async def _delivered(self, batch: Batch, pieces: list[Piece]) -> list[Poison]:
        """Send all pieces of a batch, `concurrency` at a time. Returns the rows that were refused, in order."""
        failed: list[Poison] = []
        left = iter(pieces)

        async def work() -> None:
            for piece in left:  # shared by the workers, who take turns: trio switches at checkpoints only
                await self._deliver(batch, piece, failed)

        with unwrapped():
            async with trio.open_nursery() as nursery:
                for _ in range(min(self.config.concurrency, len(pieces))):
                    nursery.start_soon(work)
        return sorted(failed, key=lambda poison: poison.row)

    async def _deliver(self, batch: Batch, piece: Piece, failed: list[Poison]) -> None:
        """Send one piece; if it is refused as it is, by halves, down to the rows at fault.

        However many are refused, that is less than two requests a row; see `engine/poison.py` on why there is no limit.
        """
        try:
            refused = await self._sent(batch, piece)
        except Declined as error:
            if len(piece.rows) > 1 and self._may_set_aside(batch):
                for half in piece.halves():
                    await self._deliver(batch, half, failed)
                return
            refused = [Poison(0, error)]
        if refused and not self._may_set_aside(batch):
            whole = "" if len(piece.rows) == 1 else f" (a request of rows {piece.first} to {_last(piece)})"
            raise BatchError(f"{place_of(batch)}, row {piece.first + refused[0].row}{whole}: {refused[0].error}")
        failed += [Poison(piece.first + poison.row, poison.error) for poison in refused]

    def _may_set_aside(self, batch: Batch) -> bool:
        # The copy of a letter that is refused stays no letter: that one would be copied, and refused, for ever.
        return self.context.dead_letters is not None and all(span.partition != COPIED for span in batch.spans)

    async def _sent(self, batch: Batch, piece: Piece) -> list[Poison]:
        """Send one request until it is answered. Returns the rows that the answer says were not taken."""
        headers = {"content-type": CONTENT_TYPES[self.config.format]}
        if self.config.idempotency_key:
            headers["idempotency-key"] = idempotency_key(self.context.pipeline, self.context.stage, batch.spans, piece)
        body = piece.body(self.config.format)
        for wait_seconds in self._waits():
            await self._paced()
            try:
                return await self._asked(headers, body, rows=len(piece.rows))
            except Retryable as error:
                await self._wait(wait_seconds, error)
        raise AssertionError("the last wait raises")

    async def _asked(self, headers: Mapping[str, str], body: bytes, *, rows: int) -> list[Poison]:
        assert self._client is not None, "the engine opens a sink before it runs it"
        reply = await self._client.request(self.config.method, self.config.url, content=body, headers=headers)
        check(self._client, reply)
        if self.config.results.path is None:
            return []
        return failed_rows(self._client, reply, self.config.results, rows=rows)

    def _waits(self) -> Iterator[float | None]:
        """How long to wait after each failure; None after the last."""
        retries = self.context.retries
        for failures in range(1, retries.count_max + 1):
            yield retries.backoff.delay_seconds(failures, retries.random)
        yield None

    async def _wait(self, wait_seconds: float | None, error: ConveyordError) -> None:
        if wait_seconds is None:
            raise error
        if isinstance(error, Busy):
            wait_seconds = max(wait_seconds, error.after_seconds)
        log.warning("a request is sent again", stage=self.context.stage, reason=str(error), wait_seconds=wait_seconds)
        await trio.sleep(wait_seconds)

    async def _paced(self) -> None:
        """Wait for this request's turn."""
        rate = self.config.rate_limit.requests_per_second
        if rate is None:
            return
        at = max(trio.current_time(), self._next_request_at)
        self._next_request_at = at + 1 / rate
        await trio.sleep_until(at)


def _last(piece: Piece) -> int:
    return piece.first + len(piece.rows) - 1

"""Source `http`: records of JSON answers, asked for page by page, at the end of the pages again and again.

Its offsets count records. With each batch it stores a bookmark (see engine/http/paging.py), so that a restart asks
for the page at which the sinks are and goes on within it. Records that others send are in engine/http/push.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import pyarrow as pa
import structlog
import trio
from pydantic import Field

from conveyord.core.errors import ConfigError, Refused
from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.core.units import Seconds
from conveyord.engine.contracts import Mistakes, OperatorConfig, OperatorContext, Outlet, Source
from conveyord.engine.http.answers import Busy, Declined, check
from conveyord.engine.http.options import HttpConfig, http_mistakes, open_client, revealed
from conveyord.engine.http.paging import Bookmark, CursorConfig, Page, after, decoded, digest_of, page_of, with_digest
from conveyord.engine.http.push import PushSource
from conveyord.engine.http.push_options import PushConfig, push_mistakes
from conveyord.engine.http.records import RecordReader, decoded_alone
from conveyord.engine.secrets import Secret
from conveyord.runtime.http_client import HttpClient, Reply, shown
from conveyord.runtime.nurseries import unwrapped

log = structlog.get_logger(__name__)

T = TypeVar("T")

NOT_MODIFIED = 304
EMPTY_PAGES_MAX = 1_000  # in a row: a server that goes on like that is asked again after `every`
CLEANUP_SECONDS = 5.0  # to say goodbye on open connections


class HttpSourceConfig(HttpConfig):
    """Asks an address for JSON records, and again for new ones; with `mode: push`, takes those that are sent to it.

    Each record is taken once, and a restart goes on where the sinks are, as long as the server gives the same page for
    the same request, or one that has only grown at its end. Without `cursor` and `next_link` there is no way to ask
    for new records: then every answer that differs from the one before is taken whole. Types are taken from the first
    page, new fields are added as they come. 408, 425, 429, 5xx and failed connections are tried again.

    With `mode: push` it listens at `url`, such as `http://127.0.0.1:8080/events`, for `POST` of JSON, a list of it, or
    JSON lines, plain or compressed by gzip or zstd, and goes on until it is told to stop. A request is on disk before
    it is answered, and is taken once however often it is sent with one `Idempotency-Key`. Then only `url`, `timeout`
    (for a whole request), `read_timeout` (between two pieces of it), `connect_timeout` (for its head), `max_body` and
    the options of `push` count.
    """

    mode: Literal["poll", "push"] = Field(default="poll", description="Ask `url`, or listen there.")

    params: dict[str, Secret] = Field(
        default={}, description="Query parameters that are secret, such as keys. Never shown, never stored."
    )
    every: Seconds = Field(default=60.0, ge=0.01, le=7 * 86400, description="The wait at the end of the pages.")
    once: bool = Field(default=False, description="Stop at the end of the pages instead.")
    records: str | None = Field(
        default=None,
        description="The dotted path of the records in an answer; without it the answer is a list of them, or one.",
        examples=["items"],
    )
    next_link: str | None = Field(
        default=None,
        description="The dotted path of the address of the next page in an answer, or `Link` for the header. Another "
        "host than that of `url` gets no credentials.",
        examples=["paging.next"],
    )
    cursor: CursorConfig = Field(default_factory=CursorConfig)
    push: PushConfig = Field(default_factory=PushConfig)


_OF_POLLS = ("headers", "params", "every", "once", "records", "next_link", "cursor", "ca_file")


def _push_mistakes(config: HttpSourceConfig) -> Mistakes:
    """What is wrong with the options of a source that listens."""
    fields = HttpSourceConfig.model_fields
    given = [name for name in _OF_POLLS if getattr(config, name) != fields[name].get_default(call_default_factory=True)]
    reason = "has no meaning with mode: push, which asks nobody; leave it out"
    return {**dict.fromkeys(given, reason), **push_mistakes(config, config.push)}


@dataclass(slots=True)
class _Reading:
    """Where the source has got to. offset: records taken so far; the page of `at` begins at `at.start`.

    previous: digests of the records of the page before, where the cursor comes from a record. page_records_max: of a
    page so far. stalled_at: the value of the cursor for which it was told that it may not move any more.
    """

    at: Bookmark
    offset: int
    cuts: tuple[int, ...]
    previous: frozenset[str] = frozenset()
    page_records_max: int = 0
    stalled_at: str | None = None


class HttpSource(Source):
    """See docs/operators.md."""

    Config = HttpSourceConfig
    unit = "records"

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self._client: HttpClient | None = None
        self._params: dict[str, str] = {}
        self._reader = RecordReader(context)
        self._push = PushSource(self.config, self.config.push, context) if self.config.mode == "push" else None

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mistakes:
        """See `Operator.mistakes`."""
        assert isinstance(config, HttpSourceConfig)
        found = http_mistakes(config)
        if config.mode == "push":
            return _push_mistakes(config)
        if config.push != PushConfig():
            found["push"] = "has no meaning without mode: push"
        cursor = config.cursor
        if cursor.param is None and cursor != CursorConfig():
            found["cursor"] = "needs param, the query parameter that takes the value"
        elif cursor.param is not None and (cursor.path is None) == (cursor.from_record is None):
            found["cursor"] = "needs either path (in the answer) or from_record (in its last record)"
        if cursor.path is not None and config.next_link is not None:
            found["next_link"] = "cannot be used with cursor.path: both lead to the next page; leave one out"
        return found

    @property
    def _cursor(self) -> CursorConfig | None:
        cursor: CursorConfig = self.config.cursor
        return None if cursor.param is None else cursor

    @property
    def _partition(self) -> Partition:
        query = self.config.url.partition("?")[2]
        digest = f" ({hashlib.sha256(query.encode()).hexdigest()[:8]})" if query else ""
        return Partition(self.context.stage, f"{shown(self.config.url)}{digest}")

    async def check(self) -> None:
        """See `Operator.check`: the first page is there and can be taken apart, or the address can be listened at."""
        if self._push is not None:
            await self._push.check()
            return
        await self._open()
        at = self._begin((Positions(),)).at
        page_of(self._answer(await self._asked(at)), self.config.records, at)

    async def close(self) -> None:
        """See `Operator.close`."""
        if self._push is not None:
            await self._push.close()
        if self._client is not None:
            with trio.move_on_after(CLEANUP_SECONDS, shield=True):
                await self._client.aclose()

    async def run(self, out: Outlet, *, fences: tuple[Positions, ...], drain: trio.Event) -> None:
        """See `Source.run`."""
        if self._push is not None:
            await self._push.run(out, fences=fences, drain=drain)
            return
        await self._open()
        out.expects(None)
        reading = self._begin(fences)
        empty = 0
        while not drain.is_set():
            page = await self._fetched(reading, drain)
            has_more = page is not None and await self._take(out, page, reading)
            empty = 0 if page is None or page.records else empty + 1
            if has_more and empty < EMPTY_PAGES_MAX:
                continue
            if self.config.once:
                return
            empty = 0
            await _rest(self.config.every, drain)

    async def _open(self) -> None:
        if self._client is None:
            self._params = await self.context.in_thread(revealed, self.config.params, "params")
            self._client = await open_client(self.config, self.context)

    def _begin(self, fences: tuple[Positions, ...]) -> _Reading:
        """Where the sink is that has least."""
        held = [(fence[self._partition].offset, fence) for fence in fences if self._partition in fence]
        if len(held) < len(fences):
            initial = self.config.cursor.initial
            initial = None if initial is None else str(initial)
            return _Reading(Bookmark(cursor=initial), 0, tuple(offset for offset, _ in held))
        offset, fence = min(held, key=lambda pair: pair[0])
        state = fence.states.get(self.context.stage)
        if state is None:
            raise Refused(
                f"source {self.context.stage!r}: a sink holds {self._partition.name} up to record {offset}, but not "
                "where that is; give the source another name to start anew"
            )
        at, schema = decoded(state, where=f"source {self.context.stage!r}")
        self._reader.recall([schema])
        return _Reading(at, offset, tuple(offset for offset, _ in held))

    async def _fetched(self, reading: _Reading, drain: trio.Event) -> Page | None:
        """The page at the bookmark; None if there is nothing new, or the run is to end."""
        reply = await _unless(drain, lambda: self._asked(reading.at))
        if reply is None or reply.status == NOT_MODIFIED:
            return None
        busy = None
        try:
            reply = self._answer(reply)
        except Busy as error:
            busy = error
        if busy is not None:
            await _rest(busy.after_seconds, drain)
            raise busy  # tried again by the engine, after a wait of its own
        at = reading.at
        if at.digest is not None and at.digest != digest_of(reply.body):
            reading.at = at = Bookmark(start=reading.offset)  # another answer, all of which is new
        return await self.context.in_thread(page_of, reply, self.config.records, at)

    async def _asked(self, at: Bookmark) -> Reply:
        assert self._client is not None, "opened by run and check"
        param = self.config.cursor.param
        query = {} if param is None or at.cursor is None or at.link is not None else {param: at.cursor}
        url = self._client.address(self.config.url, link=at.link, query=query, secrets=self._params)
        headers = {"if-none-match": at.etag, "if-modified-since": at.modified}
        return await self._client.request("GET", url, headers={name: text for name, text in headers.items() if text})

    def _answer(self, reply: Reply) -> Reply:
        assert self._client is not None, "opened by run and check"
        try:
            check(self._client, reply)
        except Declined as error:
            raise ConfigError(f"{error}; check url, params and cursor") from error
        return reply

    async def _take(self, out: Outlet, page: Page, reading: _Reading) -> bool:
        """Send what is new of a page, and move on behind it. Returns whether there are further pages now."""
        at = reading.at
        await self._check_progress(page, reading)
        self._tell_of_stall(page, reading)
        taken = reading.offset - at.start
        lines = page.records[taken:]
        behind, has_more = after(
            page,
            at,
            taken=taken,
            cursor=self._cursor,
            next_link=self.config.next_link,
            resolve=lambda link: self._storable(link, at),
        )
        if lines:
            within = with_digest(at, page) if self._cursor is None and self.config.next_link is None else at
            within = replace(within, etag=None, modified=None)
            await self._emit(out, lines, reading, within, behind)
        reading.at = behind
        return has_more

    async def _check_progress(self, page: Page, reading: _Reading) -> None:
        """Refuse a server that does not heed the cursor: it would give the same records for ever.

        Only records with the newest value may come again, and those are left out of a page already.
        """
        cursor = self._cursor
        if cursor is None or cursor.from_record is None or self.config.next_link is not None or not page.records:
            return
        digests = await self.context.in_thread(lambda: frozenset(map(digest_of, page.records)))
        if digests & reading.previous:
            raise ConfigError(
                f"{page.reply.address}: gives records again that it gave before, although {cursor.param} is "
                f"{reading.at.cursor}; check cursor.param, and that records come in the order of {cursor.from_record!r}"
            )
        reading.previous = digests

    def _tell_of_stall(self, page: Page, reading: _Reading) -> None:
        """Say that there may be records which are never reached, as many have the newest value as a page holds.

        A server that answers from that value on gives the same page for ever then. That looks like the end, and
        may be it: only the server knows how long its pages can be.
        """
        count, value = page.known + len(page.records), reading.at.newest
        if not page.records and 1 < reading.page_records_max <= page.known and reading.stalled_at != value:
            log.warning(
                "a whole page of records that were taken before: if the server has more of the same value, they are "
                "never reached; ask for longer pages, or use a field that tells records apart",
                source=self.context.stage,
                field=self.config.cursor.from_record,
                value=value,
                records=count,
            )
            reading.stalled_at = value
        reading.page_records_max = max(reading.page_records_max, count)

    def _storable(self, link: str, at: Bookmark) -> str:
        """A link in an answer to `at` as a whole address without what is secret."""
        assert self._client is not None, "opened by run and check"
        return self._client.without(self._client.link(at.link or self.config.url, link), self._params)

    async def _emit(
        self, out: Outlet, lines: Sequence[bytes], reading: _Reading, within: Bookmark, behind: Bookmark
    ) -> None:
        """Send records, in batches that end wherever a sink is; at a bad one, stop behind those before it.

        within and behind: the bookmarks to store while there are more records of the page, and after its last.
        """
        end = reading.offset + len(lines)
        pieces, error = await self._reader.rows(self._partition, lines, first=reading.offset, ends=reading.cuts)
        for rows in pieces:
            bookmark = behind if rows.end == end else within
            await out.send(
                rows.data,
                (Span(self._partition, rows.first, rows.end),),
                rows.tally,
                raw_bytes=rows.raw_bytes,
                states={self.context.stage: bookmark.encoded(rows.schema)},
                place_of=rows.place_of,
            )
            reading.offset, reading.at = rows.end, bookmark
        if error is not None:
            raise error

    def decode(self, raw: bytes, state: str | None) -> pa.RecordBatch:
        """See `Source.decode`. Columns have the types of the last run, if that is known."""
        if self._push is not None:
            return decoded_alone(raw, state)
        return decoded_alone(raw, None if state is None else decoded(state, where=f"source {self.context.stage!r}")[1])


async def _rest(seconds: float, drain: trio.Event) -> None:
    """Wait, unless the run is to end."""
    with trio.move_on_after(seconds):
        await drain.wait()


async def _unless(drain: trio.Event, work: Callable[[], Awaitable[T]]) -> T | None:
    """What `work` returns; None if it was given up because the run is to end."""
    results: list[T] = []
    with unwrapped():
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                await drain.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            results.append(await work())
            nursery.cancel_scope.cancel()
    return results[0] if results else None

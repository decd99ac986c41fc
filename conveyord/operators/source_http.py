"""Source `http`: records of JSON answers, asked for page by page, at the end of the pages again and again.

Its offsets count records. With each batch it stores a bookmark (see engine/http/paging.py), so that a restart asks
for the page at which the sinks are and goes on within it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TypeVar

import pyarrow as pa
import structlog
import trio
from pydantic import Field

from conveyord.core.errors import ConfigError, RecordError, Refused
from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.units import Seconds
from conveyord.engine.contracts import OperatorConfig, OperatorContext, Outlet, Rejected, Source
from conveyord.engine.decoding import BadRecord
from conveyord.engine.failures import unwrapped
from conveyord.engine.http.answers import Busy, Declined, check
from conveyord.engine.http.options import HttpConfig, http_mistakes, open_client, revealed
from conveyord.engine.http.paging import Bookmark, CursorConfig, Page, after, decoded, digest_of, page_of, with_digest
from conveyord.engine.json import JsonLinesDecoder
from conveyord.engine.origin import Place, RecordRef
from conveyord.engine.provenance import with_provenance
from conveyord.engine.schema_memory import remembered_schema, schema_to_remember
from conveyord.engine.secrets import Secret
from conveyord.runtime.http_client import HttpClient, Reply, shown

log = structlog.get_logger(__name__)

T = TypeVar("T")

NOT_MODIFIED = 304
EMPTY_PAGES_MAX = 1_000  # in a row: a server that goes on like that is asked again after `every`
CLEANUP_SECONDS = 5.0  # to say goodbye on open connections
ANY = OperatorConfig()  # JSON is typed alike under all options, so that a schema outlives a change of them


class HttpSourceConfig(HttpConfig):
    """Asks an address for JSON records, and again for new ones.

    Each record is taken once, and a restart goes on where the sinks are, as long as the server gives the same page for
    the same request, or one that has only grown at its end. Without `cursor` and `next_link` there is no way to ask
    for new records: then every answer that differs from the one before is taken whole. Types are taken from the first
    page, new fields are added as they come. 408, 425, 429, 5xx and failed connections are tried again.
    """

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


@dataclass(slots=True)
class _Reading:
    """Where the source has got to. offset: records taken so far; the page of `at` begins at `at.start`.

    previous: digests of the records of the page before, where the cursor comes from a record.
    """

    at: Bookmark
    offset: int
    cuts: tuple[int, ...]
    previous: frozenset[str] = frozenset()


class HttpSource(Source):
    """See docs/operators.md."""

    Config = HttpSourceConfig

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self._client: HttpClient | None = None
        self._params: dict[str, str] = {}
        self._decoder = JsonLinesDecoder()
        self._schema: pa.Schema | None = None

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mapping[str, str]:
        """See `Operator.mistakes`."""
        assert isinstance(config, HttpSourceConfig)
        found = http_mistakes(config)
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
        """See `Operator.check`: the first page is there and can be taken apart."""
        await self._open()
        at = self._begin((Positions(),)).at
        page_of(self._answer(await self._asked(at)), self.config.records, at)

    async def close(self) -> None:
        """See `Operator.close`."""
        if self._client is not None:
            with trio.move_on_after(CLEANUP_SECONDS, shield=True):
                await self._client.aclose()

    async def run(self, out: Outlet, *, fences: tuple[Positions, ...], drain: trio.Event) -> None:
        """See `Source.run`."""
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
        self._schema = remembered_schema(ANY, [schema]) or self._schema
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
        first, letters = reading.offset, self.context.dead_letters
        rows = await self.context.in_thread(self._decoded, lines)
        end, error = len(lines), None
        if rows.bad and letters is None and not self.context.skip_bad:
            end = min(rows.bad)
            error = self._error(first + end, rows.bad[end])
        elif rows.bad:
            await self._set_aside(rows.bad, lines, first)
        data = rows.data
        if self.context.provenance:
            offsets = pa.array([first + number for number in rows.good], pa.int64())
            data = with_provenance(data, self._partition, offsets)
        cuts = sorted({cut - first for cut in reading.cuts if 0 < cut - first < end} | {end})
        for start, stop in pairwise([0, *(cut for cut in cuts if cut)]):
            good = [row for row, number in enumerate(rows.good) if start <= number < stop]
            bad = stop - start - len(good)
            dead, skipped = (bad, 0) if letters is not None else (0, bad)
            bookmark = behind if stop == len(lines) else within
            await out.send(
                data.slice(good[0] if good else 0, len(good)),
                (Span(self._partition, first + start, first + stop),),
                Tally(read=stop - start, skipped=skipped, dead=dead),
                raw_bytes=sum(map(len, lines[start:stop])),
                states={self.context.stage: bookmark.encoded(rows.schema)},
                place_of=None if letters is None else self._places(lines, [rows.good[row] for row in good], first),
            )
            reading.offset, reading.at = first + stop, bookmark
        if error is not None:
            raise error

    def _decoded(self, lines: Sequence[bytes]) -> _Rows:
        """Blocking."""
        block = b"".join(line + b"\n" for line in lines)
        if self._schema is None:
            self._schema = self._decoder.infer(block, None)
        found = self._decoder.decode(block, self._schema, None)
        self._schema = found.schema
        starts = accumulate((len(line) + 1 for line in lines[:-1]), initial=0)
        number_at = {start: number for number, start in enumerate(starts)}
        bad = {number_at[record.offset]: record for record in found.bad}
        good = [number for number in range(len(lines)) if number not in bad]
        return _Rows(found.data, good, bad, schema_to_remember(ANY, found.schema))

    async def _set_aside(self, bad: Mapping[int, BadRecord], lines: Sequence[bytes], first: int) -> None:
        errors = {number: self._error(first + number, record) for number, record in bad.items()}
        if self.context.dead_letters is None:
            for error in errors.values():
                log.warning("passing over a bad record", place=error.place, code=error.code, reason=error.reason)
            return
        place_of = self._places(lines, list(errors), first)
        await self.context.dead_letters.put(
            [Rejected(place_of(index), error) for index, error in enumerate(errors.values())]
        )

    def _places(self, lines: Sequence[bytes], numbers: Sequence[int], first: int) -> Callable[[int], Place]:
        """Which record each of so many rows is. numbers: by row, that of its line; the first line is record `first`."""
        return lambda row: Place(RecordRef(self._partition, first + numbers[row], lines[numbers[row]]))

    def _error(self, offset: int, bad: BadRecord) -> RecordError:
        return RecordError(f"{self._partition.name} (record {offset})", bad.reason, code=bad.code)

    def decode(self, raw: bytes, state: str | None) -> pa.RecordBatch:
        """See `Source.decode`. Columns have the types of the last run, if that is known."""
        known = None if state is None else decoded(state, where=f"source {self.context.stage!r}")[1]
        line = raw.replace(b"\r", b" ").replace(b"\n", b" ")
        schema = remembered_schema(ANY, [known]) or self._decoder.infer(line, None)
        found = self._decoder.decode(line, schema, None)
        if found.bad:
            raise RecordError("the record", found.bad[0].reason, code=found.bad[0].code)
        return found.data


@dataclass(frozen=True, slots=True)
class _Rows:
    """Records decoded: the good ones as rows, the number of each row's record, and the bad ones by number."""

    data: pa.RecordBatch
    good: Sequence[int]
    bad: Mapping[int, BadRecord]
    schema: str


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

"""An `http` source that listens: what is sent to it is in its journal before it is answered, and read from there.

So it is a source like others: records at offsets that can be read again, from where the sinks are. Sinks that are slow
or down let the journal grow, up to its limit; then senders are told to come again. The journal is read from its
floor on, below which every sink has everything; what one of them has above it, its gate drops.
"""

from __future__ import annotations

import errno
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import structlog
import trio

from conveyord.core.errors import ConfigError, Refused, Retryable
from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.core.hosts import is_loopback
from conveyord.engine.contracts import OperatorContext, Outlet
from conveyord.engine.http.intake import Intake
from conveyord.engine.http.options import HttpConfig
from conveyord.engine.http.push_options import PushConfig, tls_context
from conveyord.engine.http.reception import Reception
from conveyord.engine.http.records import RecordReader
from conveyord.runtime.http_server import HttpServer, Limits, close_all, listen
from conveyord.runtime.nurseries import unwrapped
from conveyord.storage.push_journal import PushJournal, Retention, journal_path, take_over

log = structlog.get_logger(__name__)

DRAIN_SECONDS = 30.0  # for requests that have begun when a run is to end; and as long for what the journal still holds
_TOKEN = re.compile(r"[\x21-\x7e]+")


class PushSource:
    """Listens at the address of `config`. Has the methods of a `Source`, for an operator to pass on."""

    def __init__(self, config: HttpConfig, push: PushConfig, context: OperatorContext) -> None:
        self._config = config
        self._push = push
        self._context = context
        self._address = urlsplit(config.url)
        self._reader = RecordReader(context)
        self._intake: Intake | None = None
        self._at: int | None = None  # the next record to be sent, once this run has begun to send

    async def check(self) -> None:
        """See `Operator.check`: the token and the certificate are there, and the address is free."""
        await self._context.in_thread(self._token)
        await self._context.in_thread(tls_context, self._push)
        async with self._listening():
            pass

    async def close(self) -> None:
        """See `Operator.close`."""
        if self._intake is not None:
            await self._intake.close()

    async def run(self, out: Outlet, *, fences: tuple[Positions, ...], drain: trio.Event) -> None:
        """See `Source.run`. Ends when `drain` is set, and not before."""
        out.expects(None)
        token = await self._context.in_thread(self._token)
        tls = await self._context.in_thread(tls_context, self._push)
        async with self._listening() as listeners:
            intake = await self._opened(fences)
            out.on_settled(intake.settled)
            reception = Reception(self._config, self._push, self._context, intake, token=token)
            shown = None if tls is None else lambda: tls
            server = HttpServer(reception.admit, reception.respond, self._limits(), tls=shown)
            self._announce(listeners[0].socket.getsockname()[1], is_clear=tls is None)
            over = trio.Event()
            with unwrapped():
                async with trio.open_nursery() as beside:
                    beside.start_soon(intake.work)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._feed, out, intake, fences, over)
                        await _served(server, listeners, drain)
                        over.set()
                        intake.nudge()
                    beside.cancel_scope.cancel()

    def _token(self) -> str | None:
        """What senders must give. Blocking. Raises ConfigError if it cannot be had, or cannot be given."""
        if self._push.token is None:
            return None
        token = self._push.token.reveal()
        if _TOKEN.fullmatch(token) is None:
            raise ConfigError("push.token is empty, or holds a space or another character that no header may have")
        return token

    def _limits(self) -> Limits:
        return Limits(
            body_bytes_max=self._config.max_body,
            held_bytes_max=self._push.memory,
            connections_max=self._push.connections,
            head_seconds=self._config.connect_timeout,
            piece_seconds=self._config.read_timeout,
            request_seconds=self._config.timeout,
        )

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[list[trio.SocketListener]]:
        """The listeners. Raises Retryable if the address is in use, ConfigError if it cannot be had."""
        host, port = self._address.hostname or "", self._address.port
        if port is None:
            port = 443 if self._address.scheme == "https" else 80
        try:
            listeners = await listen(host, port)
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno == errno.EADDRINUSE:
                raise Retryable(
                    f"{self._config.url}: {reason}; stop what listens there, or take another port"
                ) from error
            raise ConfigError(f"{self._config.url}: cannot listen there ({reason}); check host and port") from error
        try:
            yield listeners
        finally:
            close_all(listeners)

    def _announce(self, port: int, *, is_clear: bool) -> None:
        host = self._address.hostname or ""
        shown = f"[{host}]" if ":" in host else host
        address = f"{self._address.scheme}://{shown}:{port}{self._address.path or '/'}"
        log.info("listening", source=self._context.stage, address=address)
        if is_clear and not is_loopback(host):
            log.warning("whoever sees the network sees records and token: the address is not https", address=address)

    async def _opened(self, fences: tuple[Positions, ...]) -> Intake:
        """The journal, once it is known to be the one that the sinks know."""
        if self._intake is None:
            stage = self._context.names.get(self._context.pipeline, self._context.stage)
            path = journal_path(self._context.data_dir, pipeline=self._context.pipeline, stage=stage)
            if self._context.adopt_from is not None:
                former = journal_path(self._context.data_dir, pipeline=self._context.adopt_from, stage=stage)
                if await self._context.in_thread(take_over, path, former):
                    log.info("the journal was taken over", source=self._context.stage, former=self._context.adopt_from)
            journal = await self._context.in_thread(PushJournal, path)
            retention = Retention(seconds=self._push.keep_keys, keys_max=self._push.keys_max)
            partition = Partition(self._context.stage, f"push-{journal.identity}")
            self._intake = Intake(journal, partition, retention, bytes_max=self._push.journal)
            self._recognise(journal, partition, fences)
            self._reader.recall([fence.states.get(self._context.stage) for fence in fences])
        return self._intake

    def _recognise(self, journal: PushJournal, partition: Partition, fences: tuple[Positions, ...]) -> None:
        """Refuse a journal that does not go with what the sinks hold."""
        source = f"source {self._context.stage!r}"
        held = [fence[partition].offset for fence in fences if partition in fence]
        if not held and any(fence.of_source(self._context.stage) for fence in fences):
            what = f"{source}: a sink holds records of another journal than the one below {self._context.data_dir}"
            if self._push.on_lost_journal == "fail":
                raise Refused(
                    f"{what}; give the data directory that it was made in, or the pipeline's former name with --adopt, "
                    "or set push.on_lost_journal to restart: what was accepted there and is in no sink is lost then, "
                    "and no key is known"
                )
            log.warning("beginning a new journal", reason=what)
        if held and min(held) < journal.floor:
            raise Refused(
                f"{source}: a sink holds records up to {min(held)}, but those below {journal.floor} were deleted from "
                "the journal once every sink had them; was a table set back? Restore it, or rename the pipeline to "
                "start anew"
            )
        if held and max(held) > journal.next:
            raise Refused(
                f"{source}: a sink holds records up to {max(held)}, but the journal ends at {journal.next}; was it "
                "restored from a backup? Restore the newest, or move it away and set push.on_lost_journal to restart"
            )

    async def _feed(self, out: Outlet, intake: Intake, fences: tuple[Positions, ...], over: trio.Event) -> None:
        """Send what the journal holds, and what comes, until `over` is set and nothing is left, or too much.

        A batch is made of whole requests, and so is every position; hence a sink is always between two of them.
        """
        cuts = [fence[intake.partition].offset for fence in fences if intake.partition in fence]
        wanted = self._push.commit_within if self._push.respond == "committed" else None
        at = intake.journal.floor if self._at is None else self._at
        deadline = float("inf")
        while True:
            if over.is_set():
                deadline = min(deadline, trio.current_time() + DRAIN_SECONDS)
            stored = await intake.read(at)
            if over.is_set() and (not stored or trio.current_time() >= deadline):
                return
            if not stored:
                await intake.wait_beyond(at, over)
                continue
            lines = [line for request in stored for line in request.body.split(b"\n")]
            pieces, error = await self._reader.rows(intake.partition, lines, first=at, ends=cuts)
            for rows in pieces:
                await out.send(
                    rows.data,
                    (Span(intake.partition, rows.first, rows.end),),
                    rows.tally,
                    raw_bytes=rows.raw_bytes,
                    states={self._context.stage: rows.schema},
                    place_of=rows.place_of,
                    within_seconds=wanted,
                )
                self._at = at = rows.end
            if error is not None:
                raise error


async def _served(server: HttpServer, listeners: list[trio.SocketListener], drain: trio.Event) -> None:
    """Serve until `drain` is set and the requests that had begun are answered, or take too long."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def limit() -> None:
                await drain.wait()
                scope.deadline = trio.current_time() + DRAIN_SECONDS

            nursery.start_soon(limit)
            await server.serve(listeners, drain=drain)
            nursery.cancel_scope.cancel()

"""An HTTP server that keeps limits: of time, of size, of memory and of connections. h11 does the protocol.

What holds for every request, so that no handler can forget it:

- The head must come within a deadline, and so must the whole request, and each of its pieces: a client that dribbles
  is cut off. So is one that reads no answer.
- A head has `HEAD_BYTES_MAX` at most, a body `body_bytes_max`, and all bodies that are held together
  have a budget: beyond it a request is told to come again.
- A handler may refuse a request by its head; then its body is not read, and `100 Continue` is not said.
- At most so many connections are served at a time. Others wait to be accepted.
- What fails is answered with `application/problem+json` (RFC 9457) that has a `code`, and the path as `instance`.
"""

from __future__ import annotations

import errno
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from typing import Any, NamedTuple

import h11
import structlog
import trio

from conveyord.runtime.http_faults import fault_of, head_too_large

log = structlog.get_logger(__name__)

HEAD_BYTES_MAX = 32 * 1024  # a request line and headers; proxies allow 8 to 16 KiB
RECEIVE_BYTES = 64 * 1024
LINGER_BYTES_MAX = 1024 * 1024  # of a body that nobody wants, read on so that the answer is not lost in a reset
LINGER_SECONDS = 2.0
BUSY_SECONDS = 0.1  # before accepting again, when the process has no descriptors left
NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
RETRY_AFTER_SECONDS = 1
BODY_METHODS = frozenset({"PATCH", "POST", "PUT"})  # who sends these must say where the body ends, or is told 411
NO_PATH = "*"  # as `instance` of what is refused before a path could be read


@dataclass(frozen=True, slots=True)
class Limits:
    """head_seconds: for a handshake, and for a head from its first byte. piece_seconds: between two pieces, and for
    which a connection may be idle. request_seconds: from the first byte of a request to its last. are_lengths_needed:
    whether a method of `BODY_METHODS` without a body must say so, or is told 411.
    """

    body_bytes_max: int
    held_bytes_max: int
    connections_max: int
    head_seconds: float
    piece_seconds: float
    request_seconds: float
    are_lengths_needed: bool = True


@dataclass(frozen=True, slots=True)
class Head:
    """A request without its body. headers: by lower-case name, several of one name joined by commas.

    peer: the IP address that it came from; empty if that cannot be told. is_encrypted: by TLS, here.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    peer: str = ""
    is_encrypted: bool = False

    @property
    def path(self) -> str:
        """The target without its query, and without the address that a request by way of a proxy has before it."""
        scheme, _, address = self.target.partition("://")
        target = "/" + address.partition("/")[2] if scheme in {"http", "https"} else self.target
        return target.partition("?")[0]

    @property
    def query(self) -> str:
        """What the target says behind its path; empty if it says nothing."""
        return self.target.partition("?")[2]

    @property
    def announces_body(self) -> bool:
        """Whether a body follows (RFC 9112, 6.3)."""
        return bool({"content-length", "transfer-encoding"} & self.headers.keys())


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server says."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Declined(Exception):
    """A request that is answered at once. Caught by the server."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer

    def answer_to(self, _path: str) -> Answer:
        """What the server says to a request for that path."""
        return self.answer


class Problem(Declined):
    """A request that is answered with a problem (RFC 9457)."""

    def __init__(self, status: int, members: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        super().__init__(Answer(status, json.dumps(members).encode(), headers))
        self._members = members

    def answer_to(self, path: str) -> Answer:
        """The problem, with the path as its `instance`."""
        return replace(self.answer, body=json.dumps({**self._members, "instance": path}).encode())


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, Any] | None = None,
) -> Problem:
    """A problem to raise. members: further ones of the JSON object."""
    told = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "code": code, "detail": detail}
    return Problem(status, {**told, **(members or {})}, {"content-type": "application/problem+json", **(headers or {})})


class Holdings:
    """Bytes of requests that are in memory together. For one event loop."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.bytes = 0

    def take(self, size: int) -> None:
        """Count `size` bytes. Raises Declined (429) if there is no room for them."""
        if self.bytes + size > self._bytes_max:
            raise problem(
                429,
                "TOO_MANY_REQUESTS",
                "the requests that are being read take all the memory that they may; send again later",
                headers={"retry-after": str(RETRY_AFTER_SECONDS)},
            )
        self.bytes += size


@dataclass(slots=True)
class Held:
    """The body of one request, and what the request takes of the holdings until `release`.

    left: returns once the client has closed its side, if it does; for who answers after a long time. One at a time.
    """

    holdings: Holdings
    left: Callable[[], Awaitable[None]]
    body: bytes = b""
    size: int = 0

    def add(self, size: int) -> None:
        """Take more. Raises Declined (429) if there is no room."""
        self.holdings.take(size)
        self.size += size

    def release(self) -> None:
        """Let go of the body, and give everything back."""
        self.holdings.bytes -= self.size
        self.body, self.size = b"", 0


class _Caller(NamedTuple):
    """See `Head`."""

    peer: str
    is_encrypted: bool


Admit = Callable[[Head], None]
"""Looks at a head, and raises Declined for what is not to be read."""
Respond = Callable[[Head, Held], Awaitable[Answer]]
"""Answers a whole request. May raise Declined. Releases what is held once it has no more use for the body."""


class HttpServer:
    """Serves one handler on one or several listeners. One use."""

    def __init__(
        self, admit: Admit, respond: Respond, limits: Limits, *, tls: Callable[[], ssl.SSLContext] | None = None
    ) -> None:
        """tls: asked for each connection, so that a renewed certificate is shown; must not block for long."""
        self._admit = admit
        self._respond = respond
        self._limits = limits
        self._tls = tls
        self._holdings = Holdings(limits.held_bytes_max)
        self._slots = trio.CapacityLimiter(limits.connections_max)
        self._idle: set[trio.CancelScope] = set()
        self._is_draining = False

    async def serve(self, listeners: list[trio.SocketListener], *, drain: trio.Event) -> None:
        """Serve until `drain` is set; then accept no more, finish the requests that have begun, and return.

        Closes the listeners. What is under way when this is cancelled gets no answer.
        """
        async with trio.open_nursery() as connections:
            try:
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        accepting.start_soon(self._accept, listener, connections)
                    await drain.wait()
                    accepting.cancel_scope.cancel()
            finally:
                close_all(listeners)
            self._is_draining = True
            for scope in self._idle:
                scope.cancel()

    async def _accept(self, listener: trio.SocketListener, connections: trio.Nursery) -> None:
        while True:
            token = object()
            await self._slots.acquire_on_behalf_of(token)
            try:
                stream = await self._next(listener)
            except BaseException:
                self._slots.release_on_behalf_of(token)
                raise
            connections.start_soon(self._connection, stream, token)

    async def _next(self, listener: trio.SocketListener) -> trio.SocketStream:
        while True:
            try:
                return await listener.accept()
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                log.warning("no connection can be accepted", reason=error.strerror)
                await trio.sleep(BUSY_SECONDS)

    async def _connection(self, socket: trio.SocketStream, token: object) -> None:
        stream: trio.abc.Stream = socket
        try:
            if self._tls is not None:
                stream = encrypted = trio.SSLStream(socket, self._tls(), server_side=True, https_compatible=True)
                with trio.fail_after(self._limits.head_seconds):
                    await encrypted.do_handshake()
            await self.converse(stream, peer=_peer_of(socket), is_encrypted=self._tls is not None)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, ssl.SSLError):
            pass  # the client went away, or dawdles: there is nobody to tell
        finally:
            self._slots.release_on_behalf_of(token)
            await trio.aclose_forcefully(stream)

    @property
    def held_bytes(self) -> int:
        """What the requests that are under way hold together."""
        return self._holdings.bytes

    async def converse(self, stream: trio.abc.Stream, *, peer: str = "", is_encrypted: bool = False) -> None:
        """Answer the requests of one connection, one after the other, and close it. peer, is_encrypted: see `Head`.

        Raises what trio does if the other side is gone or dawdles.
        """
        async with stream:
            await self._converse(stream, _Caller(peer, is_encrypted))

    async def _converse(self, stream: trio.abc.Stream, caller: _Caller) -> None:
        wire = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        while not self._is_draining:
            head: Head | None = None
            try:
                deadline, head = await self._head(wire, stream, caller)
                if head is None:
                    return
                answer = await self._answered(wire, stream, head, deadline)
            except Declined as error:
                answer = error.answer_to(NO_PATH if head is None else head.path)
            except h11.RemoteProtocolError as error:
                fault = fault_of(error, head_bytes_max=HEAD_BYTES_MAX)
                answer = problem(*fault).answer_to(NO_PATH if head is None else head.path)
            await self._say(wire, stream, answer, head)
            if wire.our_state is not h11.DONE or wire.their_state is not h11.DONE:
                await self._linger(stream)
                return
            wire.start_next_cycle()

    async def _head(self, wire: h11.Connection, stream: trio.abc.Stream, caller: _Caller) -> tuple[float, Head | None]:
        """The next request's head, and until when the request must be whole. None if there is none any more."""
        began = trio.current_time()
        event = wire.next_event()
        if event is h11.NEED_DATA and not wire.trailing_data[0]:
            with trio.move_on_after(self._limits.piece_seconds) as scope:
                self._idle.add(scope)
                try:
                    data = await stream.receive_some(RECEIVE_BYTES)
                finally:
                    self._idle.discard(scope)
            if scope.cancelled_caught or not data:
                return 0.0, None
            began = trio.current_time()
            wire.receive_data(bytes(data))
            event = wire.next_event()
        with trio.move_on_after(self._limits.head_seconds) as scope:
            while event is h11.NEED_DATA:
                wire.receive_data(bytes(await stream.receive_some(RECEIVE_BYTES)))
                event = wire.next_event()
        if scope.cancelled_caught:
            seconds = self._limits.head_seconds
            raise problem(408, "TOO_SLOW", f"the head of the request did not come within {seconds:g} s")
        if not isinstance(event, h11.Request):
            return 0.0, None
        if _head_bytes(event) > HEAD_BYTES_MAX:
            raise problem(*head_too_large(HEAD_BYTES_MAX))
        headers: dict[str, str] = {}
        for raw_name, raw_value in event.headers:
            name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        head = Head(event.method.decode("ascii"), event.target.decode("ascii", "replace"), headers, *caller)
        if self._is_all(head):
            wire.next_event()  # its end; read here, so that the connection goes on also if the head alone is answered
        return began + self._limits.request_seconds, head

    def _is_all(self, head: Head) -> bool:
        """Whether no body follows: none is announced, nor would one be needed."""
        return not head.announces_body and not (self._limits.are_lengths_needed and head.method in BODY_METHODS)

    async def _answered(self, wire: h11.Connection, stream: trio.abc.Stream, head: Head, deadline: float) -> Answer:
        self._admit(head)
        held = Held(self._holdings, partial(_left, wire, stream))
        try:
            held.body = await self._body(wire, stream, head, held, deadline)
            return await self._respond(head, held)
        finally:
            held.release()

    async def _body(
        self, wire: h11.Connection, stream: trio.abc.Stream, head: Head, held: Held, deadline: float
    ) -> bytes:
        if self._is_all(head):
            return b""
        limit, length = self._limits.body_bytes_max, head.headers.get("content-length")
        if length is None and "transfer-encoding" not in head.headers:
            raise problem(411, "LENGTH_REQUIRED", "the request has neither Content-Length nor a chunked body")
        if length is not None and int(length) > limit:
            raise _too_large(limit)
        if wire.they_are_waiting_for_100_continue:
            go_on = wire.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
            await self._send(stream, go_on)
        parts: list[bytes] = []
        while not isinstance(event := wire.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                wire.receive_data(await self._received(stream, deadline))
            elif isinstance(event, h11.Data):
                held.add(len(event.data))
                if held.size > limit:
                    raise _too_large(limit)
                parts.append(bytes(event.data))
            else:
                raise trio.BrokenResourceError
        return b"".join(parts)

    async def _received(self, stream: trio.abc.Stream, deadline: float) -> bytes:
        with trio.move_on_at(min(deadline, trio.current_time() + self._limits.piece_seconds)):
            return bytes(await stream.receive_some(RECEIVE_BYTES))
        raise problem(408, "TOO_SLOW", f"the request was not whole within {self._limits.request_seconds:g} s")

    async def _say(self, wire: h11.Connection, stream: trio.abc.Stream, answer: Answer, head: Head | None) -> None:
        if wire.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return
        headers = {"content-length": str(len(answer.body)), "date": formatdate(usegmt=True), **answer.headers}
        if self._is_draining or wire.their_state is not h11.DONE:
            headers["connection"] = "close"
        reason = HTTPStatus(answer.status).phrase.encode()
        data = wire.send(h11.Response(status_code=answer.status, headers=list(headers.items()), reason=reason)) or b""
        if head is None or head.method != "HEAD":
            data += wire.send(h11.Data(data=answer.body)) or b""
        data += wire.send(h11.EndOfMessage()) or b""
        await self._send(stream, data)

    async def _send(self, stream: trio.abc.Stream, data: bytes | None) -> None:
        with trio.fail_after(self._limits.piece_seconds):
            await stream.send_all(data or b"")

    async def _linger(self, stream: trio.abc.Stream) -> None:
        """Read on for a moment: closing a socket with unread bytes may reset it before the answer has arrived."""
        if isinstance(stream, trio.abc.HalfCloseableStream):
            await stream.send_eof()
        with trio.move_on_after(LINGER_SECONDS):
            left = LINGER_BYTES_MAX
            while left > 0 and (data := await stream.receive_some(RECEIVE_BYTES)):
                left -= len(data)


def _peer_of(stream: trio.SocketStream) -> str:
    try:
        return str(stream.socket.getpeername()[0])
    except OSError:  # it is gone already
        return ""


def _head_bytes(request: h11.Request) -> int:
    """Of its lines, as they came but for white space that means nothing."""
    fields = sum(len(name) + len(value) + len(": \r\n") for name, value in request.headers)
    return len(request.method) + len(request.target) + len("  HTTP/1.1\r\n") + fields + len("\r\n")


async def _left(wire: h11.Connection, stream: trio.abc.Stream) -> None:
    """See `Held`. A client that sends its next request already is there; whether it goes after that is not told."""
    try:
        data = await stream.receive_some(RECEIVE_BYTES)
    except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError):
        return
    if data:
        wire.receive_data(bytes(data))
        await trio.sleep_forever()


def _too_large(limit: int) -> Declined:
    return problem(413, "TOO_LARGE", f"the body has more than {limit} bytes; send less at a time")


async def listen(host: str, port: int) -> list[trio.SocketListener]:
    """Listen on an address. port: 0 for a free one, then on one address alone. Raises OSError if that cannot be."""
    listeners = await trio.open_tcp_listeners(port, host=host)
    if port == 0:
        close_all(listeners[1:])
        del listeners[1:]
    return listeners


def close_all(listeners: Sequence[trio.SocketListener]) -> None:
    """Close listeners, closed ones too. Does not wait, so that no cancellation leaves one open."""
    for listener in listeners:
        listener.socket.close()

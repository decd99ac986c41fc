"""An HTTP client that keeps limits: of time, of size (inflated too), of redirects, and of who gets credentials.

What holds for every request, so that no caller can forget it:

- Only http and https. Certificates are verified. Proxies and other settings of the environment do not count.
- Connecting, each wait for bytes, and the whole request have deadlines.
- A body is read up to a limit, counted on the wire and after inflating, and never beyond it into memory.
- Redirects are followed at most so often, never from https to http, and a request with a body only where
  method and body stay the same (307, 308).
- Credentials (the configured headers) go to the origin of the configured address alone. Cookies are not kept.
- An error names the address without its query, which may hold a key, and no header.
"""

from __future__ import annotations

import logging
import ssl
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import trio

from conveyord import __version__
from conveyord.core.errors import ConfigError, ConveyordError, Retryable
from conveyord.core.units import format_bytes

if TYPE_CHECKING:
    import httpx

REDIRECTS_MAX = 3  # http to https, a moved path, a signed address; more is a loop
EXCERPT_CHARS_MAX = 200  # of an answer that is quoted in a message
EXCERPT_BYTES_MAX = 64 * 1024  # looked at for it: far more than is quoted, lest a secret is cut, and half of it shown
WRITE_BYTES = 64 * 1024  # a piece of a request
REDIRECTS = frozenset({301, 302, 303, 307, 308})
SAME_METHOD = frozenset({307, 308})
GZIP = frozenset({"gzip", "x-gzip"})
PLAIN = frozenset({"", "identity"})
_GZIP_WINDOW = 31  # zlib's way of saying: the largest window, in a gzip frame


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """What a client allows itself. `body_bytes_max`: of one answer, also once it is inflated."""

    body_bytes_max: int
    connect_seconds: float
    read_seconds: float
    """Between two pieces of an answer."""
    total_seconds: float
    """One request with all its redirects and its answer's last byte."""
    connections_max: int = 1


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. headers: by lower-case name. address: where it came from, as it may be shown."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    address: str


def shown(url: str) -> str:
    """`url` as it may be shown: without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        return "an address that is none"
    host = parts.hostname or ""
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}{parts.path}"


class HttpClient:
    """Requests to one address and those it leads to. To be closed with `aclose`."""

    def __init__(self, home: str, *, limits: HttpLimits, credentials: Mapping[str, str], trust: ssl.SSLContext) -> None:
        """home: the configured address, whose origin gets `credentials`. trust: whose certificates are believed.

        Raises ConfigError for an address that cannot be asked.
        """
        import httpx

        logging.getLogger("httpcore").setLevel(logging.INFO)  # below that it logs headers
        self._limits = limits
        self._credentials = dict(credentials)
        self._home = _origin(_address(home))
        # The transport alone: the client around it keeps cookies, logs whole addresses, and looks into redirects.
        self._transport = httpx.AsyncHTTPTransport(
            verify=trust, trust_env=False, limits=httpx.Limits(max_connections=limits.connections_max)
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def request(
        self, method: str, url: str, *, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """The final answer, whatever its status. headers: beside the configured ones, and no secrets.

        Raises Retryable if there is no answer in time or its body is damaged, ConfigError if a limit or a rule
        forbids to go on.
        """
        with trio.move_on_after(self._limits.total_seconds):
            return await self._followed(method, url, content, headers or {})
        raise Retryable(
            f"{shown(url)}: no whole answer within {self._limits.total_seconds:g} s; raise timeout, or ask for less"
        )

    def excerpt(self, reply: Reply) -> str:
        """The beginning of an answer, as it may be shown."""
        return self.showable(reply.body[:EXCERPT_BYTES_MAX].decode("utf-8", "replace"))

    def showable(self, text: str) -> str:
        """The beginning of what a server said, for a message: on one line, without credentials that it echoes."""
        for secret in sorted(self._credentials.values(), key=len, reverse=True):
            for part in (secret, secret.partition(" ")[2]):  # also without `Bearer` before it
                text = text.replace(part, "***") if part else text
        text = text[: 8 * EXCERPT_CHARS_MAX]
        text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
        return text if len(text) <= EXCERPT_CHARS_MAX else f"{text[:EXCERPT_CHARS_MAX]}..."

    async def _followed(self, method: str, url: str, content: bytes | None, headers: Mapping[str, str]) -> Reply:
        at = _address(url)
        for _ in range(REDIRECTS_MAX + 1):
            reply = await self._once(method, at, content, headers)
            location = reply.headers.get("location")
            if reply.status not in REDIRECTS or location is None:
                return reply
            if content is not None and reply.status not in SAME_METHOD:
                raise ConfigError(
                    f"{reply.address}: answers {reply.status}, a redirect that would drop the rows; "
                    f"write the new address, {shown(location)}, as url"
                )
            at = self.linked(str(at), location)
        raise ConfigError(f"{shown(url)}: more than {REDIRECTS_MAX} redirects; write the final address as url")

    def address(
        self,
        url: str,
        *,
        link: str | None = None,
        query: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
    ) -> str:
        """`link`, if there is one, or else `url`, with `query` added, and with `secrets` if it is the home's origin."""
        at = _address(url if link is None else link)
        own = (secrets or {}) if _origin(at) == self._home else {}
        return str(at.copy_merge_params({**(query or {}), **own}))

    def link(self, url: str, link: str) -> str:
        """`linked`, as text."""
        return str(self.linked(url, link))

    def without(self, url: str, names: Iterable[str]) -> str:
        """`url` without the query parameters `names`, so that it may be stored."""
        at = _address(url)
        for name in names:
            at = at.copy_remove_param(name) if name in at.params else at
        return str(at)

    def linked(self, url: str, link: str) -> httpx.URL:
        """The address that `link`, which may be relative, means in an answer of `url`.

        Raises ConfigError if it is none, or leads from https to http.
        """
        import httpx

        try:
            joined = httpx.URL(url).join(link)
        except httpx.InvalidURL as error:
            raise ConfigError(f"{shown(url)}: leads to an address that is none ({error})") from error
        target = _address(str(joined))
        if httpx.URL(url).scheme == "https" and target.scheme != "https":
            raise ConfigError(f"{shown(url)}: leads from https to http ({shown(link)}), which is not followed")
        return target

    async def _once(self, method: str, at: httpx.URL, content: bytes | None, headers: Mapping[str, str]) -> Reply:
        import httpx

        own = {"user-agent": f"conveyord/{__version__}", "accept": "*/*", "accept-encoding": "gzip"}
        sent = httpx.Headers({**own, **headers})
        sent.update(self._credentials if _origin(at) == self._home else {})
        address = shown(str(at))
        timeout = httpx.Timeout(self._limits.read_seconds, connect=self._limits.connect_seconds).as_dict()
        request = httpx.Request(method, at, headers=sent, content=content, extensions={"timeout": timeout})
        if content is not None:
            request.stream = _content(content)
        try:
            response = await self._transport.handle_async_request(request)
            try:
                body = await self._body(response, address)
            finally:
                await response.aclose()
        except httpx.TimeoutException as error:
            raise Retryable(f"{address}: {_waited(error, self._limits)}") from error
        except httpx.TransportError as error:
            raise _failed(error, address) from error
        return Reply(response.status_code, {k.lower(): v for k, v in response.headers.items()}, body, address)

    async def _body(self, response: httpx.Response, address: str) -> bytes:
        encoding = response.headers.get("content-encoding", "").strip().lower()
        if encoding not in GZIP | PLAIN:
            raise ConfigError(f"{address}: the answer is encoded as {encoding!r}; only gzip was offered")
        body = _Body(self._limits.body_bytes_max, address, is_gzip=encoding in GZIP)
        refused = None
        # The stream is a chain of generators that only an exception from within closes in order: hence the cancelling.
        with trio.CancelScope() as reading:
            async for chunk in response.aiter_raw():
                try:
                    if refused is None:
                        body.feed(chunk)
                except ConveyordError as error:
                    refused = error
                    reading.cancel()
        if refused is not None:
            raise refused
        return body.whole()


class _Body:
    """Gathers one body, up to a limit on the wire and after inflating, and not a byte beyond it."""

    def __init__(self, bytes_max: int, address: str, *, is_gzip: bool) -> None:
        self._inflate = zlib.decompressobj(_GZIP_WINDOW) if is_gzip else None
        self._bytes_max = bytes_max
        self._address = address
        self._parts: list[bytes] = []
        self._wire_bytes = self._bytes = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next piece. Raises ConfigError beyond the limit, Retryable for what cannot be inflated."""
        self._wire_bytes += len(chunk)
        room = self._bytes_max - self._bytes
        if self._inflate is not None:
            try:
                chunk = self._inflate.decompress(chunk, room + 1)
            except zlib.error as error:
                raise Retryable(f"{self._address}: the compressed answer is damaged ({error}); run again") from error
            if self._inflate.unused_data:
                raise Retryable(f"{self._address}: there is something behind the end of the compressed answer")
        if len(chunk) > room or self._wire_bytes > self._bytes_max:
            raise ConfigError(
                f"{self._address}: the answer is larger than max_body ({format_bytes(self._bytes_max)}), inflated if "
                "it is compressed; ask for smaller answers, or raise max_body"
            )
        self._bytes += len(chunk)
        self._parts.append(chunk)

    def whole(self) -> bytes:
        """All of it, once nothing more comes."""
        if self._inflate is not None and self._wire_bytes and not self._inflate.eof:
            raise Retryable(f"{self._address}: the compressed answer ends early; run again")
        return b"".join(self._parts)


def _content(body: bytes) -> httpx.AsyncByteStream:
    """A request's body in pieces, so that the deadline of a write is between two of them.

    Its iterator is no generator: one that is left half read, at a broken connection, has to be closed.
    """
    import httpx

    class Content(httpx.AsyncByteStream):
        def __aiter__(self) -> AsyncIterator[bytes]:
            return _Pieces(body)

    return Content()


class _Pieces:
    def __init__(self, body: bytes) -> None:
        self._body = memoryview(body)
        self._at = 0

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> bytes:
        if self._at >= len(self._body):
            raise StopAsyncIteration
        self._at += WRITE_BYTES
        return bytes(self._body[self._at - WRITE_BYTES : self._at])


def _address(url: str) -> httpx.URL:
    import httpx

    try:
        found = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"{shown(url)}: not an address ({error})") from error
    if found.scheme not in {"http", "https"} or not found.host:
        raise ConfigError(f"{shown(url)}: only http:// and https:// addresses are asked")
    if found.userinfo:
        raise ConfigError(f"{shown(url)}: holds a user or a password; put it into a header, such as Authorization")
    return found


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def _waited(error: httpx.TimeoutException, limits: HttpLimits) -> str:
    import httpx

    if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout):
        return f"no connection within {limits.connect_seconds:g} s; check url, or raise connect_timeout"
    return f"nothing more came for {limits.read_seconds:g} s; raise read_timeout, or run again later"


def _failed(error: httpx.TransportError, address: str) -> ConveyordError:
    """What a failure below HTTP means. Its own text may quote what was sent, so only its innermost cause is told."""
    causes, cause = [], error.__cause__ or error.__context__
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    for found in causes:
        if isinstance(found, ssl.SSLCertVerificationError):
            return ConfigError(
                f"{address}: its certificate is not trusted ({found.verify_message}); "
                "name the certificate of its authority as ca_file"
            )
    reasons = [found.strerror for found in causes if isinstance(found, OSError) and found.strerror]
    reason = reasons[-1] if reasons else type(error).__name__
    return Retryable(f"{address}: the connection failed ({reason}); check url and whether it runs, and run again")

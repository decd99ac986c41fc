"""One HTTP exchange with one server, within a deadline, and a sentence for whatever prevents it. Blocking.

The standard library's client, because a command line pays for imports at every call: httpx takes 150 ms of them, this
nothing that is not there anyway. It follows no redirects and knows no proxies of the environment.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from conveyord.core.errors import ConfigError, ConveyordError, Retryable
from conveyord.core.hosts import is_loopback

ANSWER_BYTES_MAX = 64 * 1024 * 1024  # pages are smaller; more is not an API's
API = "/api/v1"
HOSTNAME_MISMATCH, IP_ADDRESS_MISMATCH, CERTIFICATE_EXPIRED, NOT_YET_VALID = 62, 64, 10, 9  # of OpenSSL's verification


class Unreachable(Retryable):
    """No connection could be made. Nothing was asked."""


class Cut(Retryable):
    """The connection was lost after the request, or a part of it, was sent. It may have been carried out."""


class DeadlinePassed(ConveyordError):
    """No answer in time. was_sent: the request, or a part of it; then it may have been carried out."""

    code = "DEADLINE"

    def __init__(self, message: str, *, was_sent: bool) -> None:
        super().__init__(message)
        self.was_sent = was_sent


@dataclass(frozen=True, slots=True)
class Server:
    """Where a node's API is. base: of the paths, without `/` at its end; for a reverse proxy."""

    host: str
    port: int
    is_tls: bool
    base: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_tls else 'http'}://{host}:{self.port}{self.base}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine for sure."""
        return is_loopback(self.host)


class Asked(NamedTuple):
    """A request. target: with its query."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes | None = None


class Answered(NamedTuple):
    """What came back. kind: the media type, without its parameters."""

    status: int
    kind: str
    body: bytes
    location: str = ""


def parse_server(text: str) -> Server:
    """The server that a URL names. Raises ConfigError."""
    example = "write it like https://node-1.example:7480 or http://127.0.0.1:7480"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.username is not None:  # what follows it may be a password, so the text is not repeated
        raise ConfigError(f"the address of a server has a user in it; give a token with --token, and {example}")
    if parts.scheme not in ("http", "https") or not host or not text.isprintable() or not text.isascii():
        raise ConfigError(f"{text!r} is no address of a server; {example}")
    if parts.query or parts.fragment or port == 0:
        raise ConfigError(f"{text!r} has more than scheme, host, port and path; {example}")
    base = parts.path.rstrip("/")
    if base.endswith(API):
        raise ConfigError(f"{text!r} ends in {API}, which is added by itself; leave it off")
    is_tls = parts.scheme == "https"
    return Server(host, port or (443 if is_tls else 80), is_tls, base)


def trust(ca: Path | None) -> ssl.SSLContext:
    """What certificates are believed: those that `ca` has signed, a file of PEM, or else the system's authorities."""
    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as error:  # an SSLError here means that there is no certificate in the file
        reason = "it holds no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(f"the CA file {ca} cannot be used: {reason}; name the authority's certificate") from error


def exchange(
    server: Server, trusted: ssl.SSLContext | None, asked: Asked, *, deadline: float, connect_seconds: float
) -> Answered:
    """Send a request, and read the answer. deadline: of `time.monotonic`. trusted: needed for TLS.

    Raises Unreachable, Cut, DeadlinePassed, and ConfigError for what must be set otherwise: a certificate that is not
    trusted, a scheme that is not the server's. A name that resolves slowly is waited for longer than the deadline.
    """
    with _connect(server, trusted, deadline=deadline, seconds=connect_seconds) as connected:
        wire = _Wire(connected, deadline)
        connection = http.client.HTTPConnection(server.host, server.port)
        connection.sock = wire  # as much of a socket as it needs
        try:
            connection.request(asked.method, f"{server.base}{asked.target}", asked.body, dict(asked.headers))
            response = connection.getresponse()
            body = response.read(ANSWER_BYTES_MAX + 1)
        except TimeoutError as error:
            raise DeadlinePassed(f"{server} did not answer in time", was_sent=True) from error
        except http.client.IncompleteRead as error:
            raise Cut(f"{server} cut its answer off in the middle") from error
        except (http.client.RemoteDisconnected, ConnectionError, ssl.SSLError) as error:
            hint = "" if server.is_tls else " (if it speaks TLS, write https://)"
            raise Cut(f"{server} closed the connection without an answer{hint}") from error
        except http.client.HTTPException as error:
            raise ConfigError(
                f"{server} answers, but not as HTTP does ({type(error).__name__}); look at address and port"
            ) from error
        if len(body) > ANSWER_BYTES_MAX:
            most = ANSWER_BYTES_MAX // 1024**2
            raise ConfigError(f"{server} answers with more than {most} MiB; ask for less, or look at the address")
        if response.length:
            raise Cut(f"{server} cut its answer off in the middle, {response.length:,} bytes before its end")
        kind = response.headers.get_content_type() if "content-type" in response.headers else ""
        return Answered(response.status, kind, body, response.headers.get("location", ""))


class _Wire:
    """The part of a socket that http.client uses, with one deadline for all of an exchange, however slowly it drips."""

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._connected = connected
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._limit()
        self._connected.sendall(data)

    def read_into(self, buffer: memoryview) -> int:
        self._limit()
        return self._connected.recv_into(buffer)

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb", mode
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        """Nothing: http.client closes this once it has a head that says `close`, while the body is still to be read."""

    def _limit(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connected.settimeout(left)


class _Reader(io.RawIOBase):
    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # BufferedReader gives a memoryview
        return self._wire.read_into(buffer)


def _connect(
    server: Server, trusted: ssl.SSLContext | None, *, deadline: float, seconds: float
) -> socket.socket | ssl.SSLSocket:
    left = min(deadline - time.monotonic(), seconds)
    if left <= 0:
        raise DeadlinePassed(f"there was no time left for {server}", was_sent=False)
    try:
        connected = socket.create_connection((server.host, server.port), timeout=left)
    except TimeoutError as error:
        message = f"{server} did not take a connection in time; look at address, network and firewall"
        if time.monotonic() >= deadline:
            raise DeadlinePassed(message, was_sent=False) from error
        raise Unreachable(message) from error
    except ConnectionRefusedError as error:
        raise Unreachable(f"nothing listens at {server}; start the node, or give another --server") from error
    except (socket.gaierror, UnicodeError) as error:
        raise Unreachable(f"the name {server.host!r} is not known; look at the address {server}") from error
    except OSError as error:
        raise Unreachable(f"{server} cannot be reached: {error.strerror or error}") from error
    if not server.is_tls:
        return connected
    assert trusted is not None
    try:
        connected.settimeout(max(deadline - time.monotonic(), 0.001))
        return trusted.wrap_socket(connected, server_hostname=server.host)
    except (OSError, ValueError) as error:
        connected.close()
        raise _not_greeted(server, error, deadline) from error


def _not_greeted(server: Server, error: Exception, deadline: float) -> ConveyordError:
    """What a TLS handshake failed for."""
    match error:
        case ssl.SSLCertVerificationError(verify_code=code) if code in (HOSTNAME_MISMATCH, IP_ADDRESS_MISMATCH):
            return ConfigError(f"the certificate of {server} is not for {server.host!r}; use a name that is in it")
        case ssl.SSLCertVerificationError(verify_code=code) if code in (CERTIFICATE_EXPIRED, NOT_YET_VALID):
            what = "has expired" if code == CERTIFICATE_EXPIRED else "is not valid yet"
            return ConfigError(f"the certificate of {server} {what}; renew it, or look at the clock of this machine")
        case ssl.SSLCertVerificationError():
            return ConfigError(
                f"the certificate of {server} is signed by nobody who is trusted here ({error.verify_message}); give "
                "the authority's certificate with --ca"
            )
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER" | "RECORD_LAYER_FAILURE" | "HTTP_REQUEST"):
            return ConfigError(f"{server} does not speak TLS; write http://, or look at the port")
        case TimeoutError() if time.monotonic() >= deadline:
            return DeadlinePassed(f"{server} did not finish the TLS handshake in time", was_sent=False)
        case _:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            return Unreachable(f"{server} broke off the TLS handshake ({reason}); look at the address")

"""Mutual TLS between nodes: both sides show a certificate of one authority, which names the node (docs/wire.md)."""

from __future__ import annotations

import contextlib
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import trio

from conveyord.core.errors import ConfigError
from conveyord.runtime.rpc.outcomes import Unwelcome
from conveyord.runtime.rpc.transport import Transport, send_all

log = structlog.get_logger(__name__)

NODE_URI = "conveyord://node/"
RECORD_BYTES = 64 * 1024  # encrypted or decrypted at a time: four records of TLS

# OpenSSL's name for what went wrong, our code, and a sentence. The first half is what we find, the second what we are
# told by the other side.
_CLAUSES = {
    10: ("TLS_EXPIRED", "its certificate has expired"),
    9: ("TLS_EXPIRED", "its certificate is not valid yet"),
    18: ("TLS_UNKNOWN_CA", "its certificate is signed by itself"),
    19: ("TLS_UNKNOWN_CA", "its certificate is not signed by our authority"),
    20: ("TLS_UNKNOWN_CA", "its certificate is not signed by our authority"),
    21: ("TLS_UNKNOWN_CA", "its certificate is not signed by our authority"),
    7: ("TLS_UNKNOWN_CA", "its certificate is not signed by our authority"),
}
_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": ("TLS_NO_CERTIFICATE", "it showed no certificate"),
    "WRONG_VERSION_NUMBER": ("TLS_PLAIN", "it does not speak TLS"),
    "HTTP_REQUEST": ("TLS_PLAIN", "it speaks HTTP without TLS"),
    "RECORD_LAYER_FAILURE": ("TLS_PLAIN", "it does not speak TLS"),
    "UNEXPECTED_MESSAGE": ("TLS_PLAIN", "it does not speak TLS"),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": ("TLS_EXPIRED", "it says that our certificate has expired"),
    "TLSV1_ALERT_UNKNOWN_CA": ("TLS_UNKNOWN_CA", "it says that our certificate is not signed by its authority"),
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": ("TLS_NO_CERTIFICATE", "it wants a certificate of us"),
}


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. certificate: with what leads to the authority; ca: whom to believe, of either side."""

    certificate: Path
    key: Path
    ca: Path


class TlsContexts:
    """The contexts of both roles, made again when a file has changed; connections that exist go on as they are."""

    def __init__(self, files: TlsFiles) -> None:
        """Blocking. Raises ConfigError if the files cannot be used."""
        self._files = files
        self._stamp = self._stamped()
        self._contexts = self._made()

    def context(self, *, server_side: bool) -> ssl.SSLContext:
        """For the next connection. Blocking, for a moment. Files that cannot be used are logged, and not taken."""
        with contextlib.suppress(ConfigError):
            stamp = self._stamped()
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._contexts = self._made()
                    log.info("the certificate was read again", certificate=str(self._files.certificate))
                except ConfigError as error:
                    log.warning(
                        "the certificate that is there now cannot be used; the one before stays", reason=str(error)
                    )
        return self._contexts[server_side]

    def _stamped(self) -> tuple[tuple[int, int, int], ...]:
        files = self._files
        try:
            found = [path.stat() for path in (files.certificate, files.key, files.ca)]
        except OSError as error:
            raise ConfigError(f"{error.filename}: {error.strerror}; it is needed for TLS between nodes") from None
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in found)

    def _made(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        return self._one(ssl.PROTOCOL_TLS_CLIENT), self._one(ssl.PROTOCOL_TLS_SERVER)

    def _one(self, protocol: int) -> ssl.SSLContext:
        files = self._files
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # a node is known by its id, wherever it is; the greeting checks that
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_cert_chain(files.certificate, files.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"{files.certificate} and {files.key} are no certificate and its key: {error}") from None
        try:
            context.load_verify_locations(files.ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"{files.ca} holds no certificate of an authority: {error}") from None
        return context


def node_names(certificate: dict[str, Any] | None) -> frozenset[str]:
    """The node ids that a certificate names: its URIs conveyord://node/<id>, or its DNS names if it has no such URI."""
    alternatives = (certificate or {}).get("subjectAltName", ())
    uris = {
        value.removeprefix(NODE_URI) for kind, value in alternatives if kind == "URI" and value.startswith(NODE_URI)
    }
    return frozenset(uris or {value for kind, value in alternatives if kind == "DNS"})


def tls_failure(error: BaseException) -> Unwelcome | None:
    """What a failure of TLS means; None if it is no such failure."""
    if not isinstance(error, ssl.SSLError):
        return None
    if isinstance(error, ssl.SSLCertVerificationError):
        code, clause = _CLAUSES.get(
            error.verify_code, ("TLS_CERTIFICATE", f"its certificate fails: {error.verify_message}")
        )
    else:
        reason = error.reason or str(error)
        code, clause = _REASONS.get(reason, ("TLS_FAILED", f"TLS failed: {reason.lower().replace('_', ' ')}"))
    return Unwelcome(code, f"the other side cannot be talked to: {clause}")


class TlsTransport:
    """TLS over another transport. trio's SSLStream does not send the alert that tells the other side what was wrong."""

    is_direct = False

    def __init__(self, inner: Transport, context: ssl.SSLContext, *, server_side: bool) -> None:
        self._inner = inner
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._buffer = memoryview(bytearray(RECORD_BYTES))

    async def handshake(self) -> frozenset[str]:
        """Meet the other side, and return the node ids that its certificate names. Raises Unwelcome."""
        failure: ssl.SSLError | None = None
        is_done = False
        while not is_done and failure is None:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                failure = error
            else:
                is_done = True
            if not is_done and failure is None:
                await self._send_encrypted()
                await self._receive_encrypted()
        if failure is None:
            await self._send_encrypted()
            return node_names(self._tls.getpeercert())
        with contextlib.suppress(trio.BrokenResourceError):
            await self._send_encrypted()  # the alert
        raise tls_failure(failure) or failure from failure

    async def receive_into(self, room: memoryview) -> int:
        while True:
            try:
                return self._tls.read(len(room), room)  # type: ignore[return-value]
            except ssl.SSLWantReadError:
                # What reading gives to send, an answer to a change of keys, goes out before the next that is written.
                # To send it here could block both sides, each waiting for the other to read.
                await self._receive_encrypted()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return 0  # also without a farewell: a frame that is cut off is noticed by its length
            except ssl.SSLError as error:
                raise trio.BrokenResourceError(str(error)) from error

    def send_now(self, _: memoryview, /) -> int:
        return 0

    async def send_some(self, data: memoryview) -> int:
        try:
            count = self._tls.write(data[:RECORD_BYTES])
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(str(error)) from error
        await self._send_encrypted()
        return count

    async def send_eof(self) -> None:
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()  # type: ignore[no-untyped-call, unused-ignore]
        await self._send_encrypted()
        await self._inner.send_eof()

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _send_encrypted(self) -> None:
        await send_all(self._inner, self._outgoing.read())

    async def _receive_encrypted(self) -> None:
        if count := await self._inner.receive_into(self._buffer):
            self._incoming.write(self._buffer[:count])
        else:
            self._incoming.write_eof()

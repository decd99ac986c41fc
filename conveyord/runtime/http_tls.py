"""The certificate that an HTTP server shows. A renewed one is read for the next connection."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import structlog

from conveyord.core.errors import ConfigError

log = structlog.get_logger(__name__)


class ServerCertificate:
    """certificate: PEM, with what leads to the authority; key: PEM, None if it is in the same file."""

    def __init__(self, certificate: Path, key: Path | None) -> None:
        """Blocking. Raises ConfigError if the files cannot be used."""
        self._certificate = certificate
        self._key = key
        self._stamp = self._stamped()
        self._context = self._made()

    def context(self) -> ssl.SSLContext:
        """For the next connection. Blocking, for a moment. Files that cannot be used are logged, and not taken."""
        with contextlib.suppress(ConfigError):  # a file that is gone may be on its way
            stamp = self._stamped()
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._context = self._made()
                    log.info("the certificate was read again", certificate=str(self._certificate))
                except ConfigError as error:
                    log.warning(
                        "the certificate that is there now cannot be used; the one before stays", reason=str(error)
                    )
        return self._context

    def _stamped(self) -> tuple[tuple[int, int, int], ...]:
        try:
            found = [path.stat() for path in (self._certificate, self._key) if path is not None]
        except OSError as error:
            raise ConfigError(f"{error.filename}: {error.strerror}; HTTPS needs it") from None
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in found)

    def _made(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._certificate, self._key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"{self._certificate}{f' and {self._key}' if self._key else ''}: no certificate and its key: {error}"
            ) from None
        return context

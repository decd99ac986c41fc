"""Tells the service manager how the process is doing: sd_notify(3), without libsystemd.

Everything is one datagram, never waited for: a manager that does not read must not hold up a node. Without
NOTIFY_SOCKET, nothing is told.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

import structlog
import trio

log = structlog.get_logger(__name__)

STATUS_CHARS_MAX = 500  # of a sentence that `systemctl status` shows on one line
DRAIN_MARGIN_SECONDS = 5.0  # for what follows draining: files are closed, and the process ends


class Notifier:
    """What a service manager is told. For the trio thread.

    watchdog_seconds: it kills the process if it hears nothing for so long; None if it does not.
    """

    def __init__(self, address: str | None = None, watchdog_seconds: float | None = None) -> None:
        self.watchdog_seconds = watchdog_seconds
        self._address = address
        self._socket = (
            None if address is None else socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        )
        if self._socket is not None:
            self._socket.setblocking(False)
        self._status = ""
        self._is_told_of = False

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Notifier:
        """As `environment` says, which systemd sets. A watchdog that is meant for another process is none."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return cls()
        micros, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
        is_watched = micros.isdigit() and int(micros) > 0 and pid in ("", str(os.getpid()))
        return cls(address, int(micros) / 1e6 if is_watched else None)

    @property
    def is_heard(self) -> bool:
        """Whether there is a service manager."""
        return self._socket is not None

    def ready(self) -> None:
        """The process listens, and serves."""
        self._tell("READY=1")

    def status(self, sentence: str) -> None:
        """What `systemctl status` shows. Told when it has changed."""
        if sentence != self._status:
            self._status = sentence
            self._tell(f"STATUS={' '.join(sentence.split())[:STATUS_CHARS_MAX]}")

    def stopping(self, drain_seconds: float) -> None:
        """The process drains, for so long at most: it is not to be killed before."""
        micros = round((drain_seconds + DRAIN_MARGIN_SECONDS) * 1e6)
        self._tell(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={micros}")

    async def keep_alive(self) -> None:
        """Say that the event loop turns, twice in the time in which that must be said, until cancelled."""
        while self.watchdog_seconds is not None:
            self._tell("WATCHDOG=1")
            await trio.sleep(self.watchdog_seconds / 2)

    def close(self) -> None:
        """Nothing more will be told."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, message: str) -> None:
        if self._socket is None or self._address is None:
            return
        place = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            self._socket.sendto(message.encode(), place)
        except OSError as error:
            if not self._is_told_of:
                self._is_told_of = True
                log.warning("the service manager cannot be told", socket=self._address, reason=error.strerror)
        else:
            self._is_told_of = False

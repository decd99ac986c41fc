"""Servers that are no nodes, or nodes behind something that is broken: real sockets, one thread each."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Behaviour = Callable[[socket.socket], None]


@contextmanager
def serving(behave: Behaviour, *, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Accept connections, and let each be treated so, until the end. Yields HOST:PORT."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_accept, args=(listener, behave, tls), daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def saying(answer: bytes) -> Behaviour:
    """Read a request's head, say this, and hang up."""

    def behave(connected: socket.socket) -> None:
        read_head(connected)
        connected.sendall(answer)

    return behave


def http(status: str, kind: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """An answer. length: what is announced, if something else than what comes."""
    lines = [
        f"HTTP/1.1 {status}",
        f"content-type: {kind}",
        f"content-length: {len(body) if length is None else length}",
    ]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def read_head(connected: socket.socket) -> bytes:
    """A request, as far as its head goes."""
    head = b""
    while b"\r\n\r\n" not in head:
        piece = connected.recv(65_536)
        if not piece:
            break
        head += piece
    return head


def _accept(listener: socket.socket, behave: Behaviour, tls: ssl.SSLContext | None) -> None:
    with suppress(OSError):  # the listener is shut down at the end
        while True:
            accepted, _ = listener.accept()
            with suppress(OSError), accepted:  # whoever asked may go at any time
                accepted.settimeout(30)
                connected = accepted if tls is None else tls.wrap_socket(accepted, server_side=True)
                with connected:
                    behave(connected)
                    with suppress(OSError):
                        connected.shutdown(socket.SHUT_WR)
                    while connected.recv(65_536):  # or what was said may be lost in a reset
                        pass

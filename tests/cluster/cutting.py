"""A TCP proxy that can be cut: connections through it hang or end, and new ones are refused or swallowed."""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress

CHUNK_BYTES = 64 * 1024


class CuttingProxy:
    """Listens on loopback and passes everything on to `target`. For any thread.

    hang: nothing passes any more, and nobody is told, as with a cable that is pulled. cut: connections end at once.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._passes = threading.Event()
        self._passes.set()
        self._is_cut = False
        self._ended = False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def hang(self) -> None:
        self._passes.clear()

    def cut(self) -> None:
        self._is_cut = True
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for one in pair:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def heal(self) -> None:
        self._is_cut = False
        self._passes.set()

    def close(self) -> None:
        self._ended = True
        self.heal()
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while not self._ended:
            try:
                incoming, _ = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                incoming.close()
                continue
            threading.Thread(target=self._carry, args=(incoming,), daemon=True).start()

    def _carry(self, incoming: socket.socket) -> None:
        try:
            outgoing = socket.create_connection(self._target, timeout=5.0)
        except OSError:
            incoming.close()
            return
        outgoing.settimeout(None)
        pair = (incoming, outgoing)
        with self._lock:
            self._pairs.add(pair)
        with selectors.DefaultSelector() as selector, suppress(OSError):
            selector.register(incoming, selectors.EVENT_READ, outgoing)
            selector.register(outgoing, selectors.EVENT_READ, incoming)
            while not self._is_cut:
                for key, _ in selector.select(timeout=0.5):
                    source, sink = key.fileobj, key.data
                    assert isinstance(source, socket.socket)
                    data = source.recv(CHUNK_BYTES)
                    self._passes.wait()
                    if not data:
                        raise OSError
                    sink.sendall(data)
        with self._lock:
            self._pairs.discard(pair)
        for one in pair:
            one.close()

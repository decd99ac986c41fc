"""A node with its API in a thread of its own, for clients that block."""

from __future__ import annotations

import threading
from pathlib import Path

import trio

from tests.api.rig import Served, serving


class Background:
    """A context manager."""

    def __init__(self, home: Path, access: str) -> None:
        self._home = home
        self._access = access
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve,), name="node")
        self._token: trio.lowlevel.TrioToken | None = None
        self._over: trio.Event | None = None
        self._served: Served | None = None

    async def _serve(self) -> None:
        self._token, self._over = trio.lowlevel.current_trio_token(), trio.Event()
        try:
            async with serving(self._home, access=self._access) as self._served:
                self._is_up.set()
                await self._over.wait()
        finally:
            self._is_up.set()

    def __enter__(self) -> Served:
        self._thread.start()
        self._is_up.wait()
        assert self._served is not None
        return self._served

    def __exit__(self, *_: object) -> None:
        assert self._token is not None
        assert self._over is not None
        self._token.run_sync_soon(self._over.set)
        self._thread.join()

"""Starts `conveyord` without its seconds of imports: a process that has made them forks itself for every command.

What is started is a real process with its own id, arguments, environment, streams, signals and memory, and runs the
entry point as the installed script does. Only what comes before that is shared; tests of the start itself (what is
imported, how a plugin is found, how much memory is held) start a process of their own.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import pkgutil
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

MESSAGE_BYTES_MAX = 128 * 1024  # arguments and environment; below what a packet of a socket can hold
NUMBER = struct.Struct("i")
# Of the thread that numpy would start when it is imported, and of Arrow's for an allocator that is not used.
WITHOUT_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
# What conveyord imports at first use. Nothing of this may start a thread, see `serve`.
LAZY = (
    *("pyarrow.compute", "pyarrow.csv", "pyarrow.dataset", "pyarrow.fs", "pyarrow.json", "pyarrow.parquet"),
    *("pyiceberg.catalog.sql", "pyiceberg.io.pyarrow", "pyiceberg.table", "pyiceberg.table.update.spec"),
    *("pyiceberg_core", "datafusion", "sqlalchemy.dialects.sqlite", "rich.progress", "rich.table", "yaml"),
)


class Forked:
    """A command that was started; as much of `subprocess.Popen` as tests need."""

    def __init__(self, told: int) -> None:
        self._told = told
        self.returncode: int | None = None
        first = os.read(told, NUMBER.size)
        assert first, "the process that forks commands has ended; its stderr says why"
        self.pid: int = NUMBER.unpack(first)[0]

    def poll(self) -> int | None:
        """The exit code, negative for a signal. None while it runs."""
        return self._end(0)

    def wait(self) -> int:
        """The exit code, once it has ended."""
        code = self._end(None)
        assert code is not None
        return code

    def _end(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._told], [], [], timeout)[0]:
            self.returncode = NUMBER.unpack(os.read(self._told, NUMBER.size))[0]
            os.close(self._told)
        return self.returncode


def start(arguments: list[str], *, cwd: Path, env: dict[str, str], streams: tuple[int, int, int]) -> Forked:
    """Start `conveyord` with these arguments, the script's own path first, on descriptors for its three streams."""
    order = json.dumps({"arguments": arguments, "cwd": str(cwd), "env": env}).encode()
    ours, theirs = os.pipe()
    try:
        socket.send_fds(_server()[0], [order], [*streams, theirs])
    finally:
        os.close(theirs)
    return Forked(ours)


@cache
def _server() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """The process that forks, started at first use. It ends when this one does and with it the socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno())]
        environment = {**os.environ, **WITHOUT_THREADS}
        return ours, subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)


# ------------------------------------------------------------------ in the process that forks


def serve(connection: socket.socket) -> None:
    """Fork for every order that comes, until there is nobody to send one."""
    _import()
    tasks = os.listdir("/proc/self/task")
    assert len(tasks) == 1, f"{len(tasks)} threads after the imports: a fork would have one of them only"
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever watched a command is nobody's concern
    while True:
        order, descriptors, _, _ = socket.recv_fds(connection, MESSAGE_BYTES_MAX, 4)
        if not order:
            return
        if os.fork() == 0:
            connection.close()
            _watch(json.loads(order), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _import() -> None:
    import conveyord

    found = pkgutil.walk_packages(conveyord.__path__, "conveyord.")
    for name in (*LAZY, *(module.name for module in found if not module.name.endswith("__main__"))):
        with suppress(ImportError):  # for the command that needs it to tell
            importlib.import_module(name)


def _watch(order: dict[str, Any], descriptors: list[int]) -> None:
    """Start the command in a process of its own, tell its number, then how it ended."""
    *streams, told = descriptors
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(told)
        _become(order, streams)
    for stream in streams:
        os.close(stream)
    with suppress(OSError):  # who started it is gone
        os.write(told, NUMBER.pack(pid))
    _, status = os.waitpid(pid, 0)
    with suppress(OSError):
        os.write(told, NUMBER.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _become(order: dict[str, Any], streams: list[int]) -> None:
    """Be the command: as a new interpreter would be by the time it calls the entry point."""
    code = 1
    try:
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
            os.close(stream)
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["env"])
        time.tzset()
        sys.path[1:1] = [folder for folder in order["env"].get("PYTHONPATH", "").split(os.pathsep) if folder]
        sys.argv = order["arguments"]
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for as long as the process lives
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = io.TextIOWrapper(
            io.FileIO(2, "w", closefd=False), errors="backslashreplace", write_through=True, line_buffering=True
        )
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from conveyord.__main__ import main

        main()  # leaves by itself
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except Exception:  # noqa: BLE001 - whatever it is, it is told as the interpreter would
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.path[0] = str(Path(sys.executable).parent)  # as the installed script has it
    serve(socket.socket(fileno=int(sys.argv[1])))

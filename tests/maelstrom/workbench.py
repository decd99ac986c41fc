"""What Maelstrom does to nodes, as far as `lin-kv` goes: processes, a network of its own, clients, and more faults.

The real one is a Java program that no package registry has. This one keeps its contract (which keys a message has, that
answers are closed, that a node which ends has failed) and also kills nodes and starts them again on their data, delays,
loses and partitions between nodes. Histories are judged by `tests/sim/linear.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import trio

from tests.sim.linear import NEVER, Op

SCRIPT = Path(__file__).with_name("node.py")
INIT_SECONDS = 10.0  # Maelstrom's
CALL_SECONDS = 2.0
DEFINITE = {1, 10, 11, 12, 14, 20, 21, 22, 30}  # it did not happen
NO_KEY, MISMATCH = 20, 22
ANSWERS = {
    "init_ok": {"type", "in_reply_to", "msg_id"},
    "read_ok": {"type", "in_reply_to", "msg_id", "value"},
    "write_ok": {"type", "in_reply_to", "msg_id"},
    "cas_ok": {"type", "in_reply_to", "msg_id"},
}
Body = dict[str, Any]


@dataclass
class Workbench:
    """nodes: those that run. cuts: pairs whose messages are lost. latency_seconds: twice what a message takes."""

    home: Path
    names: list[str]
    random: Random
    nursery: trio.Nursery
    latency_seconds: float = 0.02
    nodes: dict[str, trio.Process] = field(default_factory=dict)
    cuts: set[tuple[str, str]] = field(default_factory=set)
    waiting: dict[tuple[str, int], trio.MemorySendChannel[Body]] = field(default_factory=dict)
    told: list[tuple[int, Op]] = field(default_factory=list)
    routed: int = 0
    _number: int = 0

    async def start(self, name: str) -> None:
        """Start a node on what it has, and wait for its `init_ok`."""
        environment = {**os.environ, "CONVEYORD_MAELSTROM_DIR": str(self.home)}
        with (self.home / f"{name}.err").open("ab") as errors:
            process: trio.Process = await trio.lowlevel.open_process(
                [sys.executable, str(SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                cwd=self.home,
            )
        self.nodes[name] = process
        self.nursery.start_soon(self._route, name, process)
        answer = await self.ask("c0", name, {"type": "init", "node_id": name, "node_ids": self.names}, INIT_SECONDS)
        assert answer is not None, f"{name} did not answer init: {(self.home / f'{name}.err').read_text()[-2000:]}"
        assert answer["type"] == "init_ok"

    async def kill(self, name: str) -> None:
        process = self.nodes.pop(name)
        assert process.stdin is not None
        process.kill()
        await process.wait()
        await process.stdin.aclose()

    async def _route(self, name: str, process: trio.Process) -> None:
        buffer = b""
        assert process.stdout is not None
        async with process.stdout:
            async for chunk in process.stdout:
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    self._take(name, json.loads(line))
        assert self.nodes.get(name) is not process, f"{name} ended: {(self.home / f'{name}.err').read_text()[-2000:]}"

    def _take(self, name: str, message: dict[str, Any]) -> None:
        assert message.keys() == {"src", "dest", "body"}
        assert message["src"] == name
        self.routed += 1
        body, to = message["body"], message["dest"]
        if to not in self.names:
            if body["type"] != "error":
                assert body.keys() <= ANSWERS[body["type"]], body
            waits = self.waiting.get((to, body["in_reply_to"]))
            if waits is not None:
                waits.send_nowait(body)
        elif (name, to) not in self.cuts:
            self.nursery.start_soon(self._deliver, name, to, body)

    async def _deliver(self, source: str, to: str, body: Body) -> None:
        await trio.sleep(self.random.expovariate(2 / self.latency_seconds))
        await self._send(source, to, body)

    async def _send(self, source: str, to: str, body: Body) -> None:
        process = self.nodes.get(to)
        self._number += 1
        if process is not None and process.stdin is not None:
            line = json.dumps({"id": self._number, "src": source, "dest": to, "body": body}).encode() + b"\n"
            try:
                await process.stdin.send_all(line)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # it was killed
            except trio.BusyResourceError:
                self.nursery.start_soon(self._deliver, source, to, body)

    async def ask(self, client: str, to: str, body: Body, seconds: float) -> Body | None:
        """What a node answers a client; None if nothing in time."""
        self._number += 1
        number = self._number
        send, receive = trio.open_memory_channel[Body](1)
        self.waiting[client, number] = send
        try:
            with trio.move_on_after(seconds):
                await self._send(client, to, {**body, "msg_id": number})
                return await receive.receive()
        finally:
            del self.waiting[client, number]
        return None

    # -------------------------------------------------------------------------- clients

    async def client(self, number: int, until: float, keys: int) -> None:
        """Ask one node after the other, and keep what was told."""
        while trio.current_time() < until:
            await trio.sleep(self.random.uniform(0, 0.1))
            key, kind = self.random.randrange(keys), self.random.choice(["read", "write", "cas"])
            value, expected = self.random.randrange(5), self.random.randrange(5)
            asked = {
                "read": {"type": "read", "key": key},
                "write": {"type": "write", "key": key, "value": value},
                "cas": {"type": "cas", "key": key, "from": expected, "to": value},
            }[kind]
            called = trio.current_time()
            answer = await self.ask(f"c{number}", self.random.choice(self.names), asked, CALL_SECONDS)
            op = _judged(kind, called, trio.current_time(), value, expected, answer)
            if op is not None:
                self.told.append((key, op))

    def of(self, key: int) -> list[Op]:
        return [op for at, op in self.told if at == key]


def _judged(kind: str, called: float, now: float, value: int, expected: int, answer: Body | None) -> Op | None:
    """What a call says of the register; None if nothing."""
    code = None if answer is None or answer["type"] != "error" else answer["code"]
    if kind == "read":
        if answer is None or code not in (None, NO_KEY):
            return None
        return Op("read", called, now, answer.get("value"))
    wanted = expected if kind == "cas" else None
    if answer is None or (code is not None and code not in DEFINITE):
        return Op(kind, called, NEVER, value, wanted)
    if code is None:
        return Op(kind, called, now, value, wanted)
    if kind == "cas" and code in (NO_KEY, MISMATCH):
        return Op("cas", called, now, value, wanted, ok=False)
    return None


@asynccontextmanager
async def workbench(home: Path, names: list[str], seed: int) -> AsyncIterator[Workbench]:
    """Nodes that have been told who they are. They are killed in the end."""
    async with trio.open_nursery() as nursery:
        bench = Workbench(home, names, Random(seed), nursery)
        try:
            for name in names:
                await bench.start(name)
            yield bench
        finally:
            with trio.move_on_after(INIT_SECONDS, shield=True):
                for name in list(bench.nodes):
                    await bench.kill(name)
        nursery.cancel_scope.cancel()

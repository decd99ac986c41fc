"""Maelstrom's side of a node: JSON lines, and requests to other nodes that are answered."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from conveyord.core.errors import OutcomeUnknown

LINES_MAX = 10_000  # that wait to be written; more are lost, as on any network
RECEIVE_BYTES = 65_536
LINE_BYTES_MAX = 64 * 1024 * 1024

Body = dict[str, Any]


class Wire:
    """Sends and receives bodies. node: who we are, as soon as that is known."""

    def __init__(self, source: trio.abc.ReceiveStream, lines: trio.MemorySendChannel[bytes]) -> None:
        self.node = ""
        self._source = source
        self._lines = lines
        self._buffer = bytearray()
        self._number = 0
        self._asked: dict[int, _Answer] = {}

    @classmethod
    @asynccontextmanager
    async def opened(cls) -> AsyncIterator[Wire]:
        """On stdin and stdout."""
        send, receive = trio.open_memory_channel[bytes](LINES_MAX)
        source = trio.lowlevel.FdStream(os.dup(0))
        target = trio.lowlevel.FdStream(os.dup(1))

        async def write() -> None:
            async for line in receive:
                await target.send_all(line)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            yield cls(source, send)
            nursery.cancel_scope.cancel()

    def send(self, to: str, body: Body) -> None:
        """Send a message, or lose it."""
        line = json.dumps({"src": self.node, "dest": to, "body": body}).encode() + b"\n"
        try:
            self._lines.send_nowait(line)
        except trio.WouldBlock:
            pass

    def reply(self, to: str, asked: Body, body: Body) -> None:
        """Answer what somebody asked."""
        self.send(to, {**body, "in_reply_to": asked["msg_id"]})

    async def ask(self, to: str, body: Body, *, seconds: float) -> Body:
        """The answer of another node. Raises OutcomeUnknown if none comes in time."""
        self._number += 1
        number, answer = self._number, _Answer()
        self._asked[number] = answer
        try:
            self.send(to, {**body, "msg_id": number})
            with trio.move_on_after(seconds):
                await answer.is_there.wait()
                return answer.body
        finally:
            del self._asked[number]
        raise OutcomeUnknown(f"node {to} did not answer within {seconds:g} s")

    async def receive(self) -> tuple[str, Body]:
        """The next message that is no answer. Raises trio.EndOfChannel when there are no more."""
        while True:
            message = json.loads(await self._line())
            body: Body = message["body"]
            answer = self._asked.get(body.get("in_reply_to", 0))
            if "in_reply_to" not in body:
                return message["src"], body
            if answer is not None:
                answer.body = body
                answer.is_there.set()

    async def __aiter__(self) -> AsyncIterator[tuple[str, Body]]:
        while True:
            try:
                yield await self.receive()
            except trio.EndOfChannel:
                return

    async def _line(self) -> bytes:
        begun = 0
        while (end := self._buffer.find(b"\n", begun)) < 0:
            begun = len(self._buffer)
            assert begun < LINE_BYTES_MAX, "a line without an end"
            more = await self._source.receive_some(RECEIVE_BYTES)
            if not more:
                raise trio.EndOfChannel
            self._buffer += more
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


class _Answer:
    def __init__(self) -> None:
        self.is_there = trio.Event()
        self.body: Body = {}

"""The same operations and codes by RPC, and events as a stream."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from conveyord.api import messages as m
from conveyord.api.operation import Operation
from conveyord.api.operations import (
    CONFIG_GET,
    CONFIG_PUT,
    MEMBERS_LIST,
    OPERATIONS,
    STATUS,
    TOKEN_CREATE,
    TOKEN_REVOKE,
)
from conveyord.api.rpc import WATCH
from conveyord.core.errors import ConveyordError, Retryable
from conveyord.runtime.rpc.connection import Connection
from conveyord.runtime.rpc.dialing import dial_once
from conveyord.runtime.rpc.greeting import Me, Side
from conveyord.runtime.rpc.handlers import Handlers
from conveyord.runtime.rpc.limits import Counters, Limits
from conveyord.runtime.rpc.outcomes import Unwelcome
from tests.api.rig import WAIT_SECONDS, Served, serving


def client(node: Served, token: str | None) -> AbstractAsyncContextManager[Connection]:
    """A connection of who is no node."""
    side = Side(lambda: Me("", 0, None, token), Handlers(), Limits(), Counters())
    return dial_once(side, ("127.0.0.1", node.rpc_port))


async def ask(connection: Connection, operation: Operation[Any, Any], request: Any) -> Any:
    payload = msgspec.msgpack.encode(request)
    answer = await connection.call(operation.rpc_method, payload, deadline_seconds=WAIT_SECONDS)
    return msgspec.msgpack.decode(answer.payload, type=operation.reply)


async def test_operations_by_rpc(tmp_path: Path) -> None:
    async with serving(tmp_path, access="tokens") as node:
        local = node.local["authorization"].removeprefix("Bearer ")
        async with client(node, local) as connection:
            put = await ask(connection, CONFIG_PUT, m.ConfigPutRequest(key="a", value=b"\xff"))
            got = await ask(connection, CONFIG_GET, m.ConfigGet(key="a"))
            assert (got.entry.value, got.entry.changed) == (b"\xff", put.changed)
            assert len((await ask(connection, MEMBERS_LIST, m.MembersList())).members) == 1
            made = await ask(connection, TOKEN_CREATE, m.TokenCreateRequest(name="a viewer", role="viewer"))
        with trio.fail_after(WAIT_SECONDS):
            while True:
                try:
                    async with client(node, made.token) as connection:
                        status = await ask(connection, STATUS, m.StatusGet())
                        assert status.node == node.node.identity.node
                        with pytest.raises(ConveyordError) as caught:
                            await ask(connection, CONFIG_PUT, m.ConfigPutRequest(key="a", value=b""))
                        assert caught.value.code == "FORBIDDEN"
                        return
                except Unwelcome:
                    await trio.sleep(0.01)


async def test_who_has_no_token_is_turned_away(tmp_path: Path) -> None:
    async with serving(tmp_path, access="tokens") as node:
        with pytest.raises(Unwelcome) as caught:
            async with client(node, "nonsense"):
                pass
        assert caught.value.code == "UNAUTHENTICATED"


REFUSED = [
    (b"", "MALFORMED_REQUEST"),
    (b"\xc1", "MALFORMED_REQUEST"),
    (msgspec.msgpack.encode({"key": "a", "more": 1}), "MALFORMED_REQUEST"),
    (msgspec.msgpack.encode({"key": 1}), "MALFORMED_REQUEST"),
    (msgspec.msgpack.encode({"key": "a b"}), "INVALID"),
    (msgspec.msgpack.encode({"key": "a"}), "NOT_FOUND"),
    (msgspec.msgpack.encode(("someone", "admin", {"key": "a"})), "MALFORMED_REQUEST"),
]


async def test_what_is_refused_has_the_same_code_by_rpc(tmp_path: Path) -> None:
    """The last one: only a node may speak for others."""
    async with serving(tmp_path) as node, client(node, None) as connection:
        for payload, code in REFUSED:
            with pytest.raises(ConveyordError) as caught:
                await connection.call(CONFIG_GET.rpc_method, payload, deadline_seconds=WAIT_SECONDS)
            assert caught.value.code == code, payload


def test_each_operation_has_a_method() -> None:
    assert len({operation.rpc_method for operation in OPERATIONS}) == len(OPERATIONS)


class Follower:
    """Follows events by streams that it breaks off after every few items."""

    def __init__(self, connection: Connection, *, wanted: int) -> None:
        """wanted: how many there will be."""
        self.wanted = wanted
        self._connection = connection
        self.cursor, self.history = 0, ""
        self.events: list[m.Event] = []

    async def follow(self, *, items: int) -> None:
        request = m.EventsAfter(after=self.cursor, history=self.history, topics="config", limit=5)
        async with self._connection.stream(WATCH, msgspec.msgpack.encode(request)) as stream:
            async for answer in stream:
                found = msgspec.msgpack.decode(answer.payload, type=m.Events)
                self.events += found.events
                self.cursor, self.history = found.through, found.history
                items -= 1
                if not items or len(self.events) >= self.wanted:
                    return


async def test_a_stream_of_events_misses_nothing_however_often_it_is_broken_off(tmp_path: Path) -> None:
    async with serving(tmp_path) as node, client(node, None) as connection:
        follower, last = Follower(connection, wanted=60), 0

        async def write() -> None:
            nonlocal last
            for number in range(60):
                put = await ask(connection, CONFIG_PUT, m.ConfigPutRequest(key=f"k/{number}", value=b"%d" % number))
                last = put.index

        with trio.fail_after(WAIT_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                while len(follower.events) < 60:
                    await follower.follow(items=3)
        assert [event.key for event in follower.events] == [f"k/{number}" for number in range(60)]
        assert [event.value for event in follower.events] == [b"%d" % number for number in range(60)]
        assert follower.events[-1].index == last


async def test_a_stream_that_cannot_go_on_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as node, client(node, None) as connection:
        await node.ask("PUT", "/settings/events_max", json={"value": 16})
        for number in range(40):
            await ask(connection, CONFIG_PUT, m.ConfigPutRequest(key=f"k/{number}", value=b""))
        for after, history, code in ((0, "", "COMPACTED"), (10**9, "", "BEHIND"), (0, "x", "BEHIND")):
            request = m.EventsAfter(after=after, history=history, topics="config")
            with pytest.raises(ConveyordError) as caught:
                async with connection.stream(WATCH, msgspec.msgpack.encode(request)) as stream:
                    async for _ in stream:
                        pass
            assert caught.value.code == code


async def test_a_stream_ends_when_the_node_is_stopped(tmp_path: Path) -> None:
    async with serving(tmp_path) as node, client(node, None) as connection:
        with trio.fail_after(WAIT_SECONDS), pytest.raises(Retryable):
            async with connection.stream(WATCH, msgspec.msgpack.encode(m.EventsAfter(after=0))) as stream:
                async for _ in stream:
                    node.stop.set()


async def test_a_token_that_was_revoked_is_of_no_use_on_a_connection_that_is_open(tmp_path: Path) -> None:
    async with serving(tmp_path, access="tokens") as node:
        local = node.local["authorization"].removeprefix("Bearer ")
        async with client(node, local) as admin:
            made = await ask(admin, TOKEN_CREATE, m.TokenCreateRequest(name="an operator", role="operator"))
            async with client(node, made.token) as operator:
                await ask(operator, CONFIG_PUT, m.ConfigPutRequest(key="a", value=b"1"))
                watching = msgspec.msgpack.encode(m.EventsAfter(after=0))
                async with operator.stream(WATCH, watching, deadline_seconds=WAIT_SECONDS) as stream:
                    await anext(stream)
                    await ask(admin, TOKEN_REVOKE, m.TokenRevokeRequest(id=made.id))
                    with pytest.raises(ConveyordError) as ended:
                        while True:
                            await anext(stream)
                    assert ended.value.code == "TOKEN_REVOKED"
                with pytest.raises(ConveyordError) as caught:
                    await ask(operator, CONFIG_PUT, m.ConfigPutRequest(key="a", value=b"2"))
                assert caught.value.code == "TOKEN_REVOKED"

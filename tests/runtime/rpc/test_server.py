"""Who is let in over real sockets, and what becomes of those who are not."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import trio

from conveyord.core.wire.frames import FrameDecoder, opening
from conveyord.core.wire.heads import AnyHead, Goodbye, Hello, Ping
from conveyord.runtime.rpc.dialing import dial, dial_once
from conveyord.runtime.rpc.greeting import HELLO_BYTES_MAX, Me
from conveyord.runtime.rpc.handlers import Admission, Answer, Handlers, Incoming
from conveyord.runtime.rpc.outcomes import Unwelcome
from conveyord.runtime.rpc.server import RpcServer
from tests.runtime.rpc.rpc_rig import CLUSTER, LIMITS, anyone, serving, side
from tests.runtime.rpc.test_calls import answering

HELLO = Me("x", 1, CLUSTER).hello("rpc", LIMITS)


async def heard(address: tuple[str, int], data: bytes) -> list[AnyHead]:
    """All that the server says to `data`, until it closes."""
    decoder, heads = FrameDecoder(1 << 20), []
    with trio.fail_after(60):
        stream = await trio.open_tcp_stream(*address)
        async with stream:
            await stream.send_all(data)
            async for received in stream:
                heads += [head for head, _ in decoder.receive(received)]
    return heads


@pytest.mark.parametrize(
    ("said", "code", "sentence"),
    [
        ({"cluster": "c-2"}, "FOREIGN_CLUSTER", "a belongs to cluster c-2, b to c-1"),
        ({"node": "b"}, "OWN_ID", "both sides are node 'b'"),
        ({"protocols": (2, 3)}, "PROTOCOL", "b speaks 1 to 1, a speaks 2 to 3"),
    ],
)
async def test_who_does_not_belong_is_refused_with_a_sentence(
    said: dict[str, object], code: str, sentence: str
) -> None:
    theirs, ours = side("b"), side("a", **said)
    async with serving(theirs) as (server, address):
        with pytest.raises(Unwelcome, match=sentence) as caught:
            async with dial_once(ours, address):
                pass
        assert caught.value.code == code
        assert theirs.counters.refused_connections == ours.counters.refused_connections == {code.lower(): 1}
        assert not server.connections


@pytest.mark.parametrize(("mine", "theirs", "spoken"), [((1, 1), (1, 2), 1), ((1, 2), (1, 1), 1), ((1, 2), (2, 3), 2)])
async def test_two_versions_speak_the_highest_that_both_know(
    mine: tuple[int, int], theirs: tuple[int, int], spoken: int
) -> None:
    accepting = side("b", answering()[0], protocols=theirs)
    async with (
        serving(accepting) as (server, address),
        dial_once(side("a", protocols=mine), address) as connection,
    ):
        assert (await connection.call("echo", b"on", deadline_seconds=30)).payload == b"on"
        [accepted] = server.connections
        assert connection.remote.protocol == accepted.remote.protocol == spoken


@pytest.mark.parametrize(("mine", "theirs"), [(None, CLUSTER), (CLUSTER, None), (None, None)])
async def test_a_node_without_a_cluster_may_meet_any(mine: str | None, theirs: str | None) -> None:
    async with (
        serving(side("b", answering()[0], cluster=theirs)) as (_, address),
        dial_once(side("a", cluster=mine), address) as connection,
    ):
        assert connection.remote.hello.cluster == theirs


async def test_the_owner_may_refuse_with_a_code_and_a_sentence() -> None:
    def admit(hello: Hello, names: frozenset[str] | None) -> Admission:
        if hello.credential != "secret":
            raise Unwelcome("TOKEN", "the token is not known; make one with a role that may join")
        return Admission(role="admin")

    theirs = side("b", answering()[0])
    async with serving(theirs, admit=admit) as (server, address):
        with pytest.raises(Unwelcome, match="the token is not known") as caught:
            await dial(side("a", credential="guess"), address)
        assert caught.value.code == "TOKEN"
        assert theirs.counters.refused_connections == {"token": 1}
        async with dial_once(side("a", credential="secret"), address):
            assert [connection.remote.admission.role for connection in server.connections] == ["admin"]


async def test_a_side_that_never_says_hello_is_let_go() -> None:
    theirs = side("b", limits=replace(LIMITS, hello_seconds=0.2))
    async with serving(theirs) as (_, address):
        for data in (b"", opening(HELLO)[:20]):
            [goodbye] = await heard(address, data)
            assert isinstance(goodbye, Goodbye)
            assert goodbye.code == "HELLO_DEADLINE"
        assert theirs.counters.refused_connections == {"hello_deadline": 2}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", "magic"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00", "magic"),
        (opening(Ping(1)), "unexpected"),
        (opening(HELLO, HELLO_BYTES_MAX), "oversize"),
    ],
)
async def test_what_is_no_hello_is_refused(data: bytes, reason: str) -> None:
    theirs = side("b")
    async with serving(theirs) as (_, address):
        [goodbye] = await heard(address, data)
        assert isinstance(goodbye, Goodbye)
        assert goodbye.code == reason.upper()
        assert theirs.counters.refused_frames == {reason: 1}


async def test_no_more_connections_than_the_limit() -> None:
    theirs = side("b", answering()[0], replace(LIMITS, connections_max=3))
    async with serving(theirs) as (server, address):
        async with dial_once(side("a"), address) as first, dial_once(side("c"), address), dial_once(side("d"), address):
            with pytest.raises(Unwelcome, match="has 3 connections") as caught:
                await dial(side("e"), address)
            assert caught.value.code == "TOO_MANY_CONNECTIONS"
            assert (await first.call("echo", b"on", deadline_seconds=30)).payload == b"on"
        with trio.fail_after(60):
            while server.connections:
                await trio.sleep(0.01)
        async with dial_once(side("e"), address):
            pass
        assert theirs.counters.refused_connections == {"too_many_connections": 1}


async def test_a_later_life_of_a_node_supersedes_the_one_before() -> None:
    theirs = side("b", answering()[0])
    async with serving(theirs) as (server, address):
        async with (
            dial_once(side("a", incarnation=4), address) as before,
            dial_once(side("c"), address) as other,
            dial_once(side("a", incarnation=5), address) as now,
        ):
            await now.call("echo", deadline_seconds=30)
            with trio.fail_after(60):
                while before.ending is None:
                    await trio.sleep(0.01)
            assert "has connected in a later life, 5" in before.ending.message
            with pytest.raises(Unwelcome, match="two processes run with one id") as caught:
                await dial(side("a", incarnation=4), address)
            assert caught.value.code == "STALE_INCARNATION"
            async with dial_once(side("a", incarnation=5), address, purpose="bulk"):
                assert len(server.connections) == 3
            await other.call("echo", deadline_seconds=30)
        assert theirs.counters.refused_connections == {"stale_incarnation": 1}
        assert theirs.counters.ended_connections["superseded"] == 1


async def test_the_server_asks_its_client_on_the_same_connection() -> None:
    calling = Handlers()

    async def ask_back(incoming: Incoming) -> bytes:
        [connection] = server.connections
        return (await connection.call("whoami", deadline_seconds=30)).payload

    calling.unary("ask back", ask_back)
    mine = Handlers()
    mine.inline("whoami", lambda _: b"a")
    async with serving(side("b", calling)) as (server, address), dial_once(side("a", mine), address) as connection:
        assert (await connection.call("ask back", deadline_seconds=30)).payload == b"a"


async def test_small_and_large_frames_both_ways_at_once() -> None:
    async def echo(incoming: Incoming) -> Answer:
        return Answer(incoming.payload, incoming.body)

    handlers = Handlers()
    handlers.unary("echo", echo)
    theirs = side("b", handlers)
    random = Random(3)
    sizes = [random.choice([0, 10, 3000, 60_000, 140_000, 300_000, 900_000]) for _ in range(300)]
    async with (
        serving(theirs) as (server, address),
        dial_once(side("a", handlers), address) as connection,
        trio.open_nursery() as nursery,
    ):
        [accepted] = server.connections

        async def ask(number: int, size: int) -> None:
            asked = connection if number % 2 else accepted
            payload = bytes([number % 251]) * (size // 3)
            body = bytes([number % 256]) * (size - len(payload))
            answer = await asked.call("echo", payload, body, deadline_seconds=120)
            assert (answer.payload, bytes(answer.body)) == (payload, body)

        for number, size in enumerate(sizes):
            nursery.start_soon(ask, number, size)
    assert not theirs.counters.refused_frames
    assert set(theirs.counters.ended_connections) <= {"goodbye", "closed", "shutdown"}


async def test_a_server_that_stops_says_so() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listeners[0].socket.getsockname()[:2]
    server, drain, done = RpcServer(side("b"), anyone), trio.Event(), trio.Event()

    async def serve() -> None:
        await server.serve(listeners, drain=drain)
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with dial_once(side("a"), address) as connection:
            drain.set()
            with trio.fail_after(60):
                await done.wait()
                while connection.ending is None:
                    await trio.sleep(0.01)
            assert "the node stops" in connection.ending.message
        assert not server.connections

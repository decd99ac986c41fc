"""A peer comes, goes, and is dialled again; in between calls fail safely and messages are dropped."""

from __future__ import annotations

import contextlib
from random import Random

import pytest
import trio
import trio.lowlevel
import trio.testing

from conveyord.core.errors import Retryable
from conveyord.core.retry import Backoff
from conveyord.core.wire.heads import Hello
from conveyord.runtime.rpc import peer as peer_module
from conveyord.runtime.rpc.connection import Connection
from conveyord.runtime.rpc.dialing import dial_once
from conveyord.runtime.rpc.greeting import BULK, RPC
from conveyord.runtime.rpc.handlers import Admission
from conveyord.runtime.rpc.outcomes import DeadlineOver, Unwelcome
from conveyord.runtime.rpc.peer import BACKOFF, HURRY_SECONDS, Peer
from conveyord.runtime.rpc.server import RpcServer
from tests.runtime.rpc.rpc_rig import anyone, serving, side
from tests.runtime.rpc.test_calls import answering

SOON = Backoff(base_seconds=0.01, cap_seconds=0.05)


class Unreachable:
    """Stands where `dial` does: an address at which nobody answers. Real ones would not know the clock that jumps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.attempts: list[float] = []
        monkeypatch.setattr(peer_module, "dial", self)

    async def __call__(self, *_: object, **__: object) -> Connection:
        self.attempts.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        raise Retryable("nobody answers")


async def test_waits_grow_with_full_jitter(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    nobody, twin = Unreachable(monkeypatch), Random(7)
    peer = Peer(side("a"), ("nowhere", 1), Random(7))
    with trio.move_on_after(60):
        await peer.run()
    waits = [later - sooner for sooner, later in zip(nobody.attempts, nobody.attempts[1:], strict=False)]
    assert len(waits) > 10
    expected = [BACKOFF.delay_seconds(number, twin) for number in range(1, len(waits) + 1)]
    assert waits == pytest.approx(expected, abs=1e-6)
    assert max(waits) <= BACKOFF.cap_seconds


async def test_two_peers_do_not_wait_alike(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    histories = []
    for seed in (1, 2):
        nobody = Unreachable(monkeypatch)
        with trio.move_on_after(10):
            await Peer(side("a"), ("nowhere", 1), Random(seed)).run()
        histories.append([round(at - nobody.attempts[0], 6) for at in nobody.attempts])
    assert histories[0][1:] != histories[1][1:]


async def test_a_call_dials_at_once_and_tells_why_it_failed(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    nobody = Unreachable(monkeypatch)
    peer = Peer(side("a"), ("nowhere", 1), Random(1), backoff=Backoff(base_seconds=1000, cap_seconds=1000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nobody.attempts) == 1
        await trio.sleep(1)
        began = trio.current_time()
        with pytest.raises(Retryable, match="nobody answers"):
            await peer.call("echo", deadline_seconds=5)
        assert trio.current_time() == began
        assert len(nobody.attempts) == 2
        with pytest.raises(Retryable, match="nobody answers"):
            async with peer.stream("watch"):
                pass
        assert peer.send("note", b"") is False
        await trio.testing.wait_all_tasks_blocked()
        assert len(nobody.attempts) == 2
        nursery.cancel_scope.cancel()


async def test_callers_in_a_hurry_do_not_make_it_dial_without_pause(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    nobody = Unreachable(monkeypatch)
    peer = Peer(side("a"), ("nowhere", 1), Random(1))

    async def insist() -> None:
        while True:
            with contextlib.suppress(Retryable):
                await peer.call("echo", deadline_seconds=5)

    with trio.move_on_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.run)
            for _ in range(5):
                nursery.start_soon(insist)
    assert 100 < len(nobody.attempts) <= 1.1 * 10 / HURRY_SECONDS


async def test_a_call_without_anyone_who_dials_ends_with_its_deadline(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(Retryable, match="within its deadline"):
        await Peer(side("a"), ("nowhere", 1), Random(1)).call("echo", deadline_seconds=3)
    assert trio.current_time() == pytest.approx(3, abs=0.01)


async def test_a_peer_comes_and_goes_and_comes_again() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listeners[0].socket.getsockname()[:2]
    told: list[bool] = []
    ours = side("a")
    peer = Peer(
        ours,
        address,
        Random(1),
        expects="b",
        backoff=SOON,
        on_change=lambda _, connection: told.append(connection is not None),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        for life in (1, 2, 3):
            if life > 1:
                listeners = await trio.open_tcp_listeners(address[1], host="127.0.0.1")
            drain, done = trio.Event(), trio.Event()

            async def serve() -> None:
                server = RpcServer(side("b", answering()[0]), anyone)
                await server.serve(listeners, drain=drain)  # noqa: B023 - run within this turn of the loop
                done.set()  # noqa: B023

            nursery.start_soon(serve)
            with trio.fail_after(60):
                while True:
                    try:
                        assert (await peer.call("echo", b"on", deadline_seconds=30)).payload == b"on"
                        break
                    except Retryable:
                        await trio.sleep(0.01)
                assert told == [True, False] * (life - 1) + [True]
                drain.set()
                await done.wait()
                while peer.connection is not None:
                    await trio.sleep(0.01)
        assert "the node stops" in peer.reason or "cannot be reached" in peer.reason
        nursery.cancel_scope.cancel()
    assert told == [True, False] * 3


async def test_a_call_that_was_sent_and_is_late_is_never_called_safe_to_repeat() -> None:
    handlers, seen = answering()
    async with serving(side("b", handlers)) as (_, address):
        peer = Peer(side("a"), address, Random(1), expects="b")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.run)
            for seconds in (0.3, 0.01, 0.02, 0.03):
                with trio.fail_after(60), pytest.raises(DeadlineOver):
                    await peer.connected()
                    await peer.call("sleep", deadline_seconds=seconds)
            nursery.cancel_scope.cancel()
    assert len(seen["began"]) == 4


async def test_a_refusal_of_any_code_does_not_add_to_what_is_counted() -> None:
    def admit(hello: Hello, names: frozenset[str] | None) -> Admission:
        raise Unwelcome(f"CODE_{hello.incarnation}", "never")

    ours = side("a")
    async with serving(side("b"), admit=admit) as (_, address):
        for _ in range(3):
            with pytest.raises(Unwelcome, match="never"):
                async with dial_once(ours, address):
                    pass
    assert ours.counters.refused_connections == {"other": 3}


async def test_another_node_at_the_address_is_refused_and_counted() -> None:
    ours = side("a")
    async with serving(side("c")) as (server, address):
        peer = Peer(ours, address, Random(1), expects="b", backoff=SOON)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.run)
            with (
                trio.fail_after(60),
                pytest.raises(Retryable, match="'b' was expected at this address, but 'c' is there"),
            ):
                await peer.call("echo", deadline_seconds=30)
            nursery.cancel_scope.cancel()
    assert ours.counters.refused_connections["wrong_node"] >= 1
    assert not server.connections


async def test_a_second_connection_has_a_purpose_of_its_own() -> None:
    heard: list[Hello] = []

    def admit(hello: Hello, names: frozenset[str] | None) -> Admission:
        heard.append(hello)
        return Admission()

    ours = side("a", credential="secret")
    async with (
        serving(side("b", answering()[0]), admit=admit) as (_, address),
        dial_once(ours, address) as rpc,
        dial_once(ours, address, purpose=BULK) as bulk,
    ):
        assert (await bulk.call("echo", b"", bytes(500_000), deadline_seconds=30)).body == bytes(500_000)
        assert (await rpc.call("echo", b"on", deadline_seconds=30)).payload == b"on"
    assert [hello.purpose for hello in heard] == [RPC, BULK]
    assert {hello.credential for hello in heard} == {"secret"}


async def test_a_failure_in_the_block_of_a_client_is_raised_as_it_is() -> None:
    async with serving(side("b", answering()[0])) as (_, address):
        with pytest.raises(KeyError, match="mine"):
            async with dial_once(side(""), address):
                raise KeyError("mine")
        with trio.move_on_after(0.05) as scope:
            async with dial_once(side(""), address) as connection:
                await connection.call("sleep", deadline_seconds=100)
        assert scope.cancelled_caught


async def test_nobody_at_an_address_is_retryable() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listeners[0].socket.getsockname()[:2]
    await listeners[0].aclose()
    with pytest.raises(Retryable, match="cannot be reached"):
        async with dial_once(side(""), address):
            pass
    with pytest.raises((Retryable, Unwelcome)):
        async with dial_once(side(""), ("no-such-host.invalid", 1)):
            pass

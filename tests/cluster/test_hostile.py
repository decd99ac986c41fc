"""What a node of real processes takes from strangers: it counts and refuses, and goes on."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import msgspec
import pytest
import trio

from conveyord.core.errors import ConveyordError
from conveyord.runtime.rpc.dialing import dial, dial_once
from conveyord.runtime.rpc.greeting import Me, Side
from conveyord.runtime.rpc.handlers import Handlers
from conveyord.runtime.rpc.limits import Counters, Limits
from conveyord.runtime.rpc.outcomes import Unwelcome
from tests.cluster.processes import NodeProcess, processes, until
from tests.cluster.test_processes import THREE, get, put

STREAMS = 10_000
GROWTH_BYTES_MAX = 64 * 1024 * 1024


def address_of(node: NodeProcess) -> tuple[str, int]:
    host, _, port = node.rpc.rpartition(":")
    return host, int(port)


def side_of(me: Me) -> Side:
    return Side(lambda: me, Handlers(), Limits(), Counters())


def rss_bytes(node: NodeProcess) -> int:
    assert node.process is not None
    pages = int(Path(f"/proc/{node.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_rubbish_and_half_open_connections(tmp_path: Path) -> None:
    random = Random(5)
    with processes(tmp_path) as made:
        made.found("a")
        node = made.nodes["a"]
        before = rss_bytes(node)
        held = list[socket.socket]()
        for number in range(300):
            one = socket.create_connection(address_of(node), timeout=10.0)
            rubbish = [
                random.randbytes(random.randrange(1, 2_000)),
                (2**31 - 1).to_bytes(4, "big") + b"\x00" * 16,  # a frame that never ends
                b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                b"",
            ][number % 4]
            with suppress(OSError):
                one.sendall(rubbish)
            held.append(one)
        put(node, "k", b"v")
        for one in held:
            one.close()
        assert get(node, "k") == b"v"
        assert rss_bytes(node) - before < GROWTH_BYTES_MAX


def test_who_says_that_it_is_a_node_of_another_cluster_or_this_one(tmp_path: Path) -> None:
    async def refused(node: NodeProcess, me: Me) -> str:
        with pytest.raises(Unwelcome) as caught:
            async with dial_once(side_of(me), address_of(node)):
                pass
        return caught.value.code

    with processes(tmp_path) as made:
        made.add("a", settings={"cluster": {"secret": "s3cret"}})
        made.found("a")
        node = made.nodes["a"]
        assert trio.run(refused, node, Me("x", 1, "c-elsewhere", "s3cret")) == "FOREIGN_CLUSTER"
        assert trio.run(refused, node, Me("x", 1, None, "guess")) == "WRONG_SECRET"
        assert trio.run(refused, node, Me("a", 9, None, "s3cret")) == "OWN_ID"
        assert get_or_put(node) == b"v"


def get_or_put(node: NodeProcess) -> bytes:
    put(node, "k", b"v")
    return get(node, "k")


@pytest.mark.check
def test_a_client_that_opens_ten_thousand_streams(tmp_path: Path) -> None:
    request = msgspec.msgpack.encode({"after": 0})

    async def open_many(node: NodeProcess) -> tuple[int, int]:
        opened = refused = 0
        connection = await dial(side_of(Me("", 1, None, node.token())), address_of(node))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)

            async def one() -> None:
                nonlocal opened, refused
                try:
                    async with connection.stream("api.watch", request) as stream:
                        await stream.__anext__()
                        opened += 1
                        await trio.sleep_forever()
                except ConveyordError:
                    refused += 1

            for _ in range(STREAMS):
                nursery.start_soon(one)
            with trio.fail_after(60):
                while opened + refused < STREAMS:
                    await trio.sleep(0.1)
            found = opened, refused
            nursery.cancel_scope.cancel()
        return found

    with processes(tmp_path) as made:
        made.found("a")
        node = made.nodes["a"]
        put(node, "k", b"v")
        before = rss_bytes(node)
        opened, refused = trio.run(open_many, node)
        assert opened > 0
        assert refused > STREAMS // 2
        assert opened + refused == STREAMS
        assert get(node, "k") == b"v"
        assert rss_bytes(node) - before < GROWTH_BYTES_MAX


def test_a_node_on_the_data_of_another_cluster_is_refused(tmp_path: Path) -> None:
    with processes(tmp_path) as made:
        made.found("a")
        other = made.add("x")
        other.start()
        until(lambda: other.status().get("phase") == "member", made.seen)
        assert other.stop() == 0
        stranger = made.add("y", settings={"cluster": {"join": [made.nodes["a"].rpc]}})
        shutil.copytree(other.data, stranger.data)
        identity = json.loads((stranger.data / "node.json").read_text())
        assert identity["node"] == "x"
        stranger.start()
        until(lambda: not stranger.is_up, made.seen)  # it is node y by its settings, x by its data
        assert "belongs to node x" in stranger.log.read_text()


@pytest.mark.check
def test_clocks_that_are_hours_apart(tmp_path: Path) -> None:
    with processes(tmp_path) as made:
        for name, seconds in {"a": -5 * 3600, "b": 0, "c": 7 * 3600}.items():
            made.add(name, prefix=("env", f"CLOCK_WRONG_SECONDS={seconds}"), module="tests.cluster.other_clock")
        made.found("abc")
        for name in "abc":
            put(made.nodes[name], f"k{name}", b"v")
        leader = made.until_leader()
        leader.kill()
        other = made.until_leader(other_than=leader.name)
        put(other, "after", b"v")
        leader.start()
        row = f"/members/{leader.name}"  # what it said before it was killed counts until it says that it is there again
        until(lambda: other.ask("GET", row)[1].get("member", {}).get("incarnation") == 2, made.seen)
        made.until_members(THREE)
        time.sleep(1.0)
        assert made.members() == THREE  # nobody is taken for dead by somebody else's clock
        assert all(get(node, "after") == b"v" for node in made.nodes.values())

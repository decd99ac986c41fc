"""Clients on every node while processes are killed, frozen and cut off: what they are told is linearizable."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from conveyord.runtime.rpc.tls import TlsFiles
from tests.cluster.cutting import CuttingProxy
from tests.cluster.histories import Clients
from tests.cluster.processes import NodeProcess, Processes, processes, until
from tests.runtime.rpc.node_certificates import NodeAuthority

VOTER = ("voter", "ready")
TROUBLE_SECONDS = 12.0  # of trouble in one life: half a dozen kills, freezes or cuts

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and network namespaces need root")


Troubles = Callable[[NodeProcess], list[Callable[[], None]]]
"""What makes trouble for a node, and what ends it."""


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)


def lived_through(
    made: Processes,
    names: str,
    random: Random,
    troubles: Callable[[NodeProcess], list[Callable[[], None]]],
) -> Clients:
    """One trouble after the other, each of one node, while clients ask; then all is well again."""
    clients = Clients(list(made.nodes.values()) * 2, random.randrange(2**32))
    clients.start()
    deadline = time.monotonic() + TROUBLE_SECONDS
    try:
        while time.monotonic() < deadline:
            trouble, mend = troubles(made.nodes[random.choice(names)])
            trouble()
            time.sleep(random.uniform(0.1, 2.5))
            mend()
            time.sleep(random.uniform(0.0, 1.5))
        made.until_members(dict.fromkeys(names, VOTER))
        answered = clients.answered
        until(lambda: clients.answered > answered + 20, "clients are answered again")
    finally:
        clients.end()
    return clients


@pytest.mark.check
@pytest.mark.parametrize(("names", "seed"), [("abc", 1), ("abc", 2), ("abcde", 3)])
def test_nodes_are_killed_and_frozen(tmp_path: Path, names: str, seed: int) -> None:
    random = Random(seed)

    def troubles(node: NodeProcess) -> list[Callable[[], None]]:
        if random.random() < 0.5:
            return [node.kill, node.start]
        return [partial(node.signal, signal.SIGSTOP), partial(node.signal, signal.SIGCONT)]

    with processes(tmp_path) as made:
        made.found(names)
        clients = lived_through(made, names, random, troubles)
        clients.check()
        assert clients.answered > 100, (clients.answered, clients.unknown, clients.refused)


@pytest.mark.check
@pytest.mark.parametrize("seed", [1, 2])
def test_connections_to_nodes_hang_and_end(tmp_path: Path, seed: int) -> None:
    """Each is reached by way of a proxy: what is cut is one direction of dialling, so nodes see different things."""
    random = Random(seed)
    with processes(tmp_path) as made:
        proxies = dict[str, CuttingProxy]()
        for name in "abc":
            node = made.add(name)
            host, _, port = node.rpc.rpartition(":")
            proxies[name] = CuttingProxy((host, int(port)))
            node.settings["rpc"] = {"advertise": proxies[name].address}

        def troubles(node: NodeProcess) -> list[Callable[[], None]]:
            proxy = proxies[node.name]
            return [random.choice([proxy.hang, proxy.cut]), proxy.heal]

        try:
            made.found("abc")
            clients = lived_through(made, "abc", random, troubles)
        finally:
            for proxy in proxies.values():
                proxy.close()
        clients.check()
        assert clients.answered > 100, (clients.answered, clients.unknown, clients.refused)


@contextmanager
def namespaces(names: str) -> Iterator[dict[str, str]]:
    """A network namespace for each name, joined by a bridge in one of their own; the address of each."""
    tag = f"cv{os.getpid() % 10_000}"
    bridge = f"{tag}br"
    run("ip", "link", "add", bridge, "type", "bridge")
    try:
        run("ip", "addr", "add", "10.213.7.1/24", "dev", bridge)
        run("ip", "link", "set", bridge, "up")
        addresses = dict[str, str]()
        for number, name in enumerate(names, start=2):
            space, outer, inner = f"{tag}{name}", f"{tag}{name}o", f"{tag}{name}i"
            run("ip", "netns", "add", space)
            run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner)
            run("ip", "link", "set", inner, "netns", space)
            run("ip", "link", "set", outer, "master", bridge, "up")
            addresses[name] = f"10.213.7.{number}"
            run("ip", "-n", space, "addr", "add", f"{addresses[name]}/24", "dev", inner)
            run("ip", "-n", space, "link", "set", inner, "up")
            run("ip", "-n", space, "link", "set", "lo", "up")
        yield addresses
    finally:
        for name in names:
            subprocess.run(["ip", "link", "del", f"{tag}{name}o"], check=False, capture_output=True)
            subprocess.run(["ip", "netns", "del", f"{tag}{name}"], check=False, capture_output=True)
        run("ip", "link", "del", bridge)


def certified(files: TlsFiles) -> dict[str, dict[str, Any]]:
    own = {"certificate": str(files.certificate), "key": str(files.key)}
    return {"rpc.tls": {**own, "ca": str(files.ca)}, "http.tls": own}


@needs_root
@pytest.mark.check
@pytest.mark.skipif(shutil.which("ip") is None, reason="needs iproute2")
def test_nodes_are_cut_off_from_the_network(tmp_path: Path) -> None:
    """A node in a namespace whose link goes down: nobody hears anything of it, and no connection ends.

    Off loopback they want certificates of each other, and tokens by TLS of who asks.
    """
    random = Random(7)
    tag = f"cv{os.getpid() % 10_000}"
    authority = NodeAuthority(tmp_path)
    with namespaces("abc") as addresses, processes(tmp_path) as made:
        for name, address in addresses.items():
            made.add(
                name,
                rpc=f"{address}:7400",
                http=f"{address}:7480",
                prefix=("ip", "netns", "exec", f"{tag}{name}"),
                settings={"http": {"access": "tokens"}, **certified(authority.issue(name))},
                is_encrypted=True,
            )

        def troubles(node: NodeProcess) -> list[Callable[[], None]]:
            link = f"{tag}{node.name}o"
            return [partial(run, "ip", "link", "set", link, state) for state in ("down", "up")]

        made.found("abc")
        clients = lived_through(made, "abc", random, troubles)
        clients.check()
        assert clients.answered > 100, (clients.answered, clients.unknown, clients.refused)

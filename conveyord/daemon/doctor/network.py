"""Whether the ports are free, and what nodes say that this one is to join."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import msgspec

from conveyord import __version__
from conveyord.cluster.settings import parse_address
from conveyord.config.model import Config
from conveyord.config.values import Address
from conveyord.core.errors import ConveyordError
from conveyord.core.wire.heads import FrameRefused
from conveyord.daemon.clock import CLOCK
from conveyord.daemon.doctor.findings import Finding
from conveyord.daemon.listening import refusal
from conveyord.daemon.services import rpc_tls
from conveyord.runtime.rpc.dialing import dial_once
from conveyord.runtime.rpc.greeting import Me, Side
from conveyord.runtime.rpc.handlers import Handlers
from conveyord.runtime.rpc.limits import Counters, Limits
from conveyord.runtime.rpc.outcomes import Unwelcome
from conveyord.runtime.rpc.tls import TlsContexts
from conveyord.storage.identity import Identity

CALL_SECONDS = 3.0


def look_at_ports(config: Config, holder: int | None) -> Iterator[Finding]:
    """Blocking, for a moment. holder: the process that runs on this node's data, and has the ports then."""
    for part, address in (("rpc", config.rpc.listen_address), ("http", config.http.listen_address)):
        check = f"port of {part.upper()}"
        if holder is not None:
            yield Finding(check, "info", f"not looked at: process {holder} runs this node")
            continue
        try:
            _try_to_listen(address)
        except OSError as error:
            yield Finding(check, "wrong", refusal(address, error, f"--{part}"))
        else:
            yield Finding(check, "ok", f"{address} is free")


def _try_to_listen(address: Address) -> None:
    """Raise OSError if it cannot be."""
    family, kind, protocol, _, place = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, kind, protocol) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(place)
        one.listen(1)


async def look_at_others(config: Config, identity: Identity | None, *, is_running: bool) -> list[Finding]:
    """Say hello to each node that is to be joined, as this node would.

    is_running: whether it runs already; then a second hello in its name would cut its own connections, so a client says
    it. Raises ConfigError for certificates and secrets that cannot be used.
    """
    own = {config.rpc.listen, config.rpc.advertise}
    secret, tls = config.resolved_secret() or None, rpc_tls(config.rpc.tls)
    if is_running or identity is None:
        me = Me("" if is_running else config.node.id, 0, None, secret, __version__)
    else:
        me = Me(identity.node, identity.incarnation + 1, identity.cluster, secret, __version__)
    side = Side(lambda: me, Handlers(), Limits(), Counters())
    return [await _greeted(side, target, tls) for target in config.cluster.join if target not in own]


async def _greeted(side: Side, target: str, tls: TlsContexts | None) -> Finding:
    check = f"node at {target}"
    try:
        async with dial_once(side, parse_address(target), tls=tls) as connection:
            hello, sent = connection.remote.hello, time.time()
            answer = await connection.call(CLOCK, deadline_seconds=CALL_SECONDS)
            clock = msgspec.msgpack.decode(answer.payload, type=float) - (sent + time.time()) / 2
    except Unwelcome as refused:
        is_client = not side.me().node
        remedy = "" if is_client else "the node would be refused likewise; the sentence says by whom, and why"
        return Finding(check, "info" if is_client else "wrong", f"{refused} ({refused.code})", remedy)
    except (ConveyordError, FrameRefused) as error:
        return Finding(check, "warning", str(error), "one that is reached is enough; start it, or check the address")
    where = f"cluster {hello.cluster}" if hello.cluster else "no cluster yet"
    return Finding(
        check,
        "ok",
        f"it is node {hello.node} of {where}, conveyord {hello.software}; its clock is {clock:+.3f} s off ours, which "
        "nothing rests on",
    )

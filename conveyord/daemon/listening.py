"""Listening, before anything else is begun: a port that is taken is the mistake that is made most often."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from conveyord.config.model import Config
from conveyord.config.values import Address
from conveyord.core.errors import ConfigError
from conveyord.runtime.http_server import close_all, listen


@dataclass(frozen=True, slots=True)
class Listening:
    """Both ports of a node, open. rpc_address, http_address: where others reach them."""

    rpc: list[trio.SocketListener]
    http: list[trio.SocketListener]
    rpc_address: Address
    http_address: Address


@asynccontextmanager
async def listening(config: Config) -> AsyncIterator[Listening]:
    """Listen where `config` says; closed at the end, if not before. Raises ConfigError naming the key and the flag."""
    rpc = await _listen(config.rpc.listen_address, "rpc")
    http: list[trio.SocketListener] = []
    try:
        http = await _listen(config.http.listen_address, "http")
        yield Listening(
            rpc, http, config.rpc.advertised(_address_of(rpc[0])), config.http.advertised(_address_of(http[0]))
        )
    finally:
        close_all([*rpc, *http])


async def _listen(address: Address, part: str) -> list[trio.SocketListener]:
    try:
        return await listen(*address)
    except OSError as error:
        raise ConfigError(f"{part}.listen: {refusal(address, error, f'--{part}')}") from error


def refusal(address: Address, error: OSError, flag: str) -> str:
    """Why nobody can listen at an address, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return (
            f"another process listens at {address}; stop it, or take another port with {flag} HOST:PORT, where port 0 "
            "is any free one"
        )
    if error.errno == errno.EACCES:
        return f"{address} is not for this user; ports below 1024 need the capability CAP_NET_BIND_SERVICE"
    reason = error.strerror or str(error)
    return f"{address} cannot be listened at: {reason}; name an address of this machine with {flag} HOST:PORT"


def _address_of(listener: trio.SocketListener) -> Address:
    host, port = listener.socket.getsockname()[:2]
    return Address(host, port)

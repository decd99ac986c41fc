"""Connecting to an address: once, for clients and for bulk transfers; `peer` does it again and again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from conveyord.core.errors import Retryable
from conveyord.runtime.rpc.connection import GOODBYE_SECONDS, Connection
from conveyord.runtime.rpc.greeting import RPC, Side, greet
from conveyord.runtime.rpc.outcomes import Unwelcome
from conveyord.runtime.rpc.tls import TlsContexts, TlsTransport
from conveyord.runtime.rpc.transport import SocketTransport

Address = tuple[str, int]


async def dial(
    side: Side, address: Address, *, tls: TlsContexts | None = None, purpose: str = RPC, expects: str | None = None
) -> Connection:
    """A connection that is greeted and not run yet. expects: the id of the node that must be there.

    Raises Retryable if nobody answers, Unwelcome if one of the two sides does not want it, FrameRefused if what is
    there speaks something else. Refusals are counted.
    """
    host, port = address
    try:
        with trio.fail_after(side.limits.hello_seconds):
            bare = SocketTransport(await trio.open_tcp_stream(host, port))
            return await _met(side, bare, tls, purpose, expects)
    except (OSError, trio.BrokenResourceError) as error:
        raise Retryable(f"{host}:{port} cannot be reached: {error}") from error
    except trio.TooSlowError:
        seconds = side.limits.hello_seconds
        raise Retryable(f"{host}:{port} did not answer within {seconds:g} s") from None


async def _met(
    side: Side, bare: SocketTransport, tls: TlsContexts | None, purpose: str, expects: str | None
) -> Connection:
    connection: Connection | None = None
    try:
        if tls is None:
            connection = await greet(side, bare, None, purpose=purpose, expects=expects)
        else:
            encrypted = TlsTransport(bare, tls.context(server_side=False), server_side=False)
            try:
                names = await encrypted.handshake()
            except Unwelcome as refusal:
                side.count(refusal)
                raise
            connection = await greet(side, encrypted, names, purpose=purpose, expects=expects)
        return connection
    finally:
        if connection is None:
            with trio.move_on_after(GOODBYE_SECONDS, shield=True):
                await bare.aclose()


@asynccontextmanager
async def dial_once(
    side: Side, address: Address, *, tls: TlsContexts | None = None, purpose: str = RPC, expects: str | None = None
) -> AsyncIterator[Connection]:
    """A connection for the time of a block. Raises as `dial`. When the connection breaks, what is asked of it fails."""
    connection = await dial(side, address, tls=tls, purpose=purpose, expects=expects)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        try:
            yield connection
        except Exception as error:  # noqa: BLE001 - raised below, where the nursery does not make a group of it
            failure = error
        finally:
            connection.cut("shutdown", "the client is done")
    if failure is not None:
        raise failure

"""Connecting to an address: once, for clients and for bulk transfers; `peer` does it again and again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from conveyord.core.errors import Retryable
from conveyord.core.wire.heads import FrameRefused
from conveyord.runtime.rpc.connection import GOODBYE_SECONDS, Connection
from conveyord.runtime.rpc.greeting import RPC, Side, greet
from conveyord.runtime.rpc.outcomes import Unwelcome
from conveyord.runtime.rpc.tls import TlsContexts, TlsTransport
from conveyord.runtime.rpc.transport import SocketTransport, Transport

Address = tuple[str, int]


async def dial(
    side: Side, address: Address, *, tls: TlsContexts | None = None, purpose: str = RPC, expects: str | None = None
) -> Connection:
    """A connection that is greeted and not run yet. expects: the id of the node that must be there.

    Raises Retryable if nobody answers, Unwelcome if one of the two sides does not want it, FrameRefused if what is
    there speaks something else. Refusals are counted.
    """
    host, port = address
    transport: Transport | None = None
    try:
        with trio.fail_after(side.limits.hello_seconds):
            transport = SocketTransport(await trio.open_tcp_stream(host, port))
            names = None
            if tls is not None:
                transport = encrypted = TlsTransport(transport, tls.context(server_side=False), server_side=False)
                names = await encrypted.handshake()
            return await greet(side, transport, names, purpose=purpose, expects=expects)
    except BaseException as error:
        if transport is not None:
            with trio.move_on_after(GOODBYE_SECONDS, shield=True):
                await transport.aclose()
        if isinstance(error, OSError | trio.BrokenResourceError):
            raise Retryable(f"{host}:{port} cannot be reached: {error}") from error
        if isinstance(error, trio.TooSlowError):
            seconds = side.limits.hello_seconds
            raise Retryable(f"{host}:{port} did not answer within {seconds:g} s") from None
        if isinstance(error, Unwelcome):
            side.counters.refused_connections[error.code.lower()] += 1
        elif isinstance(error, FrameRefused):
            side.counters.refused_frames[error.reason] += 1
        raise


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

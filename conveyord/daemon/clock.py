"""What time a node has, for `conveyord doctor` to compare. Nothing rests on it."""

from __future__ import annotations

import time

import msgspec

from conveyord.runtime.rpc.handlers import Incoming

CLOCK = "node.clock"


def tell_time(_: Incoming) -> bytes:
    """Unix time in seconds, as a msgpack float. A handler that is run inline."""
    return msgspec.msgpack.encode(time.time())

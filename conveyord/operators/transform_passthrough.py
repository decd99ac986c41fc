"""Transform `passthrough`: messages go on as they came."""

from __future__ import annotations

import trio

from conveyord.engine.contracts import OperatorConfig, Transform
from conveyord.engine.messages import Eos, Message


class PassthroughConfig(OperatorConfig):
    """Passes every row on unchanged. Useful as a named point in a graph, and to measure a hop."""


class PassthroughTransform(Transform):
    """See docs/operators.md. Needs no thread: it never looks at a batch."""

    Config = PassthroughConfig
    pure = True

    async def run(self, inbound: trio.MemoryReceiveChannel[Message], outbound: trio.MemorySendChannel[Message]) -> None:
        """See `Transform.run`."""
        async for message in inbound:
            if isinstance(message, Eos):
                return
            await outbound.send(message)

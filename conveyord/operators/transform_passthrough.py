"""Transform `passthrough`: messages go on as they came."""

from __future__ import annotations

from conveyord.engine.contracts import Inbound, OperatorConfig, Outbound, Transform
from conveyord.engine.messages import Eos


class PassthroughConfig(OperatorConfig):
    """Passes every row on unchanged. Useful as a named point in a graph, and to measure a hop."""


class PassthroughTransform(Transform):
    """See docs/operators.md. Needs no thread: it never looks at a batch."""

    Config = PassthroughConfig
    pure = True

    async def run(self, inbound: Inbound, outbound: Outbound) -> None:
        """See `Transform.run`."""
        async for message in inbound:
            if isinstance(message, Eos):
                return
            await outbound.send(message)

"""A stage's end of its inbound channel."""

from __future__ import annotations

import trio

from conveyord.engine.channel import Receiver
from conveyord.engine.gate import Gate
from conveyord.engine.messages import Batch, Eos, Message


class StageInbound(trio.abc.ReceiveChannel[Message]):
    """Receives what the gate admits, then `Eos` once, when every sender has closed."""

    def __init__(self, channel: Receiver, gate: Gate | None = None) -> None:
        self._channel = channel
        self._gate = gate
        self._ended = False

    async def receive(self) -> Message:
        """See trio.abc.ReceiveChannel."""
        while True:
            try:
                message = await self._channel.receive()
            except trio.EndOfChannel:
                if self._ended:
                    raise
                self._ended = True
                return Eos()
            if self._gate is None or not isinstance(message, Batch):
                return message
            admitted = self._gate.admit(message)
            if admitted is not None:
                return admitted

    async def aclose(self) -> None:
        """See trio.abc.ReceiveChannel."""
        self._channel.close()

    def close(self) -> None:
        """Stop listening; whoever sends next finds out."""
        self._channel.close()

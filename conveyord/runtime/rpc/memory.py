"""Memory for the bodies of large frames. It is used again, because memory that is fresh from the kernel has to be
faulted in page by page, which takes longer than the transfer does.
"""

from __future__ import annotations

import sys

BLOCK_BYTES = 64 * 1024  # sizes are rounded up to multiples of this, so that blocks fit again
KEPT_BYTES_MAX = 16 * 1024 * 1024
OURS = 3  # references to a block that nobody else holds: the list, the loop, and the call that counts them


class Memory:
    """Blocks that are kept once nobody holds them, `kept_bytes_max` in all. For one event loop."""

    def __init__(self, kept_bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._kept_bytes_max = kept_bytes_max
        self._blocks: list[bytearray] = []
        self.kept_bytes = 0

    def allocate(self, size: int) -> bytearray:
        """At least `size` bytes, of any content. They are ours again when the last view of them is gone."""
        for block in self._blocks:
            if size <= len(block) <= 2 * size and sys.getrefcount(block) == OURS:
                return block
        block = bytearray(-(-size // BLOCK_BYTES) * BLOCK_BYTES)
        if len(block) <= self._kept_bytes_max:
            self._blocks.append(block)
            self.kept_bytes += len(block)
            while self.kept_bytes > self._kept_bytes_max:
                self.kept_bytes -= len(self._blocks.pop(0))
        return block

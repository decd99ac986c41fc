"""JSON lines to Arrow, in bulk and without loss."""

from __future__ import annotations

from conveyord.engine.json.decoder import JsonLinesDecoder

__all__ = ["JsonLinesDecoder"]

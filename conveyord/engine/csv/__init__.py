"""CSV to Arrow, in bulk and without loss."""

from __future__ import annotations

from conveyord.engine.csv.decoder import CsvDecoder, CsvLayout

__all__ = ["CsvDecoder", "CsvLayout"]

"""Source `file_jsonl`: files of JSON, one object a line, plain or compressed by gzip or zstd."""

from __future__ import annotations

from conveyord.engine.decoding import BlockDecoder
from conveyord.engine.file_source import FileSource, FileSourceConfig
from conveyord.engine.json import JsonLinesDecoder


class FileJsonlConfig(FileSourceConfig):
    """Reads JSON lines from files. Types are taken from the first 16 MiB, new fields are added as they come."""


class FileJsonlSource(FileSource[None]):
    """See docs/operators.md."""

    Config = FileJsonlConfig

    def decoder(self) -> BlockDecoder[None]:
        return JsonLinesDecoder()

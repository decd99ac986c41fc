"""Source `file_csv`: files of comma-separated values and their dialects, plain or compressed."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import AliasChoices, Field, StringConstraints

from conveyord.core.errors import ConfigError
from conveyord.engine.contracts import OperatorConfig, OperatorContext
from conveyord.engine.csv import CsvDecoder, CsvLayout
from conveyord.engine.decoding import BlockDecoder
from conveyord.engine.file_source import FileSource, FileSourceConfig

Mark = Annotated[str, StringConstraints(min_length=1, max_length=1)]
TypeWord = Literal["string", "long", "double", "boolean", "timestamp", "date"]


class FileCsvConfig(FileSourceConfig):
    """Reads CSV files. Types are taken from the first 16 MiB unless declared; columns are matched by name."""

    header: bool = Field(
        default=True,
        validation_alias=AliasChoices("header", "has_header"),
        description="The first record names the columns; else they are f0, f1, ...",
    )
    delimiter: Mark = Field(default=",", description="What separates cells.")
    quote: Mark | None = Field(default='"', description="What encloses cells; doubled within them. None: no quoting.")
    types: dict[str, TypeWord] = Field(
        default_factory=dict,
        description="Declared columns: string, long, double, boolean, timestamp or date. Strict: what does not fit "
        "is a bad record.",
    )


class FileCsvSource(FileSource[CsvLayout]):
    """See docs/operators.md."""

    Config = FileCsvConfig

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        options: FileCsvConfig = self.config
        self._decoder = CsvDecoder(
            header=options.header, delimiter=options.delimiter, quote=options.quote, types=dict(options.types)
        )

    def check_schema(self, schema: pa.Schema) -> None:
        """Refuse a declared column that no header has: its values would silently have another type."""
        options: FileCsvConfig = self.config
        for name in options.types:
            if name not in schema.names:
                close = get_close_matches(name, schema.names, n=1)
                remedy = f"did you mean {close[0]!r}?" if close else f"the columns are {', '.join(schema.names)}"
                raise ConfigError(
                    f"stage {self.context.stage!r}: types names a column {name!r} that no header has; {remedy}"
                )

    def decoder(self) -> BlockDecoder[CsvLayout]:
        return self._decoder

"""The options of `lookup`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from conveyord.core.units import Bytes, Seconds
from conveyord.engine.contracts import OperatorConfig

BYTES_MAX = 2_000_000_000  # Arrow counts the bytes of a column of text in 31 bits

Scalar = str | int | float | bool


class ReferenceOptions(OperatorConfig):
    """Where the reference is."""

    type: Literal["csv", "parquet", "sqlite", "iceberg"] = Field(
        examples=["csv"],
        description="`csv`: a file with a header, compressed or not; keys take the type that the rows have, other "
        "columns the type that all their values have, and an empty cell is null. `parquet`: one file. `sqlite`: a "
        "table or a query of a database. `iceberg`: the newest snapshot of a table.",
    )
    path: str = Field(
        min_length=1,
        examples=["reference.csv"],
        description="The file, relative to the working directory; for iceberg the table, as `namespace.table`.",
    )
    table: str | None = Field(default=None, min_length=1, description="The table of a SQLite database.")
    query: str | None = Field(
        default=None, min_length=1, description="Or one SELECT in a SQLite database, for ten minutes at most."
    )
    catalog: str = Field(default="lake", description="The catalog of an Iceberg table, by its name in conveyord.toml.")
    delimiter: str = Field(default=",", min_length=1, max_length=1, description="What separates the cells of CSV.")

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        if self.type == "sqlite" and (self.table is None) == (self.query is None):
            raise ValueError("a reference of type sqlite needs either table or query")
        if self.type == "iceberg" and self.table is not None:
            raise ValueError(f"table is for sqlite; for iceberg write path: {self.table}")
        if self.type != "sqlite" and (self.table or self.query) is not None:
            raise ValueError(f"table and query are for sqlite, not for {self.type}")
        return self


class CacheOptions(OperatorConfig):
    """How long the reference is kept in memory, and how much of it there may be."""

    check_every: Seconds = Field(
        default=10.0,
        gt=0,
        description="How often to see whether the reference has changed; then it is read again. Only between two "
        "batches, and only while there are some.",
    )
    ttl: Seconds | None = Field(
        default=None,
        gt=0,
        description="If a changed reference cannot be read, or it cannot be seen whether it has changed, rows get the "
        "old one, with a warning, until it was last found up to date so long ago; then the run stops. "
        "Null: for ever. Must be longer than check_every.",
    )
    rows_max: int = Field(
        default=10_000_000,
        ge=1,
        le=2_000_000_000,
        description="Refuse a reference with more rows. The index takes some 20 bytes a row beside the columns, and "
        "while a changed reference is read there are two.",
    )
    bytes_max: Bytes = Field(
        default=1024**3,
        ge=1,
        le=BYTES_MAX,
        description="Refuse a reference whose keys and columns take more memory.",
    )

    @model_validator(mode="after")
    def _can_be_kept(self) -> Self:
        if self.ttl is not None and self.ttl <= self.check_every:
            raise ValueError(
                f"cache.ttl must be longer than cache.check_every ({self.check_every:g}s), got {self.ttl:g}s; try "
                f"{3 * self.check_every:g}s"
            )
        return self


class LookupConfig(OperatorConfig):
    """Adds columns of a reference to the rows whose key it has.

    The reference is read into memory when the run begins, and again when it has changed: a file when it was replaced
    or written, a SQLite database when it was written, an Iceberg table when it has a new snapshot. A batch is looked
    up in one state of it. Replace a file by renaming a finished one.

    A null matches nothing, not even a null. Keys must be of like types: numbers with numbers, text with text, and so
    on; 2.0 is 2, and a zone of a timestamp does not matter, but text is no number unless the reference is CSV. A key
    of a CSV file that is not of the type that the rows have (`N/A`, or ` 1` where they have longs) matches no row;
    the log says how many are not. If none is, or more than 10,000 are not, the run stops.

    After a crash, records whose commit did not land are read and looked up again, and may then get what a newer
    reference says. Every record still lands once; which reference it met is the only thing that may differ.
    """

    reference: ReferenceOptions = Field(description="Where the reference is.")
    on: dict[str, str] | tuple[str, ...] = Field(
        min_length=1,
        examples=[{"country_code": "code"}],
        description="The key: by each column of the rows, the column of the reference that must be equal; or a list of "
        "columns that are called the same.",
    )
    columns: tuple[str, ...] | dict[str, str] | None = Field(
        default=None,
        description="The columns of the reference that the rows get, or their new names by column: "
        "`{name: country_name}`. Null: all but the key.",
    )
    prefix: str = Field(default="", description="Stands before the names of columns that `columns` does not rename.")
    mode: Literal["merge", "nest"] = Field(
        default="merge",
        description="`merge` adds the columns to the rows; one that is there already is an error. `nest` puts them "
        "into one object.",
    )
    into: str | None = Field(default=None, min_length=1, description="The column of that object, for `mode: nest`.")
    on_miss: Literal["keep", "drop", "dead_letter", "default"] = Field(
        default="keep",
        description="A row whose key the reference does not have: `keep` gives it nulls. `drop` removes it, counted as "
        "filtered; it leaves by the output `missed` if an edge leads from there. `dead_letter` makes it a dead letter, "
        "or stops the run where the pipeline has no `dlq`. `default` gives it the values of `default`.",
    )
    default: dict[str, Scalar] = Field(
        default={}, description="For `on_miss: default`, values by new column name; those not named are null."
    )
    duplicates: Literal["fail", "first", "last"] = Field(
        default="fail",
        description="A key that several rows of the reference have: `fail` stops and names it, `first` and `last` "
        "take one of the rows, in the order in which they are read.",
    )
    cache: CacheOptions = Field(default_factory=CacheOptions, description="What is kept in memory.")

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if (self.mode == "nest") != (self.into is not None):
            raise ValueError("mode: nest needs into, the name of the column, and only that mode has one")
        if bool(self.default) != (self.on_miss == "default"):
            raise ValueError("on_miss: default needs default with the values, and only on_miss: default uses it")
        new = list(self.columns.values()) if isinstance(self.columns, dict) else list(self.columns or ())
        twice = sorted({name for name in new if new.count(name) > 1})
        if twice:
            raise ValueError(f"columns gives {twice[0]!r} twice; every column needs a name of its own")
        return self

    def key(self) -> dict[str, str]:
        """By column of the rows, the column of the reference."""
        return self.on if isinstance(self.on, dict) else {name: name for name in self.on}

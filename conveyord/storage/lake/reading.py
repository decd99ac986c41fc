"""Opens catalogs and tables to read them beside whoever writes them. Blocking; changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from conveyord.core.errors import ConfigError, Refused, Retryable
from conveyord.core.planning.committer import Outcome
from conveyord.core.units import format_bytes
from conveyord.storage.lake.catalog import EMBEDDED, displaced, open_catalog, open_embedded_read_only
from conveyord.storage.lake.outcomes import failure, within
from conveyord.storage.lake.store_errors import store_errors
from conveyord.storage.lake.table import DEADLINE_SECONDS

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table
    from pyiceberg.types import IcebergType

T = TypeVar("T")

TABLES_NAMED_MAX = 20  # what a message lists before it says how many more there are
RESERVED = "_partition"
"""A column of ours whose name the Iceberg specification keeps for itself; iceberg-rust cannot read it."""
LOADED_BYTES_MAX = 1024**3  # of Parquet, some five times as much in memory
NAMESPACE_DEPTH_MAX = 4  # catalogs that nest deeper have not been seen; a cycle would list for ever


class LakeReader:
    """The tables of one catalog, by name."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.name = catalog.name

    def table_or_none(self, identifier: tuple[str, ...]) -> Table | None:
        """The table, or None if the catalog has no such table or namespace.

        Raises Retryable if the catalog does not answer, Refused if it will not or if the data directory
        was moved.
        """
        if not all(part.strip() for part in identifier):
            return None  # pyiceberg takes such a name for a fault of its caller

        def load() -> Table:
            properties = self._catalog.properties
            try:
                with store_errors(f"table {'.'.join(identifier)}", properties.get("warehouse", ""), properties):
                    return self._catalog.load_table(identifier)
            except FileNotFoundError as error:
                raise displaced(self._catalog, identifier) or error from error

        return _asked(self.name, load)

    def named_table(self, name: str) -> Table:
        """The table called `name`, as `namespace.table`. Raises ConfigError with the tables there are."""
        parts = tuple(name.split("."))
        table = self.table_or_none(parts) if len(parts) > 1 and all(parts) else None
        if table is None:
            raise ConfigError(self.unknown_table(name))
        return table

    def table_names(self) -> Iterator[str]:
        """The names of all tables, as `namespace.table`."""
        yield from self._names_below((), depth=0)

    def unknown_table(self, name: str) -> str:
        """The sentence for a table that does not exist: what was probably meant, and what there is."""
        names = list(self.table_names())
        if not names:
            return f"unknown table {name!r}: the catalog {self.name!r} has no tables yet; run a pipeline first"
        # A bare table name is the likeliest slip, and too far from `namespace.table` for difflib.
        last = name.rpartition(".")[2].lower()
        meant = [known for known in names if known.rpartition(".")[2].lower() == last]
        meant = meant or get_close_matches(name, names, n=1)
        hint = f"; did you mean {meant[0]!r}? The" if meant else "; the"
        listed = ", ".join(names[:TABLES_NAMED_MAX])
        more = f" and {len(names) - TABLES_NAMED_MAX} more" if len(names) > TABLES_NAMED_MAX else ""
        return f"unknown table {name!r}{hint} tables of {self.name!r} are {listed}{more}"

    def _names_below(self, parent: tuple[str, ...], *, depth: int) -> Iterator[str]:
        # The SQL catalog answers a namespace without children as if it did not exist.
        known = _asked(self.name, lambda: self._catalog.list_namespaces(parent)) if depth < NAMESPACE_DEPTH_MAX else ()
        for child in sorted({tuple(child) for child in known or ()}):
            if len(child) == len(parent) + 1:
                yield from self._tables_in(child)
                yield from self._names_below(child, depth=depth + 1)

    def _tables_in(self, namespace: tuple[str, ...]) -> list[str]:
        identifiers = _asked(self.name, lambda: self._catalog.list_tables(namespace))
        return sorted(".".join(identifier) for identifier in identifiers or ())


def only_pyiceberg_reads(table: Table) -> list[str]:
    """Columns that iceberg-rust cannot read from every data file of `table`, as far as the metadata tells.

    Those are `RESERVED`, and any whose nested fields are not the same in all schemas that the table has had: a
    file written under another schema lacks some of them.
    """
    shapes: dict[int, set[frozenset[int]]] = {}
    for schema in table.schemas().values():
        for field in schema.fields:
            shapes.setdefault(field.field_id, set()).add(frozenset(_ids_within(field.field_type)))
    columns = table.schema().fields
    return [field.name for field in columns if field.name == RESERVED or len(shapes[field.field_id]) > 1]


def _ids_within(kind: IcebergType) -> Iterator[int]:
    from pyiceberg.types import ListType, MapType, StructType

    match kind:
        case StructType():
            fields = list(kind.fields)
        case ListType():
            fields = [kind.element_field]
        case MapType():
            fields = [kind.key_field, kind.value_field]
        case _:
            fields = []
    for field in fields:
        yield field.field_id
        yield from _ids_within(field.field_type)


def loaded(table: Table, columns: list[str]) -> Dataset:
    """All rows of `table`, in memory: for queries of `columns`, which iceberg-rust does not give.

    Raises ConfigError if the table is larger than that is good for.
    """
    import pyarrow.dataset

    scan = table.scan()
    size_bytes = sum(task.file.file_size_in_bytes for task in scan.plan_files())
    if size_bytes > LOADED_BYTES_MAX:
        raise ConfigError(
            f"table {'.'.join(table.name())}: reading {', '.join(columns)} takes the whole table into memory, and its "
            f"{format_bytes(size_bytes)} are more than {format_bytes(LOADED_BYTES_MAX)}; name other columns, not *"
        )
    return pyarrow.dataset.dataset(scan.to_arrow())


def _asked(name: str, work: Callable[[], T]) -> T | None:
    """What the catalog `name` answers, or None for what it does not have. The call has a deadline.

    Raises Retryable or Refused instead of the exceptions of pyiceberg and its drivers.
    """
    try:
        return within(DEADLINE_SECONDS, work)
    except Exception as error:  # noqa: BLE001 - `failure` decides every class, and raises our own bugs
        failed = failure(error, sent=False)
    match failed.outcome:
        case Outcome.GONE:
            return None
        case Outcome.DENIED:
            raise Refused(f"catalog {name!r} refuses: {failed.reason}; check its properties and rights")
        case _:
            raise Retryable(f"catalog {name!r} does not answer: {failed.reason}; try again when it does")


def open_to_read(name: str, *, data_dir: Path, catalogs: Mapping[str, Mapping[str, str]]) -> LakeReader:
    """The catalog `name`: the embedded one of `data_dir`, or one of `catalogs`.

    Raises ConfigError if there is none of that name, or no embedded catalog yet; Retryable or Refused as
    the catalog answers.
    """
    if name == EMBEDDED:
        return LakeReader(open_embedded_read_only(data_dir))
    if name not in catalogs:
        known = ", ".join((EMBEDDED, *sorted(catalogs)))
        raise ConfigError(f"unknown catalog {name!r}; conveyord.toml and the data directory give {known}")
    # Opening a REST catalog asks it for its settings already.
    catalog = _asked(name, lambda: open_catalog(name, catalogs[name]))
    if catalog is None:
        raise ConfigError(f"catalog {name!r}: its warehouse does not exist; check its properties in conveyord.toml")
    return LakeReader(catalog)

"""Opens catalogs and tables to read them beside whoever writes them. Blocking; changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from conveyord.core.errors import ConfigError
from conveyord.storage.lake.catalog import EMBEDDED, open_catalog, open_embedded_read_only

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

TABLES_NAMED_MAX = 20  # what a message lists before it says how many more there are
NAMESPACE_DEPTH_MAX = 4  # catalogs that nest deeper have not been seen; a cycle would list for ever


class LakeReader:
    """The tables of one catalog, by name."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.name = catalog.name

    def table_or_none(self, identifier: tuple[str, ...]) -> Table | None:
        """The table, or None if the catalog has no such table or namespace."""
        from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError

        try:
            return self._catalog.load_table(identifier)
        except (NoSuchTableError, NoSuchNamespaceError):
            return None

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
            return (
                f"unknown table {name!r}: the catalog {self.name!r} has no tables yet; run a pipeline first"
            )
        # A bare table name is the likeliest slip, and too far from `namespace.table` for difflib.
        last = name.rpartition(".")[2].lower()
        meant = [known for known in names if known.rpartition(".")[2].lower() == last]
        meant = meant or get_close_matches(name, names, n=1)
        hint = f"; did you mean {meant[0]!r}? The" if meant else "; the"
        listed = ", ".join(names[:TABLES_NAMED_MAX])
        more = f" and {len(names) - TABLES_NAMED_MAX} more" if len(names) > TABLES_NAMED_MAX else ""
        return f"unknown table {name!r}{hint} tables of {self.name!r} are {listed}{more}"

    def _names_below(self, parent: tuple[str, ...], *, depth: int) -> Iterator[str]:
        from pyiceberg.exceptions import NoSuchNamespaceError

        try:
            # The SQL catalog answers a namespace without children with an error.
            children = self._catalog.list_namespaces(parent) if depth < NAMESPACE_DEPTH_MAX else []
        except NoSuchNamespaceError:
            children = []
        for namespace in sorted({tuple(child) for child in children}):
            if len(namespace) != len(parent) + 1:
                continue
            yield from sorted(".".join(identifier) for identifier in self._catalog.list_tables(namespace))
            yield from self._names_below(namespace, depth=depth + 1)


def open_to_read(name: str, *, data_dir: Path, catalogs: Mapping[str, Mapping[str, str]]) -> LakeReader:
    """The catalog `name`: the embedded one of `data_dir`, or one of `catalogs`.

    Raises ConfigError if there is none of that name, or no embedded catalog yet.
    """
    if name == EMBEDDED:
        return LakeReader(open_embedded_read_only(data_dir))
    if name not in catalogs:
        known = ", ".join((EMBEDDED, *sorted(catalogs)))
        raise ConfigError(f"unknown catalog {name!r}; conveyord.toml and the data directory give {known}")
    return LakeReader(open_catalog(name, catalogs[name]))

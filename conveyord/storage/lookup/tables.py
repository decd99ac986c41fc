"""References in Iceberg tables, read at their newest snapshot."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from conveyord.core.errors import Retryable
from conveyord.storage.lake.outcomes import failure
from conveyord.storage.lake.reading import LakeReader, open_to_read
from conveyord.storage.lookup.reading import Gathering, Loaded, ReferenceReader, Wanted, chosen

if TYPE_CHECKING:
    from pyiceberg.table import Table


class IcebergReader(ReferenceReader):
    """An Iceberg table. It changes when it gets another snapshot or schema, or is made anew."""

    def __init__(self, table: str, *, catalog: str, data_dir: Path, catalogs: Mapping[str, Mapping[str, str]]) -> None:
        """catalog: one of `catalogs` by name, or the embedded one of `data_dir`."""
        self.name = f"reference {table} of the catalog {catalog!r}"
        self._identifier = table
        self._catalog = catalog
        self._data_dir = data_dir
        self._catalogs = catalogs
        self._lake: LakeReader | None = None

    def mark(self) -> Hashable:
        """See `ReferenceReader.mark`. Asks the catalog."""
        return _mark_of(self._table())

    def read(self, wanted: Wanted, checkpoint: Callable[[], None]) -> Loaded:
        """See `ReferenceReader.read`."""
        table = self._table()
        columns = chosen(self, [field.name for field in table.schema().fields], wanted)
        gathering = Gathering(self, wanted, checkpoint)
        try:
            reader = table.scan(selected_fields=tuple(columns)).to_arrow_batch_reader()
            for batch in reader:
                gathering.add(batch.select(columns))
        except Exception as error:  # `failure` decides every class; it raises our own errors, and bugs, as they are
            failed = failure(error, sent=False)
            raise Retryable(f"{self.name} cannot be read: {failed.reason}") from error
        return Loaded(_mark_of(table), gathering.table(pa.schema([reader.schema.field(name) for name in columns])))

    def close(self) -> None:
        """See `ReferenceReader.close`."""
        self._lake = None

    def _table(self) -> Table:
        if self._lake is None:
            self._lake = open_to_read(self._catalog, data_dir=self._data_dir, catalogs=self._catalogs)
        return self._lake.named_table(self._identifier)


def _mark_of(table: Table) -> Hashable:
    snapshot = table.current_snapshot()
    return str(table.metadata.table_uuid), None if snapshot is None else snapshot.snapshot_id, table.schema().schema_id

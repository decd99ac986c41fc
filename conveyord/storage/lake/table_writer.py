"""One pipeline's writing end of one Iceberg table: files, schema and fence behind one blocking object.

It joins what the neighbouring modules each do alone. The order within `commit` is the promise: data
files are closed (and synced, on a local warehouse), then the table's metadata names them together
with the fence, then the caller may acknowledge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from conveyord.core.errors import Refused, Retryable, StorageFull
from conveyord.core.flow.positions import Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.storage.lake.catalog import displaced

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

    from conveyord.storage.lake.data_files import DataFileWriter
    from conveyord.storage.lake.ledger import Ledger

T = TypeVar("T")

REBUILDS_MAX = 5  # someone who changes the partitioning more often than this during one commit is a bug


@dataclass(frozen=True, slots=True)
class TableWriterOptions:
    """How the table is opened, shaped and written."""

    identifier: str
    pipeline: str
    partition_by: tuple[str, ...]
    adopt: bool
    adopt_from: str | None
    target_file_bytes: int


@contextmanager
def catalog_errors(what: str) -> Iterator[None]:
    """Turn what a catalog raises outside a commit into a sentence about `what`.

    Raises StorageFull, Refused or Retryable; a bug and one of our own sentences pass as they are.
    Repeating the call in the next run is harmless, so an unknown outcome counts as not available.
    """
    from conveyord.core.planning.committer import Outcome
    from conveyord.storage.lake.outcomes import failure

    try:
        yield
    except Exception as error:  # `failure` decides every class, and raises what it must not hide
        failed = failure(error, sent=False)
        match failed.outcome:
            case Outcome.FULL | Outcome.FULL_LATE:
                raise StorageFull(f"{what}: {failed.reason}; free space and run again") from error
            case Outcome.DENIED:
                raise Refused(f"{what}: the catalog refuses: {failed.reason}; correct its properties") from error
            case Outcome.GONE:
                raise Refused(f"{what}: dropped meanwhile ({failed.reason}); run again to load it anew") from error
            case _:
                raise Retryable(f"{what}: the catalog failed: {failed.reason}; run again once it answers") from error


class TableWriter:
    """Blocking. Calls must not overlap; each may come from another thread."""

    def __init__(self, catalog: Catalog, ledger: Ledger, options: TableWriterOptions) -> None:
        from conveyord.storage.lake.commit import TableCommitter

        self._catalog = catalog
        self._session = ledger
        self._ledger = ledger.for_table(options.pipeline)
        self._options = options
        self._committer = TableCommitter(
            catalog,
            options.identifier,
            options.pipeline,
            self._ledger,
            random=Random(),  # noqa: S311 - jitter of retries, not a secret
        )
        self._table: Table | None = None
        self._files: DataFileWriter | None = None
        self._staged: list[DataFile] = []
        self._staged_under: set[int] = set()  # ids of the schemas that staged files were written under
        self.schema: pa.Schema | None = None
        """What `write` takes: the table's columns and types, or None while there is no table."""
        self.rows_committed = 0
        self.files_committed = 0
        self.commits = 0

    def open(self) -> Positions:
        """Look at the table and return how far it has been written; nothing is created.

        Raises Refused if the table must not be written (foreign rows without `adopt`, rolled back, a data
        directory that was moved or copied).
        """
        identifier = self._options.identifier
        if (elsewhere := self._ask(lambda: displaced(self._catalog, identifier))) is not None:
            raise elsewhere
        fence = self._committer.open(adopt=self._options.adopt, adopt_from=self._options.adopt_from)
        if fence is None:
            return Positions()
        self._use(self._ask(lambda: self._catalog.load_table(self._options.identifier)))
        return fence.positions

    @property
    def took_over(self) -> bool:
        """Whether `open` took the fence of `TableOptions.adopt_from` over."""
        return self._committer.took_over

    def check(self, rows: pa.RecordBatch) -> None:
        """Raises BatchError if a value in `rows`, which may have columns that the table lacks, has no partition."""
        from conveyord.storage.lake.partitioning import check_times, timed_columns, timed_sources

        columns = timed_columns(self._options.partition_by) if self._table is None else timed_sources(self._table)
        check_times(rows, columns)

    def shape(self, schema: pa.Schema) -> None:
        """Make the table take columns of `schema`: create it, or add what it lacks. Sets `self.schema`.

        That may come out otherwise, because somebody else changed the table meanwhile: then nothing was done, or
        not all, and the caller works out anew what it wants. Files that were begun under the former schema are
        closed. They stay valid (a column that a file lacks reads as null), or are written again.
        """
        from conveyord.storage.lake.schema_history import mark
        from conveyord.storage.lake.schemas import TableAppeared, arrow_schema, create_table, evolve

        identifier, partition_by = self._options.identifier, self._options.partition_by
        if self._table is None:
            properties = self._committer.initial_properties() | mark(0, self._options.pipeline)
            with suppress(TableAppeared):  # someone else was faster: whether it may be written is seen below
                self._ask(lambda: create_table(self._catalog, identifier, schema, partition_by, properties))
            if self.open():
                raise Refused(
                    f"table {identifier}: another run of {self._options.pipeline} created it and has written to it "
                    "meanwhile; let one of the two finish, then run again"
                )
            return
        self._stage()
        table = self._ask(lambda: self._catalog.load_table(identifier))
        if arrow_schema(table).equals(self.schema):
            # Only what the caller asks for: a column that somebody drops now is not added again in passing.
            known = set(self.schema or ())
            lacking = pa.schema([field for field in schema if field not in known])
            table = self._ask(lambda: evolve(table, lacking, pipeline=self._options.pipeline))
        self._use(table)

    def _ask(self, work: Callable[[], T]) -> T:
        """What the catalog answers, within the deadline; its errors as sentences about the table."""
        from conveyord.storage.lake.outcomes import within
        from conveyord.storage.lake.table import DEADLINE_SECONDS

        with catalog_errors(f"table {self._options.identifier}"), self._store_errors():
            return within(DEADLINE_SECONDS, work)

    def _store_errors(self) -> AbstractContextManager[None]:
        from conveyord.storage.lake.store_errors import store_errors

        properties = self._catalog.properties
        location = self._table.location() if self._table is not None else properties.get("warehouse", "")
        return store_errors(f"table {self._options.identifier}", location, properties)

    def write(self, batch: pa.RecordBatch) -> None:
        """Write rows, with exactly `self.schema`, to data files that nothing names yet.

        Raises Refused or Retryable as the object store does, where one holds the files.
        """
        assert self._files is not None, "a table is shaped before it is written"
        with self._store_errors():
            self._files.write(batch)

    @property
    def bytes_staged(self) -> int:
        """About how many bytes the next commit would add."""
        staged = sum(file.file_size_in_bytes for file in self._staged)
        return staged + (self._files.bytes_written + self._files.buffered_bytes if self._files else 0)

    def commit(self, spans: Iterable[Span], tally: Tally, states: Mapping[str, str]) -> None:
        """Put the rows written since the last commit and the fence that names their records into the table.

        states: what the sources want back when they go on from here.

        On return they are in the table exactly once, and on disk. Raises OutcomeUnknown if that cannot be
        found out; the next run finds out. Raises Refused, Retryable or StorageFull if they are not there.
        """
        from conveyord.storage.lake.commit import Rebuild

        self._stage()
        rows = sum(file.record_count for file in self._staged)
        fence = self._committer.fence.advanced(spans, tally, rows, states)
        for _ in range(REBUILDS_MAX):
            try:
                table = self._opened()
                spec_id, schema_id = table.spec().spec_id, table.schema().schema_id
                self._committer.commit(self._staged, fence, spec_id=spec_id, schema_id=schema_id)
                break
            except Rebuild:
                self._rebuild()
        else:
            raise Refused(
                f"table {self._options.identifier}: its partitioning or schema changed {REBUILDS_MAX} times "
                "during one commit; find out who changes it, then run again"
            )
        self.rows_committed += rows
        self.files_committed += len(self._staged)
        self.commits += 1
        self._staged, self._staged_under = [], set()

    def abort(self) -> None:
        """Delete the files that no commit has named or may still name. The writer is of no more use."""
        if self._files is not None:
            self._files.abort()

    def close(self) -> None:
        """Let go of the catalog's and the ledger's files. The writer is of no more use."""
        self._catalog.close()
        self._session.close()

    def _opened(self) -> Table:
        assert self._table is not None, "a table is shaped before it is written or committed"
        return self._table

    def _use(self, table: Table) -> None:
        from conveyord.storage.lake.data_files import DataFileWriter, WriterOptions
        from conveyord.storage.lake.schemas import arrow_schema

        if not self._fits(table):
            self._rewrite(table)
        self._table = table
        self.schema = arrow_schema(table)
        options = WriterOptions(target_file_bytes=self._options.target_file_bytes)
        self._files = DataFileWriter(table, options, self._ledger.intend)

    def _stage(self) -> None:
        with self._store_errors():
            if self._files is not None and (finished := self._files.finish()):
                self._staged += finished
                self._staged_under.add(self._files.schema_id)

    def _fits(self, table: Table) -> bool:
        """Whether all staged files may be committed to `table` as they are."""
        from conveyord.storage.lake.schemas import fitting_schemas

        if any(file.spec_id != table.spec().spec_id for file in self._staged):
            return False
        return self._staged_under <= fitting_schemas(table.metadata)

    def _rebuild(self) -> None:
        """Write the staged rows again as the table wants them now."""
        table = self._ask(lambda: self._catalog.load_table(self._options.identifier))
        self._rewrite(table)
        self._use(table)

    def _rewrite(self, table: Table) -> None:
        """Write the staged rows again under the schema and partitioning of `table`."""
        from conveyord.storage.lake.data_files import WriterOptions, rewrite

        options = WriterOptions(target_file_bytes=self._options.target_file_bytes)
        outdated = [file.file_path for file in self._staged]
        with self._store_errors():
            self._staged = rewrite(self._staged, table, options, self._ledger.intend)
        self._staged_under = {table.schema().schema_id}
        self._ledger.abandon(outdated, batch=self._committer.fence.n + 1)

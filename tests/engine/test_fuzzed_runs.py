"""Broken files through whole runs, into an Iceberg table: an orderly end, and every record in one place, once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from conveyord.core.errors import BatchError, ConveyordError
from conveyord.core.pipeline.graph import DeadLetterPolicy
from conveyord.storage.lake.audit import audit_table
from conveyord.storage.lake.reading import open_to_read
from tests.engine.fuzz_corpus import csv_files, json_files, parquet_files, wrapped
from tests.engine.graph_rig import DLQ, World, fast_clock, line, run, stage

TABLE = "fuzz.rows"
FILES = st.one_of(
    st.tuples(
        st.just("file_jsonl"), st.lists(wrapped(json_files()).map(lambda made: made[:2]), min_size=1, max_size=4)
    ),
    st.tuples(st.just("file_csv"), st.lists(wrapped(csv_files()).map(lambda made: made[:2]), min_size=1, max_size=4)),
    st.tuples(
        st.just("file_parquet"),
        st.lists(parquet_files().map(lambda made: (".parquet", made[0])), min_size=1, max_size=3),
    ),
)
# What ends a run that sets bad records aside: a file that cannot be understood, or columns that no table can have.
WITHOUT_SHRINKING = [Phase.explicit, Phase.reuse, Phase.generate]  # a run takes half a second
ENDS = {"TRUNCATED_FILE", "INVALID_UTF8", "BAD_HEADER", "UNCLOSED_QUOTE", "NUL_BYTE", "MALFORMED_RECORD", "CONFIG"}
ENDS |= {"BATCH_FAILED"}  # rows of nulls alone, of which no table can be made


class Tried:
    """Runs of one pipeline over the same files and table."""

    def __init__(self, source: str, folder: Path, data_dir: Path) -> None:
        self._source, self._folder, self._data_dir = source, folder, data_dir

    def run(self, *, skip_bad: bool, dlq: DeadLetterPolicy | None) -> tuple[Any, list[ConveyordError]]:
        """The progress of a run and what stopped it: the source, the sink, or both."""
        source = stage("in", "source", self._source, path=f"{self._folder}/*", batch_rows=5)
        made = line(source, stage("out", "sink", "iceberg", table=TABLE), dlq=dlq)

        async def main() -> Any:
            return await run(World(), made, self._data_dir, skip_bad=skip_bad)

        outcome = trio.run(main, clock=fast_clock())
        failed = outcome.failures.of("default/p")
        return outcome.progress["default/p"], [one.error for one in sorted(failed, key=lambda one: one.stage)]

    def audited(self) -> int:
        """The rows in the table, which is as its fence says."""
        reader = open_to_read("lake", data_dir=self._data_dir, catalogs={})
        report = audit_table(reader.named_table(TABLE), name=TABLE)
        assert report.ok, report.findings
        return report.rows


def account(tried: Tried, *, skip_bad: bool, dlq: DeadLetterPolicy | None) -> None:
    progress, errors = tried.run(skip_bad=skip_bad, dlq=dlq)
    unaccounted = progress.rows_in - (progress.rows_out + progress.dead_letters + progress.skipped)
    assert unaccounted == 0 or (unaccounted > 0 and any(isinstance(error, BatchError) for error in errors)), errors
    if skip_bad or dlq:
        assert {error.code for error in errors} <= ENDS, errors
    if not progress.sinks["out"].commits:
        return
    rows = tried.audited()
    assert rows == progress.rows_out
    again, errors_again = tried.run(skip_bad=skip_bad, dlq=dlq)
    assert [str(error) for error in errors_again] == [str(error) for error in errors]
    assert again.rows_out == 0
    assert tried.audited() == rows


def in_every_way(files: tuple[str, list[tuple[str, bytes]]]) -> None:
    for skip_bad, dlq in ((False, None), (True, None), (False, DLQ)):
        with tempfile.TemporaryDirectory() as name:
            folder, data_dir = Path(name, "in"), Path(name, "data")
            folder.mkdir()
            for number, (suffix, content) in enumerate(files[1]):
                (folder / f"{number}{suffix}").write_bytes(content)
            account(Tried(files[0], folder, data_dir), skip_bad=skip_bad, dlq=dlq)


@settings(max_examples=6, phases=WITHOUT_SHRINKING)
@given(FILES)
def test_a_run_over_broken_files_ends_in_order_and_accounts_for_every_record(
    files: tuple[str, list[tuple[str, bytes]]],
) -> None:
    in_every_way(files)


@pytest.mark.check
@settings(max_examples=100, phases=WITHOUT_SHRINKING)
@given(FILES)
def test_many_runs_over_broken_files_account_for_every_record(files: tuple[str, list[tuple[str, bytes]]]) -> None:
    in_every_way(files)

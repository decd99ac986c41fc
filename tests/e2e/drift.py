"""Input whose fields change all the way along, and a check that no value of it was lost or doubled.

Fields come, change their type, grow children and go again, era after era. A value may land in its own
column or in a sibling of it (`x__double`), so the check asks of every record that exactly one of those
cells holds each of its values, and that nothing else is there. It reads the data files by DuckDB, and
counts the cells once more as the table's own field ids show them to a reader of Iceberg.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import duckdb

from tests.e2e.harness import Job, local

Record = dict[str, Any]

PADDED_RECORDS = 1100  # the first records fill the 16 MiB that types are inferred from, alone
PAD = "x" * 16_384
AGES = 4  # eras that a field lives for: two in which it keeps its type, two in which it does not
ODD = 7  # in the later eras every so manieth record has the other type
SIBLING = "__"
PROVENANCE = ("_source", "_partition", "_offset")


@dataclass(frozen=True)
class Drift:
    """Records whose fields depend on their number. Every `era_records` a field begins and one ends.

    slots: names are used again after so many eras, so that a table does not grow for ever.
    """

    era_records: int
    slots: int

    def record(self, number: int) -> Record:
        """One JSON record: scalars, structs that grow and lists of them."""
        record: Record = {"id": number, "nest": {"always": number}}
        if number < PADDED_RECORDS:
            return {**record, "pad": PAD}
        era = number // self.era_records
        for begun in range(max(0, era - AGES + 1), era + 1):
            slot, age, odd = begun % self.slots, era - begun, number % ODD == 0
            match begun % 5:
                case 0:
                    record[f"at{slot}"] = f"soon {number}" if age >= 2 and odd else moment(number)
                case 1:
                    record[f"n{slot}"] = number + 0.5 if age >= 2 and odd else number
                case 2:
                    child = {"v": f"v {number}" if age >= 2 and odd else number}
                    record["nest"][f"c{slot}"] = {**child, "w": f"w {number}"} if age >= 2 else child
                case 3:
                    record[f"mixed{slot}"] = (number, f"text {number}", number + 0.25, {"a": number})[age]
                case _:
                    items: list[Record] = [{"a": number}, {"a": f"a {number}" if age >= 2 and odd else -number}]
                    record[f"list{slot}"] = [{**item, "b": "b"} for item in items] if age >= 2 else items
        return record

    def row(self, number: int, fields_of: int) -> Record:
        """One CSV row, whose columns are those of the record `fields_of`: a file has one header."""
        row: Record = {"id": number, "text": f'name "{number}",\nsecond line'}
        if fields_of < PADDED_RECORDS:
            row["pad"] = PAD if number < PADDED_RECORDS else f"pad {number}"
        era, now = fields_of // self.era_records, number // self.era_records
        for begun in range(max(0, era - AGES + 1), era + 1):
            slot, odd = begun % self.slots, now - begun >= 2 and number % ODD == 0
            match begun % 3:
                case 0:
                    row[f"at{slot}"] = f"soon {number}" if odd else moment(number)
                case 1:
                    row[f"n{slot}"] = number + 0.5 if odd else number
                case _:
                    row[f"mixed{slot}"] = (number, f"text {number}", number + 0.25, number % 2 == 0)[(now - begun) % 4]
        return row

    def json_lines(self, numbers: range) -> bytes:
        return b"".join(json.dumps(self.record(number)).encode() + b"\n" for number in numbers)

    def csv_rows(self, numbers: range, *, fields_of: int, header: bool) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if header:
            writer.writerow(self.row(numbers[0], fields_of))
        for number in numbers:
            values = self.row(number, fields_of).values()
            writer.writerow([value if isinstance(value, str) else json.dumps(value) for value in values])
        return text.getvalue().encode()


def moment(number: int) -> str:
    return f"2024-{number % 12 + 1:02d}-{number % 28 + 1:02d}T10:{number // 60 % 60:02d}:{number % 60:02d}Z"


def holds_values(job: Job, count: int, expected: Callable[[int], Record]) -> None:
    """Assert that the table has the records 0 to `count` once each, with every value in exactly one cell."""
    by_name: Counter[str] = Counter()
    seen = bytearray(count)
    for row in rows_of_files(job):
        number = row["id"]
        assert 0 <= number < count, f"record {number} was never written"
        assert not seen[number], f"record {number} is there twice"
        seen[number] = 1
        fields = {name: value for name, value in row.items() if name not in PROVENANCE}
        assert matches(expected(number), fields), f"record {number}:\n{expected(number)}\nbecame\n{without_nulls(row)}"
        by_name.update(leaves(row))
    lost = [number for number in range(count) if not seen[number]]
    assert not lost, f"{len(lost)} records are lost: {lost[:5]}"
    by_id: Counter[str] = Counter()
    for batch in job.static_table().scan().to_arrow_batch_reader():
        for row in batch.to_pylist():
            by_id.update(leaves(row))
    assert by_id == by_name, "a reader that goes by field ids sees other values than one that goes by names"


def rows_of_files(job: Job) -> Iterator[Record]:
    """The rows of the current snapshot, read by DuckDB from each of its files under that file's own schema."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for task in job.static_table().scan().plan_files():
            path = local(task.file.file_path)
            relation = connection.sql("SELECT * FROM read_parquet(?, hive_partitioning=false)", params=[path])
            yield from relation.to_arrow_table().to_pylist()


def matches(wanted: Record, row: Record) -> bool:
    """Whether every value of `wanted` stands in one cell of `row`: its own, or a sibling's. And nothing else does."""
    cells: dict[str, list[Any]] = {}
    for name, value in row.items():
        if without_nulls(value) is not None:
            cells.setdefault(name.partition(SIBLING)[0], []).append(value)
    if cells.keys() != wanted.keys():
        return False
    return all(len(cells[name]) == 1 and same(value, cells[name][0]) for name, value in wanted.items())


def same(wanted: Any, cell: Any) -> bool:
    """Whether `cell` gives `wanted` back: as such, or as its text."""
    match cell:
        case datetime():
            return isinstance(wanted, str) and wanted.endswith("Z") and datetime.fromisoformat(wanted) == utc(cell)
        case dict():
            return isinstance(wanted, dict) and matches(wanted, cell)
        case list():
            pairs = isinstance(wanted, list) and len(wanted) == len(cell)
            return pairs and all(same(*pair) for pair in zip(wanted, cell, strict=True))
        case str() if isinstance(wanted, str):
            return cell == wanted
        case str():
            return bool(json.loads(cell) == wanted)
        case _:
            return type(wanted) in ((bool,) if isinstance(cell, bool) else (int, float)) and cell == wanted


def utc(value: datetime) -> datetime:
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def without_nulls(value: Any) -> Any:
    """`value` without what is null, None if nothing is left: a struct of nulls says nothing."""
    if isinstance(value, dict):
        kept = {name: found for name, item in value.items() if (found := without_nulls(item)) is not None}
        return kept or None
    return value


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """The path of every value that is not null."""
    match value:
        case None:
            return
        case dict():
            yield from chain.from_iterable(leaves(item, f"{path}.{name}") for name, item in value.items())
        case list():
            yield from chain.from_iterable(leaves(item, f"{path}[]") for item in value)
        case _:
            yield path

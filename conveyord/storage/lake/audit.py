"""Checks a table against its fences by reading its Parquet files. Blocking; changes nothing.

Nothing that conveyord wrote about the rows is trusted for counting them: every live data file is
opened and decoded, deletes applied. The fences say how many rows there should be, the provenance
columns, where present, which ones. Each file's size and number of rows are held against the
table's manifests. Counting reads one column; a deep audit reads every page of all of them and
verifies its checksum, where it has one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from conveyord.core.errors import Corrupt
from conveyord.core.flow.positions import Partition
from conveyord.core.planning.fence import Fence, batch_key, decode
from conveyord.core.units import counted
from conveyord.storage.lake.table import CREATED_BY_KEY

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import FileScanTask, Table
    from pyiceberg.table.snapshots import Snapshot

PROVENANCE = ("_source", "_partition", "_offset")
DAMAGE = (OSError, ValueError, pa.ArrowException)  # missing, cut short, or not Parquet any more
DEEP_ROWS = 4_096  # decoded at a time: of tables with long texts, some megabytes
DEEP_READ_BYTES = 256 * 1024  # read ahead in each column; else whole columns of a row group would be held
FINDINGS_MAX = 20  # a broken table breaks in thousands of places; twenty are enough to see the pattern

Basis = Literal["provenance", "fence", "none"]


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What a table holds and what it should hold.

    rows: counted in the Parquet files. distinct: different (source, partition, offset), None without
    provenance. duplicates and gaps: rows too many and too few, None if that cannot be told. dead_letters:
    records kept aside, which do not exist yet. fence: the fences' figures by pipeline. basis: what the
    judgement rests on. findings: sentences on everything that is wrong or could not be checked.
    """

    table: str
    rows: int
    distinct: int | None
    duplicates: int | None
    gaps: int | None
    dead_letters: int
    fence: dict[str, dict[str, int]]
    basis: Basis
    ok: bool
    findings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The documented shape."""
        return {
            "table": self.table,
            "rows": self.rows,
            "distinct": self.distinct,
            "duplicates": self.duplicates,
            "gaps": self.gaps,
            "dead_letters": self.dead_letters,
            "fence": self.fence,
            "basis": self.basis,
            "ok": self.ok,
            "findings": list(self.findings),
        }

    def as_text(self) -> str:
        """The report for people: a verdict, the figures, the findings."""

        def number(value: int | None) -> str:
            return "cannot be told" if value is None else f"{value:,}"

        lines = [f"{self.table}: {'ok' if self.ok else 'NOT OK'}, judged by {self.basis}"]
        lines.append(f"  rows        {number(self.rows)}, counted in the data files")
        if self.distinct is not None:
            lines.append(f"  distinct    {number(self.distinct)}")
        lines.append(f"  duplicates  {number(self.duplicates)}")
        lines.append(f"  gaps        {number(self.gaps)}")
        for pipeline, figures in self.fence.items():
            tally = ", ".join(f"{figures[name]:,} {name}" for name in ("read", "skipped", "filtered", "added", "dead"))
            shown = f"{counted(figures['rows'], 'row')}, {tally}, {counted(figures['partitions'], 'partition')}"
            lines.append(f"  fence       {pipeline}: batch {figures['batch']:,}; {shown}")
        lines += [f"  {'-' if self.ok else '!'} {finding}" for finding in self.findings]
        return "\n".join(lines)


@dataclass(slots=True)
class _Count:
    """What reading the files gave. `offsets` holds 8 bytes per row with provenance."""

    rows: int = 0
    foreign: int = 0
    unplaced: int = 0
    foreign_unplaced: int = 0
    offsets: dict[Partition, list[pa.Array]] = field(default_factory=lambda: defaultdict(list))
    findings: list[str] = field(default_factory=list)
    unreadable: int = 0
    checked: set[str] = field(default_factory=set)

    def find(self, sentence: str) -> None:
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(sentence)
        elif len(self.findings) == FINDINGS_MAX:
            self.findings.append("and more of the kind")


def audit_table(table: Table, *, name: str, deep: bool = False) -> AuditReport:
    """Read every data file of `table` and judge. deep: read all pages of all columns, and verify their checksums.

    Raises Corrupt if a fence, a manifest or an archive of positions cannot be read.
    """
    try:
        return _audit(table, name, deep=deep)
    except FileNotFoundError as error:  # data files are met one by one, so this is metadata
        raise Corrupt(f"table {name}: {error}; restore the file from a backup of the warehouse") from error


def _audit(table: Table, name: str, *, deep: bool) -> AuditReport:
    fences = _fences(table)
    placed = all(any(column.name == wanted for column in table.schema().columns) for wanted in PROVENANCE)
    others = _foreign(table)
    count = _count(table, foreign={snapshot.snapshot_id for snapshot in others}, placed=placed, deep=deep)
    _check_rollback(table, fences, count)
    basis: Basis = "none" if not fences else "provenance" if placed else "fence"
    expected = sum(fence.rows for fence in fences.values())
    distinct = duplicates = gaps = None
    if basis == "provenance":
        distinct, found = _distinct(count)
        _check_positions(fences, count)
        exploded = any(fence.tally.added > 0 for fence in fences.values())
        # Rows that were made of one record share its place, so there only their number can be checked.
        duplicates = max(0, found - expected) if exploded else found - distinct
        gaps = _gaps_by_provenance(table, count, expected=expected, found=found if exploded else distinct)
    elif basis == "fence":
        duplicates, gaps = _compare(table, count, expected=expected, others=others)
    else:
        count.find("the table has no fence: conveyord has not written it, or someone removed the property")
    sound = not duplicates and not gaps and not count.unreadable and basis != "none"
    return AuditReport(
        table=name,
        rows=count.rows,
        distinct=distinct,
        duplicates=duplicates,
        gaps=gaps,
        dead_letters=sum(fence.tally.dead for fence in fences.values()),
        fence={pipeline: figures_of(fence) for pipeline, fence in fences.items()},
        basis=basis,
        ok=sound and not count.findings,
        findings=tuple(count.findings),
    )


def _fences(table: Table) -> dict[str, Fence]:
    """The fences of every pipeline that writes the table, their archives loaded."""
    fences = {}
    for key, value in sorted(table.properties.items()):
        if not (key.startswith("conveyord.") and key.endswith(".fence")):
            continue
        fence = decode(value, where=f"table {'.'.join(table.name())}, property {key}")
        if fence.archive is not None:
            with table.io.new_input(fence.archive.location).open() as stream:
                fence = fence.loaded(stream.read())
        fences[key.removeprefix("conveyord.").removesuffix(".fence")] = fence
    return fences


def figures_of(fence: Fence) -> dict[str, int]:
    """What a fence counts, as reports show it."""
    tally = fence.tally
    return {
        "batch": fence.n,
        "rows": fence.rows,
        "read": tally.read,
        "skipped": tally.skipped,
        "filtered": tally.filtered,
        "added": tally.added,
        "dead": tally.dead,
        "partitions": len(fence.positions),
    }


def _ancestors(table: Table) -> Iterator[Snapshot]:
    """The head and what came before it, newest first, as far as it has not been expired."""
    snapshot = table.current_snapshot()
    while snapshot is not None:
        yield snapshot
        parent = snapshot.parent_snapshot_id
        snapshot = None if parent is None else table.metadata.snapshot_by_id(parent)


def _foreign(table: Table) -> list[Snapshot]:
    """The known snapshots that no pipeline made, under whatever name it then had."""
    return [snapshot for snapshot in _ancestors(table) if not _is_ours(snapshot)]


def _is_ours(snapshot: Snapshot) -> bool:
    if snapshot.summary is None:
        return False
    keys = snapshot.summary.additional_properties
    return any(key.startswith("conveyord.") and key.endswith(".batch-seq") for key in keys)


def _count(table: Table, *, foreign: set[int], placed: bool, deep: bool) -> _Count:
    from pyiceberg.expressions import AlwaysTrue
    from pyiceberg.io.pyarrow import ArrowScan
    from pyiceberg.schema import Schema

    count = _Count()
    schema = table.schema()
    # Field ids grow, so the lowest is the column that was there first and is in every file.
    columns = (
        [schema.find_field(name) for name in PROVENANCE] if placed else [min(schema.fields, key=lambda f: f.field_id)]
    )
    added_by = _adding_snapshots(table)
    seen: set[str] = set()
    scan = ArrowScan(table.metadata, table.io, Schema(*columns), AlwaysTrue())
    for task in table.scan().plan_files():
        path = task.file.file_path
        if path in seen:
            count.find(f"the file {path} is listed twice, so its rows are read twice")
        seen.add(path)
        unplaced = count.unplaced
        try:
            for file in (task.file, *task.delete_files):
                _check_file(table, file, count, counts=bool(task.delete_files), deep=deep)
            rows = _count_file(scan, task, count, placed=placed)
        except DAMAGE as error:
            count.unreadable += 1
            count.find(f"the file {path} cannot be read: {str(error).splitlines()[0]}")
            continue
        count.rows += rows
        if added_by.get(path) in foreign:
            count.foreign += rows
            count.foreign_unplaced += count.unplaced - unplaced
        if not task.delete_files and rows != task.file.record_count:
            count.find(
                f"the file {path} holds {counted(rows, 'row')}, the table's manifest says {task.file.record_count}"
            )
    return count


def _check_file(table: Table, file: DataFile, count: _Count, *, counts: bool, deep: bool) -> None:
    """Hold one file, of rows or of deletes, against what the table's manifest says of it. Raises DAMAGE.

    counts: also the number of rows, which counting them cannot tell where some are deleted.
    """
    path = file.file_path
    if path in count.checked:
        return  # a file of deletes belongs to many of rows
    count.checked.add(path)
    stored = table.io.new_input(path)
    if (size := len(stored)) != file.file_size_in_bytes:
        count.find(
            f"the file {path} has {counted(size, 'byte')}, the table's manifest says {file.file_size_in_bytes:,}; it "
            "was replaced, changed or cut: restore it from a backup"
        )
    if file.file_format.upper() != "PARQUET" or not (counts or deep):
        return
    options = {"page_checksum_verification": True, "pre_buffer": False, "buffer_size": DEEP_READ_BYTES}
    with stored.open() as stream, pq.ParquetFile(stream, **options) as opened:
        if counts and opened.metadata.num_rows != file.record_count:
            count.find(
                f"the file {path} holds {counted(opened.metadata.num_rows, 'row')}, the table's manifest says "
                f"{file.record_count}"
            )
        if deep:
            # To read and decode a page is to verify it; one whose header lost its kind is passed over without an error.
            read = sum(batch.num_rows for batch in opened.iter_batches(DEEP_ROWS, use_threads=False))
            if read != opened.metadata.num_rows:
                count.find(
                    f"the file {path} gives {counted(read, 'row')}, its footer says {opened.metadata.num_rows:,}; it "
                    "was damaged: restore it from a backup"
                )


def _count_file(scan: Any, task: FileScanTask, count: _Count, *, placed: bool) -> int:
    """The rows of one file, their places added to `count`."""
    rows = 0
    for batch in scan.to_record_batches([task]):
        rows += batch.num_rows
        if placed and batch.num_rows:
            _add_places(batch, count)
    return rows


def _add_places(batch: pa.RecordBatch, count: _Count) -> None:
    known = batch.filter(pc.is_valid(batch.column("_offset")))
    count.unplaced += batch.num_rows - known.num_rows
    pairs = pa.Table.from_batches([known.select(PROVENANCE[:2])]).cast(
        pa.schema([(name, pa.string()) for name in PROVENANCE[:2]])
    )
    for pair in pairs.group_by(list(PROVENANCE[:2])).aggregate([]).to_pylist():
        source, partition = pair["_source"], pair["_partition"]
        same = pc.and_(
            pc.equal(known.column("_source").cast(pa.string()), source),
            pc.equal(known.column("_partition").cast(pa.string()), partition),
        )
        count.offsets[Partition(source, partition)].append(known.column("_offset").filter(same))


def _adding_snapshots(table: Table) -> dict[str, int | None]:
    """Which snapshot added each live data file."""
    head = table.current_snapshot()
    if head is None:
        return {}
    return {
        entry.data_file.file_path: entry.snapshot_id
        for manifest in head.manifests(table.io)
        for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True)
    }


def _distinct(count: _Count) -> tuple[int, int]:
    """How many different places the rows have, and how many rows have a place."""
    distinct = placed = 0
    for offsets in count.offsets.values():
        chunked = pa.chunked_array(offsets)
        placed += len(chunked)
        distinct += pc.count_distinct(chunked).as_py()
    return distinct, placed


def _check_positions(fences: dict[str, Fence], count: _Count) -> None:
    """Every row must come from below the position that the fence names for its partition."""
    ends: dict[Partition, int] = {}
    for fence in fences.values():
        for partition, position in fence.positions.items():
            ends[partition] = max(position.offset, ends.get(partition, 0))
    for partition, offsets in count.offsets.items():
        end = ends.get(partition)
        if end is None:
            count.find(f"rows come from {partition.name}, of which no fence knows")
            continue
        ahead = pc.sum(pc.greater_equal(pa.chunked_array(offsets), end)).as_py() or 0
        if ahead:
            count.find(f"{partition.name}: {counted(ahead, 'row')} at or above the fence's position {end}")


def _gaps_by_provenance(table: Table, count: _Count, *, expected: int, found: int) -> int:
    """How many rows are missing. `found` rows of the `expected` have a place."""
    # Rows without a place are others', or the pipeline's from before provenance was switched on.
    ours = count.unplaced - count.foreign_unplaced if CREATED_BY_KEY in table.properties else 0
    if found + ours > expected:
        count.find(f"the table holds {counted(found + ours, 'row')}, the fences count {expected:,}")
    return max(0, expected - found - ours)


def _compare(table: Table, count: _Count, *, expected: int, others: list[Snapshot]) -> tuple[int | None, int | None]:
    """Duplicates and gaps by the number of rows alone. None where others' rows cannot be told from ours."""
    rewriting = [s for s in others if s.summary is not None and s.summary.operation.value != "append"]
    if rewriting:
        operation = rewriting[0].summary.operation.value if rewriting[0].summary is not None else "unknown"
        count.find(
            f"someone else changed rows (snapshot {rewriting[0].snapshot_id}, {operation}), so the number of "
            "rows proves nothing; set provenance: true on the sink to check record by record"
        )
        return None, None
    if CREATED_BY_KEY not in table.properties:
        count.find(
            "the table was not created by conveyord, so rows that it held before cannot be told from the "
            "pipeline's; set provenance: true on the sink to check record by record"
        )
        return None, None
    ours = count.rows - count.foreign
    return max(0, ours - expected), max(0, expected - ours)


def _check_rollback(table: Table, fences: dict[str, Fence], count: _Count) -> None:
    """The newest snapshot that carries a pipeline's batch must carry the fence's number."""
    for pipeline, fence in fences.items():
        key = batch_key(pipeline)
        numbers = (s.summary.get(key) for s in _ancestors(table) if s.summary is not None)
        newest = next((number for number in numbers if number is not None), None)
        if newest is not None and int(newest) != fence.n:
            count.find(
                f"the fence of {pipeline} is at batch {fence.n}, the newest snapshot is of batch {newest}: "
                "the table was rolled back or restored"
            )

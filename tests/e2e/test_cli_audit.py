"""`audit`: it agrees with sound tables, and notices what someone did to the others, by reading the files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conveyord.storage.lake.catalog import open_embedded

KEYS = {"table", "rows", "distinct", "duplicates", "gaps", "dead_letters", "fence", "basis", "ok", "findings"}


@pytest.fixture
def copied(lake: Path, tmp_path: Path) -> Any:
    """The lake's data directory, in a place where it may be damaged. Its tables are moved with it."""
    data_dir = lake / "conveyord-data"
    kept = tmp_path / "kept"
    shutil.copytree(data_dir, kept)
    yield data_dir
    shutil.rmtree(data_dir)  # metadata names absolute paths, so the original place is used and put back
    shutil.copytree(kept, data_dir)


def audit(call: Any, data_dir: Path, table: str, *options: str) -> Any:
    ended = call("audit", table, "--data-dir", data_dir, "-o", "json", *options)
    assert set(ended.json) == KEYS, ended.err
    assert ended.code == (0 if ended.json["ok"] else 1)
    return ended.json


def data_file(data_dir: Path, table: str) -> Path:
    return min(path for path in (data_dir / "warehouse").rglob("*.parquet") if f"/{table}/" in str(path))


def test_a_sound_table_is_judged_by_its_fence(call: Any, lake: Path) -> None:
    report = audit(call, lake / "conveyord-data", "lake.plain")
    figures = {
        "batch": 1,
        "rows": 500,
        "read": 500,
        "skipped": 0,
        "filtered": 0,
        "added": 0,
        "dead": 0,
        "partitions": 1,
    }
    assert report == {
        "table": "lake.plain",
        "rows": 500,
        "distinct": None,
        "duplicates": 0,
        "gaps": 0,
        "dead_letters": 0,
        "fence": {"default/plain": figures},
        "basis": "fence",
        "ok": True,
        "findings": [],
    }


def test_a_table_with_provenance_is_judged_record_by_record(call: Any, lake: Path) -> None:
    report = audit(call, lake / "conveyord-data", "lake.placed")
    assert (report["basis"], report["distinct"], report["duplicates"], report["gaps"]) == ("provenance", 500, 0, 0)
    assert report["ok"]


def test_a_report_for_people_says_the_verdict_first(call: Any, lake: Path) -> None:
    ended = call("audit", "lake.plain", "--data-dir", lake / "conveyord-data")
    assert ended.out.startswith("lake.plain: ok, judged by fence\n  rows        500, counted in the data files\n")


def rewrite(path: Path, change: Any) -> None:
    """Replace a data file behind the table's back."""
    table = pq.ParquetFile(path).read()
    pq.write_table(change(table), path)


@pytest.mark.parametrize(("table", "basis"), [("plain", "fence"), ("placed", "provenance")])
def test_a_row_that_vanished_from_a_file_is_a_gap(call: Any, copied: Path, table: str, basis: str) -> None:
    rewrite(data_file(copied, table), lambda data: data.slice(1))
    report = audit(call, copied, f"lake.{table}")
    assert (report["basis"], report["rows"], report["gaps"], report["duplicates"]) == (basis, 499, 1, 0)
    assert "manifest says" in report["findings"][0]


@pytest.mark.parametrize("table", ["plain", "placed"])
def test_a_row_that_is_there_twice_is_a_duplicate(call: Any, copied: Path, table: str) -> None:
    rewrite(data_file(copied, table), lambda data: pa.concat_tables([data, data.slice(0, 1)]))
    report = audit(call, copied, f"lake.{table}")
    assert (report["rows"], report["duplicates"], report["ok"]) == (501, 1, False)


def test_which_row_was_lost_and_which_doubled_is_seen_only_with_provenance(call: Any, copied: Path) -> None:
    for table in ("plain", "placed"):
        rewrite(data_file(copied, table), lambda data: pa.concat_tables([data.slice(1), data.slice(1, 1)]))
    report = audit(call, copied, "lake.plain")
    assert (report["rows"], report["duplicates"], report["gaps"], report["ok"]) == (500, 0, 0, False)
    report = audit(call, copied, "lake.placed")
    assert (report["rows"], report["distinct"], report["duplicates"], report["gaps"]) == (500, 499, 1, 1)


def test_a_file_with_other_values_in_as_many_rows_is_named(call: Any, copied: Path) -> None:
    path = data_file(copied, "plain")
    rewrite(path, lambda data: data.set_column(0, data.field(0), pa.array([7] * len(data), data.field(0).type)))
    report = audit(call, copied, "lake.plain")
    assert (report["rows"], report["ok"]) == (500, False)
    (finding,) = report["findings"]
    assert f"{path} has " in finding
    assert "replaced, changed or cut" in finding


def page_ends(path: Path) -> list[int]:
    """Of every column the last byte, which is in a page and in no header."""
    group = pq.read_metadata(path).row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    starts = [column.dictionary_page_offset or column.data_page_offset for column in columns]
    return [first + column.total_compressed_size - 1 for first, column in zip(starts, columns, strict=True)]


def test_a_byte_that_flipped_in_any_column_is_found_by_a_deep_audit(call: Any, copied: Path) -> None:
    path = data_file(copied, "plain")
    assert audit(call, copied, "lake.plain", "--deep")["ok"]
    sound = path.read_bytes()
    for at in page_ends(path):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
        report = audit(call, copied, "lake.plain", "--deep")
        assert not report["ok"], f"byte {at}"
        assert f"{path} cannot be read: " in report["findings"][0]
        assert "CRC" in report["findings"][0]


def test_a_page_that_lost_its_kind_is_found_by_a_deep_audit(call: Any, copied: Path) -> None:
    """pyarrow passes over such a page, and over its rows, without an error."""
    path = data_file(copied, "plain")
    sound = path.read_bytes()
    whole, silent = pq.read_metadata(path).num_rows, 0
    for at in range(4, len(sound) // 4):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 0x10]) + sound[at + 1 :])
        try:
            rows = sum(batch.num_rows for batch in pq.ParquetFile(path).iter_batches())
        except (OSError, pa.ArrowException):
            continue
        if rows == whole:
            continue
        silent += 1
        report = audit(call, copied, "lake.plain", "--deep")
        assert not report["ok"], f"byte {at}"
    assert silent


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_file_that_cannot_be_read_is_named(call: Any, copied: Path, damage: str) -> None:
    path = data_file(copied, "plain")
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100])
    report = audit(call, copied, "lake.plain")
    assert not report["ok"]
    assert str(path) in report["findings"][0]
    assert report["gaps"] > 0


def test_rows_that_others_appended_are_told_from_the_pipelines(call: Any, copied: Path) -> None:
    for name in ("plain", "placed"):
        table = open_embedded(copied).load_table(f"lake.{name}")
        table.append(table.scan(limit=1).to_arrow().select(["id", "at"]))
    assert audit(call, copied, "lake.plain")["rows"] == 501
    assert audit(call, copied, "lake.plain")["ok"]
    assert audit(call, copied, "lake.placed")["ok"]


def test_rows_that_others_deleted_make_counting_useless_and_provenance_find_them(call: Any, copied: Path) -> None:
    for name in ("plain", "placed"):
        open_embedded(copied).load_table(f"lake.{name}").delete("id < 10")
    report = audit(call, copied, "lake.plain")
    assert (report["gaps"], report["duplicates"], report["ok"]) == (None, None, False)
    assert "someone else changed rows" in report["findings"][0]
    report = audit(call, copied, "lake.placed")
    assert (report["gaps"], report["ok"]) == (10, False)


def test_a_table_that_was_rolled_back_is_noticed(call: Any, shell: Any, lake: Path, copied: Path) -> None:
    table = open_embedded(copied).load_table("lake.plain")
    before = table.current_snapshot()
    with (lake / "in.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": 500, "at": "2024-01-01T00:00:00Z", "inner": {"mag": 1.5}}\n')
    try:
        assert shell.run("run", "plain.yaml", cwd=lake).code == 0
    finally:
        lines = (lake / "in.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (lake / "in.jsonl").write_text("".join(lines[:500]), encoding="utf-8")
    assert audit(call, copied, "lake.plain")["rows"] == 501
    open_embedded(copied).load_table("lake.plain").manage_snapshots().rollback_to_snapshot(before.snapshot_id).commit()
    report = audit(call, copied, "lake.plain")
    assert (report["rows"], report["gaps"], report["ok"]) == (500, 1, False)
    assert "rolled back" in " ".join(report["findings"])


def test_a_table_that_conveyord_never_wrote_cannot_be_vouched_for(call: Any, copied: Path) -> None:
    catalog = open_embedded(copied)
    rows = pa.table({"id": [1, 2]})
    catalog.create_table("lake.theirs", schema=rows.schema).append(rows)
    report = audit(call, copied, "lake.theirs")
    assert (report["basis"], report["rows"], report["ok"]) == ("none", 2, False)


def test_a_missing_manifest_is_corruption_with_a_remedy(call: Any, copied: Path) -> None:
    for path in (copied / "warehouse").rglob("*.avro"):
        path.unlink()
    ended = call("audit", "lake.plain", "--data-dir", copied)
    assert ended.code == 1
    assert "restore the file from a backup of the warehouse" in ended.err


def test_an_unknown_table_is_exit_code_2_with_a_suggestion(call: Any, lake: Path) -> None:
    ended = call("audit", "lake.plan", "--data-dir", lake / "conveyord-data")
    assert ended.code == 2
    assert "unknown table 'lake.plan'; did you mean 'lake.plain'?" in ended.err
    assert call("audit", "plain", "--data-dir", lake / "conveyord-data").code == 2

"""`audit` of a directory: it agrees with sound ones, and notices what somebody did to the others, by reading files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from conveyord.core.errors import ConfigError, Corrupt
from conveyord.storage.directory_audit import audit_directory
from conveyord.storage.lake.audit import AuditReport
from conveyord.storage.parquet_dir.directory import FOOTER_KEY
from tests.storage.directory_rig import KINDS, PIPELINE, Run


def written(root: Path, kind: str, commits: int = 4) -> Path:
    """A directory with some commits, and what is to be audited there."""
    run = Run(root, kind).open()
    for number in range(commits):
        run.commit_next(rows=4 - number % 2)
        run.positions = run.driver._fence.positions
    run.driver.abort()
    run.driver.close()
    return root / "rows.jsonl" if kind == "single" else root


def said(report: AuditReport, *parts: str) -> None:
    assert not report.ok
    assert any(all(part in finding for part in parts) for finding in report.findings), report.findings


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_directory_is_judged_by_its_manifests(tmp_path: Path, kind: str) -> None:
    report = audit_directory(written(tmp_path / "out", kind))
    assert (report.ok, report.findings, report.basis) == (True, (), "fence")
    assert (report.rows, report.duplicates, report.gaps) == (14, 0, 0)
    assert report.fence[PIPELINE]["batch"] >= 4
    assert report.fence[PIPELINE]["rows"] == 14


@pytest.mark.parametrize("kind", KINDS)
def test_lost_rows_are_gaps(tmp_path: Path, kind: str) -> None:
    target = written(tmp_path / "out", kind)
    files = [target] if kind == "single" else sorted(p for p in target.rglob("part-*") if p.is_file())
    first = files[0]
    if kind == "single":
        first.write_bytes(first.read_bytes().split(b"\n", 1)[1])
    else:
        first.unlink()
    report = audit_directory(target)
    assert report.gaps and not report.duplicates
    said(report, PIPELINE, "its commits count 14")


def test_a_copied_file_doubles_its_rows(tmp_path: Path) -> None:
    root = written(tmp_path / "out", "parquet")
    first = min(root.glob("*.parquet"))
    (root / "more").mkdir()
    shutil.copy(first, root / "more")
    report = audit_directory(root)
    assert report.duplicates == pq.ParquetFile(first).metadata.num_rows
    said(report, f"the file more/{first.name} is a copy of {first.name}")


def test_files_of_commits_that_no_manifest_knows_are_told_of(tmp_path: Path) -> None:
    root = written(tmp_path / "out", "parquet")
    state = next((root / "_conveyord").iterdir())
    max(state.glob("commit-*.json")).unlink()
    report = audit_directory(root)
    assert report.duplicates
    said(report, "is of commit 4, the newest manifest is of 3")


@pytest.mark.parametrize("keeps_footer", [True, False])
@pytest.mark.parametrize("kind", ["parquet", "partitioned"])
def test_a_file_that_others_wrote_anew_is_named_though_it_has_as_many_rows(
    tmp_path: Path, kind: str, *, keeps_footer: bool
) -> None:
    root = written(tmp_path / "out", kind)
    first = min(root.rglob("part-*.parquet"))
    table = pq.ParquetFile(first).read()
    assert FOOTER_KEY.encode() in table.schema.metadata, "or the test would not test what it says"
    edited = table.set_column(0, "offset", pa.array([99] * len(table)))
    pq.write_table(edited if keeps_footer else edited.replace_schema_metadata(), first)
    report = audit_directory(root)
    assert (report.rows, report.duplicates, report.gaps) == (14, 0, 0)
    said(report, str(first.relative_to(root)), "is not as it was written" if keeps_footer else "footer does not say so")


def test_a_byte_that_flipped_anywhere_in_a_file_is_found(tmp_path: Path) -> None:
    root = written(tmp_path / "out", "parquet", commits=1)
    first = min(root.glob("part-*.parquet"))
    sound = first.read_bytes()
    random = Random(4)
    for at in {0, len(sound) - 1, *random.sample(range(len(sound)), 120)}:
        first.write_bytes(sound[:at] + bytes([sound[at] ^ 1 << random.randrange(8)]) + sound[at + 1 :])
        assert not audit_directory(root).ok, f"byte {at} of {len(sound)}"
    first.write_bytes(sound)
    assert audit_directory(root).ok


def test_a_file_copied_beside_another_is_named_and_its_rows_count(tmp_path: Path) -> None:
    root = written(tmp_path / "out", "parquet")
    first = min(root.glob("part-*.parquet"))
    shutil.copy(first, root / "backup.parquet")
    shutil.copy(first, root / first.name.replace("-00001.parquet", "-00009.parquet"))
    report = audit_directory(root)
    assert report.duplicates == 2 * pq.ParquetFile(first).metadata.num_rows
    said(report, f"the file backup.parquet is a copy of {first.name}, so its rows are read more than once")
    said(report, f"-00009.parquet is a copy of {first.name}")


def test_a_file_under_another_name_is_named_and_not_missed(tmp_path: Path) -> None:
    root = written(tmp_path / "out", "parquet")
    first = min(root.glob("part-*.parquet"))
    first.rename(root / "renamed.parquet")
    report = audit_directory(root)
    assert (report.rows, report.gaps) == (14, 0)
    said(report, f"the file renamed.parquet was written as {first.name}; rename it back")


def test_a_file_that_went_to_another_partition_is_named(tmp_path: Path) -> None:
    root = written(tmp_path / "out", "partitioned")
    first = min(root.rglob("part-*.parquet"))
    other = root / first.relative_to(root).as_posix().replace("k=k0", "k=k7")
    other.parent.mkdir(parents=True)
    first.rename(other)
    report = audit_directory(root)
    assert report.rows == 14
    said(report, "k=k7", f"was written as {first.relative_to(root)}")


def test_files_of_earlier_versions_have_no_seal_and_are_counted(tmp_path: Path) -> None:
    root = written(tmp_path / "out", "parquet")
    for path in root.glob("part-*.parquet"):
        table = pq.ParquetFile(path).read()
        footer = json.loads(table.schema.metadata[FOOTER_KEY.encode()])
        del footer["seal"], footer["path"]
        footer["file"] = path.stem
        pq.write_table(table.replace_schema_metadata({FOOTER_KEY: json.dumps(footer)}), path)
    assert audit_directory(root).ok
    shutil.copy(path, root / "copied.parquet")
    said(audit_directory(root), f"copied.parquet is a copy of {path.name}")


@pytest.mark.parametrize("kind", ["lines", "zstd", "single"])
def test_lines_that_were_changed_before_the_last_commit_s_end_are_told_of(tmp_path: Path, kind: str) -> None:
    target = written(tmp_path / "out", kind)
    newest = target if kind == "single" else max(target.glob("part-*"))
    content = newest.read_bytes()
    if kind == "zstd":
        packed = zstandard.ZstdDecompressor().stream_reader(content, read_across_frames=True)
        edited = zstandard.compress(packed.read().replace(b"k", b"q"))
        newest.write_bytes(edited.ljust(len(content), b"\x00")[: len(content)])  # as long
    else:
        newest.write_bytes(content.replace(b'"k0"', b'"k8"'))
    said(audit_directory(target), newest.name, "ends otherwise than when it was committed")


def test_damage_is_found_by_decoding(tmp_path: Path) -> None:
    root = written(tmp_path / "out", "parquet")
    first = min(root.glob("*.parquet"))
    first.write_bytes(first.read_bytes()[:-20])
    said(audit_directory(root), first.name, "cannot be read")


def test_a_commit_that_is_not_in_place_yet_is_told_of(tmp_path: Path) -> None:
    root = written(tmp_path / "out", "parquet")
    state = next((root / "_conveyord").iterdir())
    last = max(root.glob("*.parquet"))
    last.rename(state / "staged" / f"{last.stem}.part")
    said(audit_directory(root), last.name, "the next run of the pipeline puts it in its place")
    last_again = Run(root, "parquet").open()
    last_again.driver.close()
    assert audit_directory(root).ok


@pytest.mark.parametrize("kind", ["lines", "zstd", "single"])
def test_lines_behind_the_last_commit_are_told_of(tmp_path: Path, kind: str) -> None:
    target = written(tmp_path / "out", kind)
    newest = target if kind == "single" else max(target.glob("part-*"))
    with newest.open("ab") as file:
        file.write(b"{}\n")
    report = audit_directory(target)
    assert (report.rows, report.gaps, report.duplicates) == (14, 0, 0)
    said(report, "somebody added to it, or manifests were lost")


def test_what_others_put_there_is_left_alone(tmp_path: Path) -> None:
    root = written(tmp_path / "out", "parquet")
    pq.write_table(pa.table({"offset": [1, 2]}), root / "theirs.parquet")
    (root / "torn.parquet").write_bytes(b"PAR1")
    (root / "spark.parquet").mkdir()
    (root / "notes.txt").write_text("x")
    report = audit_directory(root)
    assert (report.ok, report.rows) == (True, 14)


def test_a_directory_without_commits_cannot_be_vouched_for(tmp_path: Path) -> None:
    report = audit_directory(tmp_path)
    assert (report.basis, report.ok, report.gaps) == ("none", False, None)
    with pytest.raises(ConfigError, match="there is no such directory"):
        audit_directory(tmp_path / "nothing")


def test_a_damaged_manifest_is_corrupt(tmp_path: Path) -> None:
    root = written(tmp_path / "out", "lines")
    state = next((root / "_conveyord").iterdir())
    max(state.glob("commit-*.json")).write_text("{")
    with pytest.raises(Corrupt, match="not a manifest"):
        audit_directory(root)

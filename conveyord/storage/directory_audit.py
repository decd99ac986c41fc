"""Checks a directory that pipelines write exactly once against its manifests. Blocking; changes nothing.

As for tables (`lake/audit.py`), nothing that conveyord wrote about rows is trusted for counting them: every file is
opened and decoded. The newest manifest says how many rows there should be, and which files belong to no commit; every
Parquet file says where it belongs and has a digest of itself (`parquet_dir/sealing.py`). No run may write meanwhile:
files of a commit that is being published would be missed or seen too early.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from conveyord.core.errors import ConfigError
from conveyord.core.planning.fence import Fence
from conveyord.core.units import counted
from conveyord.storage.claims import Claims
from conveyord.storage.commit_log import STATE_DIRECTORY, CommitLog, Manifest, file_stem, former_names
from conveyord.storage.files import GZIP_MAGIC, READ_BYTES, ZSTD_MAGIC
from conveyord.storage.jsonl_files import ends_as_committed, line_files_pattern
from conveyord.storage.lake.audit import FINDINGS_MAX, AuditReport, figures_of
from conveyord.storage.parquet_dir.directory import FOOTER_KEY, SINK, files_of
from conveyord.storage.parquet_dir.sealing import SEAL_KEY, is_intact
from conveyord.storage.parquet_dir.staging import STAGED_DIRECTORY
from conveyord.storage.spill.names import shown

PARQUET_END_BYTES = 8  # behind a footer: its length, and what every Parquet file ends with


@dataclass(slots=True)
class _Found:
    """What looking at the files gave, for all pipelines that write there."""

    rows: int = 0
    duplicates: int = 0
    gaps: int = 0
    fences: dict[str, Fence] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    def find(self, sentence: str) -> None:
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(sentence)
        elif len(self.findings) == FINDINGS_MAX:
            self.findings.append("and more of the kind")

    def judge(self, pipeline: str, fence: Fence, rows: int) -> None:
        """Compare the rows of a pipeline's files with its fence."""
        self.fences[pipeline] = fence
        self.rows += rows
        self.duplicates += max(0, rows - fence.rows)
        self.gaps += max(0, fence.rows - rows)
        if rows != fence.rows:
            self.find(
                f"the files of {pipeline} hold {counted(rows, 'row')}, its commits count {fence.rows:,}; "
                "files were added, deleted or moved away"
            )


def audit_directory(path: Path) -> AuditReport:
    """Read every file that pipelines have written to `path`, a directory or the one file of a sink, and judge.

    Raises ConfigError if there is no such path, Corrupt if a manifest or an archive of positions cannot be read.
    """
    if not path.exists():
        raise ConfigError(f"{path}: there is no such directory or file; name what `path` of the sink names")
    found = _Found()
    for pipeline, place in _places(path):
        newest = CommitLog(place, sink="").newest()
        if newest is None:
            continue
        if newest.sink == SINK:
            _check_parquet(path, place, pipeline, newest, found)
        else:
            _check_lines(path, place, pipeline, newest, found)
    if not found.fences:
        found.find(_no_commits(path))
    return AuditReport(
        table=str(path),
        rows=found.rows,
        distinct=None,
        duplicates=found.duplicates if found.fences else None,
        gaps=found.gaps if found.fences else None,
        dead_letters=sum(fence.tally.dead for fence in found.fences.values()),
        fence={pipeline: figures_of(fence) for pipeline, fence in found.fences.items()},
        basis="fence" if found.fences else "none",
        ok=not found.findings,
        findings=tuple(found.findings),
    )


def _places(path: Path) -> Iterator[tuple[str, Path]]:
    """Every pipeline that writes to `path`, and where its manifests lie."""
    home, inner = (path, "") if path.is_dir() else (path.parent, path.name)
    state = home / STATE_DIRECTORY
    for place in sorted(state.iterdir()) if state.is_dir() else ():
        if place.is_dir() and (not inner or (place / inner).is_dir()):
            yield shown(place.name), place / inner


def _no_commits(path: Path) -> str:
    if path.is_dir():
        return f"no pipeline has committed anything here: {STATE_DIRECTORY} beside the files holds no manifest"
    return (
        f"no pipeline has committed anything to this file: {path.parent / STATE_DIRECTORY} holds no manifest of it. If "
        "one wrote it, that directory was moved or deleted, and must be restored; if the file is one of a directory "
        f"that a pipeline writes, audit {path.parent}"
    )


# ---------------------------------------------------------------------------- parquet_dir


def _check_parquet(root: Path, place: Path, pipeline: str, newest: Manifest, found: _Found) -> None:
    rows, places = 0, defaultdict[str, list[tuple[bool, bool, str]]](list)
    names = {pipeline, *former_names(newest, pipeline)}
    stems = "|".join(re.escape(file_stem(each)) for each in sorted(names))
    own = re.compile(rf"(?:{stems})-(\d{{8,}})-\d{{5,}}\.parquet")
    for file in sorted(root.rglob("*.parquet")):
        within = file.relative_to(root)
        if any(part.startswith(("_", ".")) for part in within.parts):
            continue  # what readers pass over
        said = _said_by(file)
        if own.fullmatch(file.name) is None and said.get("pipeline") not in names:
            continue  # others' files
        # Files of earlier versions say their name alone.
        written = PurePosixPath(str(said.get("path") or f"{said.get('file', file.stem)}.parquet"))
        places[written.name].append((within.as_posix() != written.as_posix(), within.name != written.name, str(within)))
        commit = own.fullmatch(written.name)
        if commit is not None and int(commit[1]) > newest.fence.n:
            found.find(f"the file {within} is of commit {int(commit[1])}, the newest manifest is of {newest.fence.n}")
        if "path" in said and _hive(written) != _hive(within):
            found.find(f"the file {within} was written as {written}; where it is, its partition columns say otherwise")
        rows += _parquet_rows(file, within, said, names, found)
    _check_names(places, found)
    for staged in files_of(newest, place):
        if not (root / staged.path).exists():
            waits = (place / STAGED_DIRECTORY / staged.staged).exists()
            remedy = "the next run of the pipeline puts it in its place" if waits else "restore it from a backup"
            found.find(f"the file {staged.path} of the newest commit is missing; {remedy}")
    found.judge(pipeline, newest.fence, rows)


def _said_by(file: Path) -> dict[str, Any]:
    """What a file says of itself in its footer; nothing if it is another program's, or cannot be read."""
    try:
        said = json.loads((pq.read_metadata(file).metadata or {})[FOOTER_KEY.encode()])
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return {}
    return said if isinstance(said, dict) and isinstance(said.get("pipeline"), str) else {}


def _hive(path: PurePath) -> list[str]:
    """The parts of a path from which readers take the values of partition columns."""
    return [part for part in path.parts[:-1] if "=" in part]


def _check_names(places: Mapping[str, list[tuple[bool, bool, str]]], found: _Found) -> None:
    """Every file under its own name, and once.

    places: by the name that a file was given, where it is: not as it was written, not under that name, the path.
    """
    for name, where in places.items():
        (_, is_renamed, original), *copies = sorted(where)
        for *_, copy in copies:
            found.find(f"the file {copy} is a copy of {original}, so its rows are read more than once; delete it")
        if is_renamed:
            found.find(f"the file {original} was written as {name}; rename it back")


def _parquet_rows(file: Path, within: Path, said: Mapping[str, Any], pipelines: set[str], found: _Found) -> int:
    """The rows of one file, decoded, and a look at whose it says it is, and whether it is what was written."""
    rows = 0
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            footer_bytes = int(opened.metadata.serialized_size) + PARQUET_END_BYTES
            for batch in opened.iter_batches(use_threads=False):
                rows += batch.num_rows
        if said.get("pipeline") not in pipelines:
            owner = " or ".join(sorted(pipelines))
            found.find(f"the file {within} has the name of one of {owner}, but its footer does not say so")
        elif SEAL_KEY not in said and "path" in said:
            found.find(f"the file {within} lost its seal: it was changed or damaged; restore it")
        elif SEAL_KEY in said and not is_intact(file, str(said[SEAL_KEY]), footer_bytes=footer_bytes):
            found.find(f"the file {within} is not as it was written: it was changed or damaged; restore it")
    except (OSError, ValueError, pa.ArrowException) as error:
        found.find(f"the file {within} cannot be read: {str(error).splitlines()[0]}")
    return rows


# ---------------------------------------------------------------------------- file_jsonl


def _check_lines(path: Path, place: Path, pipeline: str, newest: Manifest, found: _Found) -> None:
    number, last, size_bytes = (newest.notes.get(key) for key in ("number", "name", "bytes"))
    claims = Claims(place, path if path.is_dir() else path.parent)
    rows = 0
    for its_number, file in _line_files(path, (pipeline, *former_names(newest, pipeline))):
        is_ours = claims.holds(file)
        is_last = file.name == last
        if not is_last and its_number > int(number or 0):
            remedy = "deletes it" if is_ours else "stops at it: the file is another program's, or manifests were lost"
            found.find(f"the file {file.name} is of no commit; the next run of the pipeline {remedy}")
            continue
        limit = int(size_bytes or 0) if is_last else None
        size = file.stat().st_size
        if limit is not None and size != limit:
            longer = "the next run cuts it off" if is_ours else "somebody added to it, or manifests were lost"
            remedy = longer if size > limit else "somebody cut it"
            found.find(f"the file {file.name} has {counted(size, 'byte')}, of which {limit:,} were committed; {remedy}")
        tail = newest.notes.get("tail") if is_last else None
        if limit is not None and tail and size >= limit and not ends_as_committed(file, limit, str(tail)):
            found.find(f"the file {file.name} ends otherwise than when it was committed; somebody changed it")
        rows += _lines_in(file, limit, found)
    found.judge(pipeline, newest.fence, rows)


def _line_files(path: Path, pipelines: Iterable[str]) -> Iterator[tuple[int, Path]]:
    if path.is_file():
        yield 1, path
        return
    own = line_files_pattern(pipelines)
    for file in sorted(path.iterdir()):
        if name := own.fullmatch(file.name):
            yield int(name[1]), file


class _Limited(io.RawIOBase):
    """The first bytes of a file as a file of their own."""

    def __init__(self, file: BinaryIO, left: int) -> None:
        self._file, self._left = file, left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        chunk = self._file.read(min(len(buffer), self._left))
        buffer[: len(chunk)] = chunk
        self._left -= len(chunk)
        return len(chunk)


def _lines_in(file: Path, limit: int | None, found: _Found) -> int:
    """The whole lines of a file, or of its first bytes."""
    lines, end = 0, b"\n"
    try:
        with file.open("rb") as raw:
            head = raw.read(4)
            raw.seek(0)
            text: BinaryIO = raw if limit is None else io.BufferedReader(_Limited(raw, limit), READ_BYTES)
            if head.startswith(GZIP_MAGIC):
                text = gzip.GzipFile(fileobj=text)  # type: ignore[assignment]
            elif head == ZSTD_MAGIC:
                text = zstandard.ZstdDecompressor().stream_reader(text, read_across_frames=True)
            while chunk := text.read(READ_BYTES):
                lines += chunk.count(b"\n")
                end = chunk[-1:]
    except (OSError, EOFError, zstandard.ZstdError) as error:
        found.find(f"the file {file.name} cannot be read: {error}")
    if end != b"\n":
        found.find(f"the file {file.name} ends within a line")
    return lines

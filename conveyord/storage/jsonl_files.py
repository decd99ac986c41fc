"""One pipeline's writing end of JSON lines files: exactly once, by remembering how long they are.

Lines are appended to a file as they come. A commit syncs it and then writes a manifest (`commit_log.py`) that says how
long the file is and up to where records are in it. On opening, what a crash left behind that length is cut off, and
files that were begun after it are deleted; their records are read again. So a record is in the files once, wherever
the process or the power went. Whoever reads while a run goes on may see lines that a crash then takes back, to come
again. Only what the crashed run itself wrote is taken back, which it claims before (`claims.py`); for anything else
that no commit explains the run stops: it is another program's, or the manifests are older than the files.

A compressed file is a row of gzip members or zstd frames of about a megabyte of text each, and every commit ends one,
so it can be cut at a commit like any other.

Files belong to the pipeline: nobody else may append to the newest one. They may be moved away at any time when no run
writes, as a log rotation does; the next run begins another.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import zstandard

from conveyord.core.errors import ConfigError, Corrupt, Refused
from conveyord.core.flow.positions import Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.planning.fence import Fence
from conveyord.core.units import counted
from conveyord.storage.claims import Claims
from conveyord.storage.commit_log import (
    STATE_DIRECTORY,
    CommitLog,
    Manifest,
    file_stem,
    former_names,
    locked,
    state_directory,
)
from conveyord.storage.disk import sync_directory, truncate, write_all
from conveyord.storage.spill.names import escaped

Compression = Literal["none", "gzip", "zstd"]

SUFFIXES: Mapping[Compression, str] = {"none": "", "gzip": ".gz", "zstd": ".zst"}
BLOCK_BYTES = 1024 * 1024  # of text in one gzip member or zstd frame: larger ones hardly pack better
GZIP_LEVEL = 6
ZSTD_LEVEL = 3
TAIL_BYTES = 4096  # of what was committed that a file is known again by: a page, which was written just now


@dataclass(frozen=True, slots=True)
class JsonlOptions:
    """Where lines go, for whom, and how.

    path: a file if `single`, else a directory in which files are begun when the one before is full.
    """

    path: Path
    single: bool
    pipeline: str
    compression: Compression = "none"
    file_bytes: int = 128 * 1024 * 1024
    file_rows_max: int | None = None
    adopt_from: str | None = None


@dataclass(frozen=True, slots=True)
class _End:
    """Where the next line goes: behind so many bytes and rows of a file.

    number: of the file, from 1; 0 for none. tail: digest of the last bytes before, of a commit that noted it.
    """

    number: int = 0
    name: str = ""
    bytes: int = 0
    rows: int = 0
    tail: str = ""


class JsonlFiles:
    """Blocking. Calls must not overlap; each may come from another thread. Raises OSError as files do."""

    def __init__(self, options: JsonlOptions) -> None:
        self._options = options
        self._home = options.path.parent if options.single else options.path
        self._log = CommitLog(self._state_of(options.pipeline), sink="file_jsonl")
        self._claims = Claims(self._log.directory, self._home)
        self._formers: tuple[str, ...] = ()
        self._compress = _compressor(options.compression)
        self._fence: Fence | None = None
        self._committed = _End()
        self._end = _End()
        self._lock: int | None = None
        self._descriptor: int | None = None
        self._begun: list[_End] = []
        self._block: list[memoryview] = []
        self._block_bytes = 0
        self._rows = 0
        self._written_bytes = 0
        self._is_committing = False
        self.rows_committed = 0
        self.files_committed = 0
        self.commits = 0

    def open(self) -> Positions:
        """Take back what was not committed, and return how far the files have been written.

        Raises Refused, before anything is taken back, if another run or pipeline writes here, a file is not what was
        committed, or the file system has no hard links; Corrupt if the newest manifest is damaged.
        """
        options = self._options
        if options.path.exists() and options.path.is_dir() == options.single:
            raise ConfigError(
                f"path {str(options.path)!r} is a {'directory' if options.single else 'file'}; "
                "a name that ends in .jsonl, .ndjson or .json is one file, any other a directory of files"
            )
        former = None if options.adopt_from is None else self._state_of(options.adopt_from)
        newest = self._log.open(former=former)
        if options.single:
            self._lock = locked(
                self._home / STATE_DIRECTORY / f"{escaped(options.path.name)}.lock",
                refusal=f"{options.path}: another pipeline writes to this file at the moment; a file is for one "
                "pipeline alone, so give this sink another path",
            )
        self._claims.check()
        if newest is not None:
            self._committed = _end_of(newest, self._log.directory)
            self._formers = former_names(newest, options.pipeline)
        self._refuse_others()
        self._take_back()
        self._go_on()
        if newest is None:
            return Positions()
        self._fence = newest.fence
        return newest.fence.positions

    @property
    def took_over(self) -> bool:
        """Whether `open` took over what the pipeline committed under its former name."""
        return self._log.took_over

    @property
    def rows_left(self) -> int | None:
        """How many rows `write` takes at most before a file is full; None for any number."""
        limit = self._options.file_rows_max
        return None if limit is None else limit - self._end.rows

    def write(self, text: memoryview, rows: int) -> None:
        """Append `rows` whole lines, at most `rows_left`. They may stay in memory until the commit."""
        if self._descriptor is None:
            self._begin()
        self._block.append(text)
        self._block_bytes += len(text)
        self._rows += rows
        self._end = _End(self._end.number, self._end.name, self._end.bytes, self._end.rows + rows)
        if self._block_bytes >= BLOCK_BYTES:
            self._flush()
        is_full = self._end.bytes >= self._options.file_bytes or self.rows_left == 0
        if is_full and not self._options.single:
            self._settle()
            self._close_file()

    @property
    def bytes_staged(self) -> int:
        """About how many bytes the next commit would add."""
        return self._written_bytes + self._block_bytes

    def commit(self, spans: Iterable[Span], tally: Tally, states: Mapping[str, str]) -> None:
        """Make the lines written since the last commit durable, with the positions of their records.

        If this raises, whether they are is seen by the next `open`.
        """
        if self._descriptor is not None:
            self._settle()
            self._end = replace(self._end, tail=_tail_digest(self._descriptor, self._end.bytes))
        if self._begun:
            sync_directory(self._home)
        fence = (self._fence or Fence(0)).advanced(spans, tally, self._rows, states)
        self._is_committing = True
        self._fence = self._log.write(fence, self._notes())
        self._log.prune(self._fence)
        self._claims.clear(but=self._end.name)
        self._is_committing = False
        self.rows_committed += self._rows
        self.files_committed += len(self._begun)
        self.commits += 1
        self._committed, self._begun, self._rows, self._written_bytes = self._end, [], 0, 0

    def abort(self) -> None:
        """Take back what was not committed. The writer is of no more use."""
        self._block, self._block_bytes = [], 0
        self._close_file()
        if not self._is_committing and self._fence is not None:
            self._take_back()

    def close(self) -> None:
        """Let another run write."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self._log.close()

    def _state_of(self, pipeline: str) -> Path:
        return state_directory(self._home, pipeline, *([self._options.path.name] if self._options.single else []))

    def _name(self, number: int) -> str:
        if self._options.single:
            return self._options.path.name
        return f"{file_stem(self._options.pipeline)}-{number:08d}.jsonl{SUFFIXES[self._options.compression]}"

    def _numbered(self) -> list[tuple[int, Path]]:
        """The files of this pipeline, under whatever name it wrote them, by number, the newest first."""
        if self._options.single:
            return [(1, self._options.path)] if self._options.path.exists() else []
        pattern = line_files_pattern((self._options.pipeline, *self._formers))
        found = ((int(match[1]), path) for path in self._home.iterdir() if (match := pattern.fullmatch(path.name)))
        return sorted(found, reverse=True)

    def _refuse_others(self) -> None:
        """Stop at what neither a commit nor a crash of ours explains: going on would overwrite or double it."""
        kept, state = self._committed, self._log.directory
        for number, path in self._numbered():
            if number > kept.number and not self._claims.holds(path):
                raise Refused(
                    f"{path}: exists already, and {state} knows of no commit to it; move it away, or restore that "
                    "directory as the last run left it"
                )
        current = self._home / kept.name
        if not kept.name or not current.exists():
            return
        size = current.stat().st_size
        if size < kept.bytes:
            raise Refused(
                f"{current}: has {counted(size, 'byte')}, but {kept.bytes:,} were committed; somebody changed it. "
                "Move it away, and the next run begins another"
            )
        if size > kept.bytes and not self._claims.holds(current):
            raise Refused(
                f"{current}: has {counted(size, 'byte')}, but {state} knows only of {kept.bytes:,}; it was appended to "
                "or replaced, or that directory is older than it. Restore that directory as the last run left it, "
                "or move the file away, and the next run begins another"
            )
        if kept.tail and not ends_as_committed(current, kept.bytes, kept.tail):
            raise Refused(
                f"{current}: its {kept.bytes:,} committed bytes end otherwise than when they were committed; somebody "
                "replaced or changed it. Move it away, and the next run begins another"
            )

    def _take_back(self) -> None:
        """Bring the files that this run or one that crashed wrote to back to what was committed."""
        kept = self._committed
        current = self._home / kept.name
        if kept.name and self._claims.holds(current) and current.stat().st_size > kept.bytes:
            truncate(current, kept.bytes)
        begun = [path for number, path in self._numbered() if number > kept.number and self._claims.holds(path)]
        for path in begun:
            path.unlink()
        if begun:
            sync_directory(self._home)  # a file that came back without its claim would be a stranger's
        self._claims.clear()

    def _go_on(self) -> None:
        """Let the next line go to where the last commit ended."""
        kept = self._committed
        if not kept.name or not (self._home / kept.name).exists():
            # Nothing yet, or the file was full or taken away: the next line begins another.
            self._committed = self._end = _End(0 if self._options.single else kept.number)
            return
        is_other = kept.name != self._name(kept.number)  # compression or the pipeline's name was changed
        self._end = _End(kept.number) if is_other else kept

    def _notes(self) -> dict[str, Any]:
        end = self._end
        return {
            "pipeline": self._options.pipeline,
            "formers": list(self._formers),
            "number": end.number,
            "name": end.name,
            "bytes": end.bytes,
            "rows": end.rows,
            "tail": end.tail,
        }

    def _begin(self) -> None:
        """Open the file that the next line goes to."""
        is_new = not self._end.name
        if is_new and (self._fence is None or self._options.single):
            # Said before the file is there: what a crash leaves would be taken for the file that was taken away.
            self._fence = self._log.write(self._fence or Fence(0), self._notes())
        if not is_new:
            self._descriptor = self._claims.resume(self._end.name)
            return
        number = self._end.number + 1
        self._descriptor = self._claims.begin(self._name(number))
        self._end = _End(number, self._name(number))
        self._begun.append(self._end)

    def _flush(self) -> None:
        if not self._block:
            return
        assert self._descriptor is not None
        text = self._block[0] if len(self._block) == 1 else b"".join(self._block)
        data = text if self._compress is None else self._compress(text)
        size = len(data)
        write_all(self._descriptor, [data], self._end.bytes)
        self._end = _End(self._end.number, self._end.name, self._end.bytes + size, self._end.rows)
        self._written_bytes += size
        self._block, self._block_bytes = [], 0

    def _settle(self) -> None:
        """Put the open file on disk."""
        assert self._descriptor is not None
        self._flush()
        os.fsync(self._descriptor)

    def _close_file(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self._end = _End(self._end.number)


def line_files_pattern(pipelines: Iterable[str]) -> re.Pattern[str]:
    """Matches the name of every file that one of `pipelines` begins in a directory; group 1 is its number."""
    stems = "|".join(re.escape(file_stem(pipeline)) for pipeline in pipelines)
    return re.compile(rf"(?:{stems})-(\d{{8,}})\.jsonl(?:\.gz|\.zst)?")


def _compressor(compression: Compression) -> Callable[[bytes | memoryview], bytes] | None:
    if compression == "none":
        return None
    if compression == "zstd":
        return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress
    return lambda text: gzip.compress(text, GZIP_LEVEL, mtime=0)


def _tail_digest(descriptor: int, end: int) -> str:
    first = max(0, end - TAIL_BYTES)
    return hashlib.sha256(os.pread(descriptor, end - first, first)).hexdigest()


def ends_as_committed(path: Path, size_bytes: int, tail: str) -> bool:
    """Whether the first `size_bytes` of a file end as a commit noted, by the digest `tail` of their last bytes."""
    with path.open("rb") as file:
        return _tail_digest(file.fileno(), size_bytes) == tail


def _end_of(manifest: Manifest, where: Path) -> _End:
    notes = manifest.notes
    try:
        tail = str(notes.get("tail", ""))  # earlier versions noted none
        return _End(int(notes["number"]), str(notes["name"]), int(notes["bytes"]), int(notes["rows"]), tail)
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"{where}: commit {manifest.fence.n} does not say its file ({error!r}); restore it") from error

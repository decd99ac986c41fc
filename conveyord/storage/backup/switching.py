"""Puts what was built beside the files of a node in their place, all or nothing, and never deletes what was there.

    <data-dir>/unfinished.json    as long as this lies there the node must not start: `refuse_unfinished`
    <data-dir>/building/          what is being built; `node.json`, `raft` and `state` of it take the place of the old
    <data-dir>/before-<name>/     the old ones

| crash | what is there | the next `replacing` |
|---|---|---|
| before the note | the old files | begins |
| while it is built | the note, the old files, some of the new | removes the new ones, begins again |
| while names change | the note, some of both | moves the old ones back, removes the new ones, begins again |
| after the note is gone | the new files, the old in before-<name> | |

Everything else in a data directory, such as a catalog and its tables, stays where it is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from conveyord.core.errors import Corrupt, Refused
from conveyord.storage.disk import make_durable_directories, sync_directory, write_file
from conveyord.storage.identity import FILE, Identity
from conveyord.storage.locks import owned
from conveyord.storage.sqlite_errors import translated

NODE_FILES = (FILE, "founding.json", "raft", "state")
"""What belongs to a node, in the order in which the old is moved away; the new comes in the other way round."""

NOTE, BUILDING = "unfinished.json", "building"
PROMISE = "what was there before is there still"


@dataclass(frozen=True, slots=True)
class Site:
    """building: the directory to build in. aside: where what was there goes, if anything was."""

    building: Path
    aside: Path


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is under way. what: for a sentence. old: which files were there, None as long as nothing was moved.

    aside: the name of the directory for them.
    """

    what: str
    aside: str
    old: tuple[str, ...] | None = None


def refuse_unfinished(data_dir: Path) -> None:
    """Raise Refused if a restore or recovery was cut off in this directory. To be asked before a node starts in it."""
    note = _note_or_none(data_dir)
    if note is not None:
        raise Refused(
            f"{data_dir}: {note.what} was cut off here; run it again. No node starts here until then; what was there "
            "before is kept"
        )


@contextmanager
def held(data_dir: Path) -> Iterator[None]:
    """Be the only one who uses a node's files; makes the directory. Raises Refused while the node runs, StorageFull."""
    with ExitStack() as stack:
        with translated(data_dir, damaged=Corrupt, promise=PROMISE):
            make_durable_directories(data_dir)
        stack.enter_context(owned(data_dir))
        if (data_dir / "raft").is_dir():
            stack.enter_context(owned(data_dir / "raft"))
        yield


def identity_or_none(data_dir: Path) -> Identity | None:
    """Who the node of a directory is, without starting it once more. Raises Corrupt."""
    path = data_dir / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Identity)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{path} is not what was written ({error}); move {data_dir} away and use an empty one") from error


def files_there(data_dir: Path) -> tuple[str, ...]:
    """Which of a node's files a directory has."""
    return tuple(name for name in NODE_FILES if (data_dir / name).exists())


def settle(data_dir: Path) -> None:
    """Take back what was cut off, so that the directory is as it was before. The caller holds it."""
    note = _note_or_none(data_dir)
    if note is not None:
        with translated(data_dir, damaged=Corrupt, promise=PROMISE):
            _take_back(data_dir, note)


@contextmanager
def replacing(data_dir: Path, *, what: str, aside: str) -> Iterator[Site]:
    """Yield an empty directory; what of a node's files is in it at the end takes their place, durably.

    what: for the sentence after a crash, such as `the restore of backup X`. aside: names the directory for what was
    there. The caller holds `data_dir`, and it is settled. After an error everything is as before.
    """
    note = Note(what, _unused(data_dir, aside))
    building = data_dir / BUILDING
    if building.exists():
        raise Refused(f"{building} is in the way, and is none that was left here; move it away, then run again")
    with translated(data_dir, damaged=Corrupt, promise=PROMISE):
        try:
            _write(data_dir, note)
            building.mkdir()
            yield Site(building, data_dir / note.aside)
            _sync_all(building)
            note = msgspec.structs.replace(note, old=files_there(data_dir))
            _write(data_dir, note)
            _switch(data_dir, note)
        except (Exception, KeyboardInterrupt):
            # If not even this can be done, the note stays, and the next one does it.
            with suppress(OSError):
                _take_back(data_dir, note)
            raise
        _forget(data_dir)


def _switch(data_dir: Path, note: Note) -> None:
    building, aside = data_dir / BUILDING, data_dir / note.aside
    assert note.old is not None
    if note.old:
        aside.mkdir()
        sync_directory(data_dir)
        for name in note.old:
            (data_dir / name).rename(aside / name)
        sync_directory(aside)
    for name in reversed(files_there(building)):
        (building / name).rename(data_dir / name)
    sync_directory(data_dir)


def _take_back(data_dir: Path, note: Note) -> None:
    """May be cut off, and done again."""
    aside = data_dir / note.aside
    for name in NODE_FILES if note.old is not None else ():
        if name not in (note.old or ()):
            _remove(data_dir / name)
        elif (aside / name).exists():
            _remove(data_dir / name)
            (aside / name).rename(data_dir / name)
    if aside.is_dir():
        aside.rmdir()
    _forget(data_dir)


def _forget(data_dir: Path) -> None:
    """Remove what is left of building, and then the note: while that is there, all that was moved is on disk."""
    _remove(data_dir / BUILDING)
    sync_directory(data_dir)
    (data_dir / NOTE).unlink(missing_ok=True)
    sync_directory(data_dir)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _unused(data_dir: Path, name: str) -> str:
    number, found = 1, name
    while (data_dir / found).exists():
        number += 1
        found = f"{name}-{number}"
    return found


def _write(data_dir: Path, note: Note) -> None:
    write_file(data_dir / NOTE, msgspec.json.encode(note) + b"\n")


def _note_or_none(data_dir: Path) -> Note | None:
    path = data_dir / NOTE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Note)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise Corrupt(
            f"{path} is not what was written ({error}), so nobody knows which of the files here are old; move "
            f"{data_dir} away and restore into an empty directory"
        ) from error


def _sync_all(directory: Path) -> None:
    """Put everything below it on disk."""
    for path in directory.rglob("*"):
        if path.is_dir():
            sync_directory(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_directory(directory)

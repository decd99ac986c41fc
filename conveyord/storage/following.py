"""Files that are followed while they grow: which there are to go on with, and which of those known each one is.

A file that is renamed keeps its inode and its first bytes, and by both together it is known again under its new
path. What stands under the old path then is another file, and so is what replaced or truncated one: it gets a
partition of its own, `path//1`, `path//2` and so on, because positions within a partition never go back.

What cannot be told apart: a new file that begins with all that was read of a deleted one and got its inode.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from conveyord.core.errors import ConfigError, Refused
from conveyord.core.flow.positions import Position
from conveyord.storage.files import MARK_BYTES, head_of, inode_of_mark, is_compressed, is_of_mark, matching

INCARNATION = "//"  # which no path has that `discover` gives


@dataclass(frozen=True, slots=True)
class Followed:
    """A file with news, and the name of its partition."""

    path: Path
    name: str
    inode: int
    compressed: bool
    instead_of: Position | None = None
    """How far other content had been read that stood under this path and is nowhere any more."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file as it stands under its path."""

    path: Path
    inode: int
    size_bytes: int
    changed_nanos: int
    head: bytes
    compressed: bool

    def holds(self, tip: Position) -> bool:
        """Whether this can be the file, grown or not, in which `tip` was taken."""
        return is_of_mark(self.head, tip.mark) and (self.compressed or self.size_bytes >= tip.offset)


class Folder:
    """The files that a pattern matches, look by look. Blocking, one thread at a time."""

    def __init__(self, pattern: str, tips: Iterable[Mapping[str, Position]], *, restarts_replaced: bool) -> None:
        """tips: by partition, how far it was read, for every sink."""
        self._pattern = pattern
        self._restarts_replaced = restarts_replaced
        self._tips: dict[str, Position] = {}
        self._of_path: dict[str, list[str]] = {}  # the partitions that were ever read under a path, the newest first
        self._seen: dict[Path, tuple[_Seen, str]] = {}
        for held in tips:
            for name, position in held.items():
                self.read_to(name, position)

    def read_to(self, name: str, position: Position) -> None:
        """Remember that a partition was read up to `position`, unless it was read further."""
        if name not in self._tips:
            first = name.partition(INCARNATION)[0]
            self._of_path.setdefault(first, []).append(name)
            self._of_path[first].sort(key=_number, reverse=True)
        if name not in self._tips or self._tips[name].offset < position.offset:
            self._tips[name] = position

    def look(self) -> list[Followed]:
        """The files that are new or have changed since the last look, sorted by path.

        Raises Refused if one was replaced or truncated and that is not to be passed over.
        """
        present, changed = self._present()
        names = {seen.path: name for seen, name in present}
        taken = set(names.values())
        waiting, of_inode = changed, self._of_inode() if changed else {}

        def itself(seen: _Seen) -> list[str]:
            return [name for name in self._own(seen.path) if name in of_inode.get(seen.inode, ())]

        def moved(seen: _Seen) -> list[str]:
            return of_inode.get(seen.inode, [])

        def its_like(seen: _Seen) -> list[str]:  # a file may be restored, or saved anew with more in it
            return self._own(seen.path)[:1]

        for candidates in (itself, moved, its_like):
            unknown = []
            for seen in waiting:
                fitting = (one for one in candidates(seen) if one not in taken and seen.holds(self._tips[one]))
                name = next(fitting, None)
                if name is None:
                    unknown.append(seen)
                else:
                    names[seen.path] = name
                    taken.add(name)
            waiting = unknown
        lost: dict[Path, Position] = {}
        for seen in waiting:
            own = self._own(seen.path)
            if own and own[0] not in taken:
                lost[seen.path] = self._may_be_lost(seen.path, self._tips[own[0]])
            first = str(seen.path)
            names[seen.path] = f"{first}{INCARNATION}{_number(own[0]) + 1}" if own else first
        self._seen = {seen.path: (seen, names[seen.path]) for seen in (*(seen for seen, _ in present), *changed)}
        return [
            Followed(seen.path, names[seen.path], seen.inode, seen.compressed, lost.get(seen.path)) for seen in changed
        ]

    def _present(self) -> tuple[list[tuple[_Seen, str]], list[_Seen]]:
        """Files that are as they were, with their names, and those that are not. One may go away meanwhile."""
        present, changed = [], []
        for path in matching(self._pattern):
            try:
                stat = path.stat()
                last = self._seen.get(path)
                look = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
                if last is not None and (last[0].inode, last[0].size_bytes, last[0].changed_nanos) == look:
                    present.append(last)
                elif stat.st_size > 0:  # one that is empty has nothing to be known by
                    changed.append(_Seen(path, *look, head_of(path, MARK_BYTES), is_compressed(path)))
            except (FileNotFoundError, ConfigError):
                if path.exists():
                    raise
        return present, changed

    def _own(self, path: Path) -> list[str]:
        return self._of_path.get(str(path), [])

    def _of_inode(self) -> dict[int, list[str]]:
        """The partitions by the inode of the file that they were read from."""
        found: dict[int, list[str]] = {}
        for name, tip in self._tips.items():
            inode = inode_of_mark(tip.mark)
            if inode is not None:
                found.setdefault(inode, []).append(name)
        return found

    def _may_be_lost(self, path: Path, tip: Position) -> Position:
        if not self._restarts_replaced:
            raise Refused(
                f"{path}: was read up to byte {tip.offset} before and was replaced, edited or truncated since. "
                "Restore it, give the new content another name, or set on_replaced: restart to read that from its start"
            )
        return tip


def _number(name: str) -> int:
    """Which incarnation of its path a partition is; 0 for the first."""
    return int(name.partition(INCARNATION)[2] or 0)

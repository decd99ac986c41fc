"""Which files a run may take back: those to which its state directory holds a second hard link.

A file that is begun or appended to is claimed first: `begun/<name>` beside the manifests becomes another name of it.
After a crash such a file, and no other, may be cut to what was committed, or deleted if nothing of it was. Names and
lengths cannot tell that: by then somebody may have put another file in its place, or brought older manifests back
from a backup, which know nothing of what was committed after them. A copy of a link is a file of its own and claims
nothing, so whoever restores or copies the state directory is asked instead of robbed.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from conveyord.core.errors import Refused
from conveyord.storage.disk import make_durable_directories, sync_directory

CLAIMS_DIRECTORY = "begun"
_PROBE = "probe"  # no file of ours is called so: they end in .jsonl and the like
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV})
"""What file systems say that have no hard links, or none from here to there."""


class Claims:
    """The claims of one writer on files in `home`. Blocking. Raises OSError as files do."""

    def __init__(self, state: Path, home: Path) -> None:
        """state: where the manifests are; it must be on the same file system as `home`."""
        self._directory = state / CLAIMS_DIRECTORY
        self._home = home

    def check(self) -> None:
        """Find out whether files can be claimed at all. Raises Refused if the file system has no hard links."""
        make_durable_directories(self._directory)
        probe, link = self._directory / _PROBE, self._directory / f"{_PROBE}.link"
        for path in (probe, link):
            path.unlink(missing_ok=True)
        probe.touch()
        try:
            _link(probe, link, home=self._home)
        finally:
            for path in (probe, link):
                path.unlink(missing_ok=True)

    def begin(self, name: str) -> int:
        """Create a file, claimed. Returns its descriptor, open for both reading and writing.

        The claim is on disk when this returns, the file's own name is not. Raises Refused if the name is taken.
        """
        make_durable_directories(self._directory)
        claim = self._directory / name
        descriptor = os.open(claim, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            # The claim first: a file without one would be a stranger's after a crash.
            sync_directory(self._directory)
            _link(claim, self._home / name, home=self._home)
        except BaseException:
            os.close(descriptor)
            with suppress(OSError):  # what stopped us is what counts; a claim on nothing is cleared by the next run
                claim.unlink()
            raise
        return descriptor

    def resume(self, name: str) -> int:
        """Claim a file that is there, to append to it. Returns its descriptor, open for both reading and writing."""
        make_durable_directories(self._directory)
        descriptor = os.open(self._home / name, os.O_RDWR | os.O_CLOEXEC)
        try:
            _link(self._home / name, self._directory / name, home=self._home)
            sync_directory(self._directory)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def holds(self, path: Path) -> bool:
        """Whether `path` is a file that was claimed, and not one that took its place."""
        try:
            return path.samefile(self._directory / path.name)
        except FileNotFoundError:
            return False

    def clear(self, *, but: str = "") -> None:
        """Let all files go, except that of the name `but`. Not synced."""
        with suppress(FileNotFoundError):  # nothing was ever claimed
            for claim in self._directory.iterdir():
                if claim.name != but:
                    claim.unlink(missing_ok=True)


def _link(source: Path, target: Path, *, home: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError as error:
        raise Refused(f"{target}: exists already, and another program or pipeline made it; move it away") from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise Refused(
            f"{home}: the file system there makes no hard links ({source.name}: {error.strerror}), and without them "
            "nobody knows after a crash whose file it is; give this sink a path on another file system, such as ext4"
        ) from error

"""What went wrong in a run, and where."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from conveyord.core.errors import ConveyordError, Retryable, StorageFull


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn what the operating system says of a full or read-only disk into a sentence about `what`."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            remedy = "free space and run again; it goes on from the last commit"
        elif error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
            remedy = "make it writable and run again"
        elif error.errno is None:
            raise  # not the operating system's word: a library that derives from OSError
        else:
            raise Retryable(f"{what}: writing failed ({error.strerror or error}); mend that and run again") from error
        raise StorageFull(f"{what}: cannot be written ({error.strerror or error}); {remedy}") from error


@dataclass(frozen=True, slots=True)
class Failure:
    """One stage that failed, and the pipelines that it belongs to. names: what those call it, if not `stage`."""

    stage: str
    error: ConveyordError
    members: frozenset[str]
    names: Mapping[str, str] = field(default_factory=dict)

    def stage_in(self, pipeline: str) -> str:
        """What `pipeline` calls the stage."""
        return self.names.get(pipeline, self.stage)


@dataclass(slots=True)
class Failures:
    """The expected failures of a run's stages, in the order in which they happened."""

    all: list[Failure] = field(default_factory=list)
    _added: trio.Event = field(default_factory=trio.Event)
    _watchers: list[Callable[[], None]] = field(default_factory=list)

    def add(
        self, stage: str, error: ConveyordError, *, members: frozenset[str], names: Mapping[str, str] | None = None
    ) -> None:
        self.all.append(Failure(stage, error, members, names or {}))
        self._added.set()
        self._added = trio.Event()
        for watcher in self._watchers:
            watcher()

    def watch(self, watcher: Callable[[], None]) -> None:
        """Have `watcher` called after every failure; it must neither wait nor raise."""
        self._watchers.append(watcher)

    def cover(self, members: frozenset[str]) -> bool:
        """Whether each of these pipelines has failed."""
        return members <= frozenset[str]().union(*(failure.members for failure in self.all))

    async def wait_all(self, members: frozenset[str]) -> None:
        """Wait until each of these pipelines has failed."""
        while not self.cover(members):
            await self._added.wait()

    def of(self, pipeline: str) -> list[Failure]:
        """Those of one pipeline. The first is the reason why it ended."""
        return [failure for failure in self.all if pipeline in failure.members]

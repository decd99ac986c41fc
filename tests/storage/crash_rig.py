"""A process that is gone before any chosen step of its work."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest


class Crashed(BaseException):
    """The process is gone: no handler for ordinary errors may run."""


class Crasher:
    """Counts steps, and from step `at` on lets none happen."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.names: list[str] = []

    def step(self, name: str) -> None:
        if self.at is not None and len(self.names) >= self.at:
            raise Crashed(f"before step {self.at}: {name}")
        self.names.append(name)


@contextmanager
def crashing(monkeypatch: pytest.MonkeyPatch, steps: Sequence[tuple[Any, str]], at: int | None) -> Iterator[Crasher]:
    """Every call of `steps`, which are owners and names of functions, is one; a crash comes before step `at`."""
    crasher = Crasher(at)

    def counted(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            crasher.step(name)
            return work(*arguments, **options)

        return step

    gc.disable()  # a file of an earlier round that is closed meanwhile would count
    try:
        with monkeypatch.context() as patch:
            for owner, name in steps:
                patch.setattr(owner, name, counted(name, getattr(owner, name)))
            yield crasher
    finally:
        gc.enable()

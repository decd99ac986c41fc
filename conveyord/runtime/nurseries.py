"""Errors that come out of nurseries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from conveyord.core.errors import ConveyordError


@contextmanager
def unwrapped() -> Iterator[None]:
    """Let a nursery's single error out as itself instead of in a group.

    Several expected errors come out as the first of them: one cause is what a user can act on. That nobody
    listened any more is no cause where something else went wrong. A group that holds several bugs stays
    whole, because each of its tracebacks may be needed.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        leaves = [leaf for leaf in _leaves(group) if not isinstance(leaf, trio.BrokenResourceError)] or list(
            _leaves(group)
        )
        if len(leaves) == 1 or all(isinstance(leaf, ConveyordError) for leaf in leaves):
            raise leaves[0] from leaves[0].__cause__
        raise


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error

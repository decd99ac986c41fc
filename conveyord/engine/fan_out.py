"""Where a stage's batches go: along every edge that takes them, rows chosen by condition.

Every branch gets every batch, if need be without rows, so that each sink's positions are complete by
themselves. The slowest branch sets the pace of all, unless its edge spills.

Words for an edge, from the definition to a running graph: an `Edge` is written down; a `PlanEdge` joins two
nodes of a plan; an `Exit` is that edge as the stage before it sees it, with its condition; a `Way` carries
messages along it, and a `Branch` is both. A `Router` tells which rows take which exits of one output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import pyarrow as pa
import trio

from conveyord.core.errors import BatchError, ConveyordError
from conveyord.core.pipeline.graph import MAIN
from conveyord.engine.batch_transform import kept, place_of, rejections
from conveyord.engine.contracts import OperatorContext
from conveyord.engine.failures import Failures
from conveyord.engine.messages import Batch, Message
from conveyord.engine.origin import Origin, Selection
from conveyord.engine.poison import SUSPECT, salvage
from conveyord.engine.routing import Exit, Masks, Router, chosen


class Way(Protocol):
    """One edge, seen from the stage before it. trio's send channels are such."""

    def send_nowait(self, message: Message) -> None:
        """Raises trio.WouldBlock if it must wait, trio.BrokenResourceError if nobody listens any more."""

    async def send(self, message: Message) -> None:
        """Waits for room. Raises trio.BrokenResourceError if nobody listens any more."""

    def close(self) -> None:
        """Nothing follows."""


@dataclass(slots=True)
class End:
    """How a stage ended. content: it wanted no more, which is no reason for other branches to stop."""

    content: bool = False


@dataclass(slots=True, eq=False)
class Branch:
    """One edge that leaves a stage, the way along it, and how the stage at its end ended, once it has."""

    exit: Exit
    way: Way
    end: End


@dataclass(slots=True)
class Removed:
    """Rows that went nowhere from a stage on: filtered by it, or, by pipeline, taken by no edge.

    Those that left a pipeline's way by another output count there as less than nothing.
    """

    filtered: int = 0
    untaken: Counter[str] = field(default_factory=Counter)

    def of(self, pipeline: str) -> int:
        """All of them, for one pipeline."""
        return self.filtered + self.untaken[pipeline]


@dataclass(frozen=True, slots=True, eq=False)
class _Fork:
    """The branches of one output that have pipelines in common. What fails here concerns no other fork."""

    branches: list[Branch]
    router: Router
    members: frozenset[str]


class Branches:
    """`Outbound` of one stage. Owned by the stage's task."""

    def __init__(
        self,
        branches: Sequence[Branch],
        context: OperatorContext,
        removed: Removed,
        failures: Failures,
        *,
        main: str = MAIN,
    ) -> None:
        """removed: counts what goes nowhere. failures: takes those of conditions of some pipelines, while the
        stage works on for others. main: the output that batches are sent by without further word.
        """
        self._open = list(branches)
        self._context = context
        self._removed = removed
        self._failures = failures
        self._main = main
        self.content = True
        """Whether every branch that was lost ended because its stage wanted no more."""
        self._arrange()

    def _arrange(self) -> None:
        """Sort what is open by output. `_only` is the single branch that takes everything, if that is all."""
        self._forks = _forks(self._open)
        only = self._forks[0] if len(self._open) == 1 else None
        is_all = only is not None and only.router.is_plain and only.router.output == self._main
        self._only = self._open[0] if is_all else None

    async def send(self, message: Message, extra: Mapping[str, Batch] | None = None) -> None:
        """See `Outbound.send`. Raises trio.BrokenResourceError once nobody listens on any branch."""
        if isinstance(message, Batch):
            self._removed.filtered += message.tally.filtered - message.arrived.filtered
            if self._only is None:
                await self._send_batch(message, extra or {})
                return
            if message.tally is not message.arrived:
                message = replace(message, arrived=message.tally)
        if self._only is None:
            await self._deliver([(branch, message) for branch in self._open])
            return
        try:
            await self._only.way.send(message)
        except trio.BrokenResourceError:
            self._lose(self._only)
            raise

    async def _send_batch(self, batch: Batch, extra: Mapping[str, Batch]) -> None:
        # All is decided before anything is sent, so that a condition that fails leaves no branch ahead.
        pieces: list[tuple[Branch, Message]] = []
        failed: list[_Fork] = []
        for fork in self._forks:
            name, sent = fork.router.output, batch
            if name != self._main:
                sent = extra.get(name) or batch.with_data(batch.data.slice(0, 0))
                self._removed.untaken.subtract(dict.fromkeys(fork.members, sent.data.num_rows))
            try:
                pieces += await self._routed(fork, sent)
            except ConveyordError as error:
                if all(branch.exit.members <= fork.members for branch in self._open):
                    raise
                names = self._context.names
                self._failures.add(self._context.stage, error, members=fork.members, names=names)
                failed.append(fork)
        # A fork that failed holds its share for ever: no position may move past what is not durable.
        for _ in range(len(pieces) + len(failed) - 1):
            batch.ack.fork()
        for fork in failed:
            self._drop(fork.members)
        await self._deliver(pieces)

    async def _routed(self, fork: _Fork, batch: Batch) -> list[tuple[Branch, Message]]:
        """What each branch of a fork gets of `batch`."""
        router, branches = fork.router, fork.branches
        if router.is_plain:
            arrived = replace(batch, arrived=batch.tally)
            return [(branch, arrived) for branch in branches]
        batch, masks = await self._masks(fork, batch)

        def choose() -> list[tuple[Branch, Message]]:
            pieces: list[tuple[Branch, Message]] = []
            for branch, mask in zip(branches, masks, strict=True):
                piece = batch.with_data(chosen(batch.data, mask), origin=_selected(batch.origin, mask))
                pieces.append((branch, replace(piece, arrived=piece.tally)))
            return pieces

        self._removed.untaken.update(router.untaken(masks))
        return await self._context.in_thread(choose)

    async def _masks(self, fork: _Fork, batch: Batch) -> tuple[Batch, Masks]:
        """The rows that each edge takes. Rows on which a condition fails become dead letters first."""
        router = fork.router
        try:
            return batch, await self._context.in_thread(router.masks, batch.data)
        except SUSPECT as error:
            if self._context.dead_letters is None:
                raise BatchError(f"{place_of(batch)}: {error}") from error

            def masks(data: pa.RecordBatch) -> Masks:
                trio.from_thread.check_cancelled()
                return router.masks(data)

            salvaged = await self._context.in_thread(salvage, masks, batch.data, error)
            await self._context.dead_letters.put(
                await rejections(self._context, batch, salvaged, output=router.output, members=fork.members)
            )
            good = Selection(kept(batch.data.num_rows, {poison.row for poison in salvaged.poison}))
            data = await self._context.in_thread(good, batch.data)
            origin = None if batch.origin is None else batch.origin.through(good)
            stage = f"{self._context.stage} {router.output} {sorted(fork.members)}"
            left = batch.with_data(data, origin=origin, dead=len(salvaged.poison), stage=stage)
            # Together they might fail again, on account of no row: see `_first_poison`.
            return left, router.joined(salvaged.pieces, data)

    async def _deliver(self, pieces: Sequence[tuple[Branch, Message]]) -> None:
        """Send every piece, first where there is room. Branches that nobody listens to are dropped.

        A piece for which nobody is left stays unsettled: no position may move past what is not durable.
        """
        full = []
        for branch, message in pieces:
            try:
                if branch in self._open:
                    branch.way.send_nowait(message)
            except trio.WouldBlock:
                full.append((branch, message))
            except trio.BrokenResourceError:
                self._lose(branch)
        for branch, message in full:
            try:
                if branch in self._open:
                    await branch.way.send(message)
            except trio.BrokenResourceError:
                self._lose(branch)
        if not full:
            await trio.lowlevel.checkpoint()
        if not self._open:
            raise trio.BrokenResourceError

    def _lose(self, branch: Branch) -> None:
        """Nobody listens on `branch` any more: let go of it, and, unless its stage was content, of its pipelines."""
        if not branch.end.content:
            self.content = False
            self._drop(branch.exit.members)
        elif branch in self._open:
            self._open.remove(branch)
            branch.way.close()
            self._arrange()

    def _drop(self, members: frozenset[str]) -> None:
        """Let go of every branch that belongs to these pipelines alone; what it holds it finishes."""
        for branch in list(self._open):
            if branch.exit.members <= members:
                self._open.remove(branch)
                branch.way.close()
        self._arrange()

    def close(self) -> None:
        """Tell every branch that nothing follows."""
        for branch in self._open:
            branch.way.close()
        self._open.clear()


def _forks(branches: Sequence[Branch]) -> list[_Fork]:
    """Sort branches by output, and within one by the pipelines they have in common."""
    groups: list[tuple[str, set[str], list[Branch]]] = []
    for branch in branches:
        output, members, joined = branch.exit.edge.output, set(branch.exit.members), [branch]
        apart = []
        for group in groups:
            if group[0] == output and group[1] & members:
                members |= group[1]
                joined = group[2] + joined
            else:
                apart.append(group)
        groups = [*apart, (output, members, joined)]
    return [
        _Fork(joined, Router([branch.exit for branch in joined]), frozenset(members)) for _, members, joined in groups
    ]


def _selected(origin: Origin | None, mask: pa.BooleanArray | None) -> Origin | None:
    """The origin of the rows that `mask` keeps; of all of them for None."""
    return origin if origin is None or mask is None else origin.through(Selection(mask))

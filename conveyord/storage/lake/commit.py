"""Drives the commits of one pipeline to one table. Blocking."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from conveyord.core.errors import ConveyordError, OutcomeUnknown, Refused, Retryable, StorageFull
from conveyord.core.planning import committer
from conveyord.core.planning.committer import CommitMachine, Failed, Outcome, Prepared, View, rolled_back
from conveyord.core.planning.fence import Fence, decode, fence_key
from conveyord.core.units import counted
from conveyord.storage.lake.ledger import TableLedger
from conveyord.storage.lake.maintenance import EVERY_COMMITS, Maintenance
from conveyord.storage.lake.table import DEADLINE_SECONDS, FileBatch, LakeTable

if TYPE_CHECKING:
    from random import Random

    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

ERRORS: dict[str, type[ConveyordError]] = {
    kind.code: kind for kind in (Refused, StorageFull, OutcomeUnknown, Retryable)
}


class Rebuild(ConveyordError):
    """The table's spec or schema changed: write the batch's files again under the present ones and commit those."""

    code = "REBUILD"


@dataclass(frozen=True, slots=True)
class Committed:
    """Batch `n` is in the table. snapshot_id: None if others have expired its snapshot already."""

    n: int
    snapshot_id: int | None


class TableCommitter:
    """Commits batches 1, 2, 3 of one pipeline to one table, each exactly once. One thread at a time.

    Only one run per pipeline may commit; a second one is noticed at its next commit and stops there.
    `random` spreads retries, `sleep` waits between them.
    """

    def __init__(
        self,
        catalog: Catalog,
        identifier: str,
        pipeline: str,
        ledger: TableLedger,
        *,
        random: Random,
        sleep: Callable[[float], None] = time.sleep,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        self._table = LakeTable(catalog, identifier, pipeline, ledger, deadline_seconds=deadline_seconds)
        self._identifier = identifier
        self._pipeline = pipeline
        self._ledger = ledger
        self._random = random
        self._sleep = sleep
        self._writer = uuid.uuid4().hex
        self._uuid = ""
        self._fence: Fence | None = None
        self._handle: View | None = None
        self._maintenance = Maintenance(self._table, ledger, deadline_seconds=deadline_seconds)
        self._answered = False  # whether the present batch landed with an answer, or was found in the table
        self.took_over = False
        """Whether `open` took the fence of a former name over."""
        self._swept = False  # leftovers of earlier runs may be deleted once a batch of this one has landed

    @property
    def fence(self) -> Fence:
        """The fence as it stands in the table. Only after `open` found one."""
        assert self._fence is not None, "the table is not open"
        return self._fence

    def initial_properties(self) -> dict[str, str]:
        """What a new table must be created with; `open` it afterwards."""
        return self._table.initial_properties()

    def open(self, *, adopt: bool = False, adopt_from: str | None = None) -> Fence | None:
        """Read the table's fence, or start one. Returns None if there is no such table.

        A table without rows gets a fence silently; one with rows only with `adopt`. adopt_from: former
        name of this pipeline, whose fence is taken over in one commit that also removes the old one.
        Raises Refused if going on would break exactly-once, Corrupt if the fence cannot be read,
        Retryable or OutcomeUnknown if the catalog does not answer.
        """
        failures = 0
        while True:
            seen = self._table.load()
            if isinstance(seen, View):
                self._uuid = seen.uuid
                self._ledger.bind(seen.uuid)
                if seen.fence is not None:
                    return self._accept(seen, seen.fence, adopt_from)
                failed = self._start_fence(seen, adopt=adopt, adopt_from=adopt_from)
                if failed is None:
                    continue  # stored: read it back like any other
            elif seen.outcome is Outcome.GONE:
                if adopt_from is not None:
                    raise Refused(f"table {self._identifier}: not found, so nothing to take over from {adopt_from}")
                return None
            else:
                failed = seen
            failures += 1
            self._wait_after(failed, failures)

    def commit(self, files: Sequence[DataFile], next_fence: Fence, *, spec_id: int, schema_id: int) -> Committed:
        """Commit one batch: `files` (possibly none) written under `spec_id` and `schema_id`, and its fence.

        `next_fence` is the last fence `advanced` by the batch. The files are synced by whoever wrote them.
        Raises Rebuild if the files no longer fit the table; Refused, StorageFull, Retryable or
        OutcomeUnknown if the batch cannot be committed now. After any of these but Rebuild open again,
        and delete nothing: an attempt may still land.
        """
        base = self.fence
        if next_fence.n != base.n + 1:
            raise ValueError(f"batch {next_fence.n} cannot follow batch {base.n}")
        following = self._prepared(base, next_fence)
        batch = Prepared(self._identifier, self._pipeline, self._uuid, base, following, spec_id, schema_id)
        machine = CommitMachine(batch, self._random)
        self._answered = False
        step = machine.start()
        while True:
            match step:
                case committer.Landed(n, snapshot_id):
                    if n % EVERY_COMMITS == 0 or not self._swept:
                        self._maintenance.run(landed=n)
                        self._swept = True
                    return Committed(n, snapshot_id)
                case committer.Rebuild(reason):
                    outdated = [file.file_path for file in files] + self._table.take_attempts()
                    self._ledger.abandon(outdated, batch=following.n)
                    raise Rebuild(f"table {self._identifier}: {reason}")
                case committer.Halted(code, sentence):
                    raise ERRORS[code](sentence)
                case _:
                    step = machine.on(self._perform(step, batch, files))

    def _perform(self, step: committer.Step, batch: Prepared, files: Sequence[DataFile]) -> committer.Event:
        match step:
            case committer.Load():
                return self._table.load()
            case committer.Append(view):
                merge = batch.next.n % EVERY_COMMITS == 0
                appended = self._table.append(view, FileBatch(files, batch.next, merge=merge))
                self._answered = isinstance(appended, committer.Appended)
                return appended
            case committer.Wait(seconds):
                self._sleep(seconds)
                return committer.Waited()
            case committer.Record(n):
                self._fence = batch.next
                self._remember(batch.next, n, [file.file_path for file in files])
                return committer.Recorded()
            case _:
                raise AssertionError(f"{step} ends a batch and is not performed")

    def _remember(self, fence: Fence, n: int, paths: list[str]) -> None:
        """Enter in the ledger what a landing means for the files of its attempts."""
        attempts = self._table.take_attempts()
        archive = [fence.archive.location] if fence.archive is not None else []
        if self._answered:
            self._ledger.settle([*paths, *archive])
        else:
            # Found in the table, so an attempt landed, perhaps one with the files from before a rebuild.
            attempts += paths
        # Which attempt landed is not always known. Its files are suspects too, and survive a look.
        self._ledger.abandon(attempts, batch=n)

    def _prepared(self, base: Fence, next_fence: Fence) -> Fence:
        """`next_fence` as it is to be stored: signed by this run, its settled positions archived."""
        signed = replace(next_fence, writer=self._writer)
        if base.archive is not None and signed.archive != base.archive:
            # The batch was prepared while the one before it moved positions to a new archive.
            signed = signed.with_archive(base.archive, base.archived)
        assert self._handle is not None
        stored = self._table.with_archive(self._handle, signed)
        if base.archive is not None and stored.archive != base.archive:
            self._ledger.abandon([base.archive.location], batch=stored.n)
        return stored

    def _accept(self, view: View, fence: Fence, adopt_from: str | None) -> Fence:
        properties = view.handle.properties
        if adopt_from is not None and fence_key(adopt_from) in properties:
            raise Refused(
                f"table {self._identifier}: it has fences of both {adopt_from} and {self._pipeline}; remove"
                " the property of the one that must not go on"
            )
        if contradiction := rolled_back(view):
            raise Refused(f"table {self._identifier}: {contradiction}. {committer.ROLLBACK_REMEDY}.")
        if view.retries != 0:
            raise Refused(f"table {self._identifier}: {committer.retries_sentence(view.retries)}.")
        self._fence = self._table.load_archive(view, fence)
        self._handle = view
        return self._fence

    def _start_fence(self, view: View, *, adopt: bool, adopt_from: str | None) -> Failed | None:
        """Give a table without a fence its first one. Returns how that failed, if it did."""
        if adopt_from is not None:
            return self._take_over(view, adopt_from)
        rows = row_count(view.handle)
        if rows != 0 and not adopt:
            held = "rows" if rows is None else counted(rows, "row")
            raise Refused(
                f"table {self._identifier}: it holds {held} but no fence of {self._pipeline}, so what was"
                " written before cannot be known; set adopt: true on the sink to append from the source's"
                " beginning, or give a former name of the pipeline with --adopt"
            )
        return self._table.put_fence(view, Fence(0))

    def _take_over(self, view: View, former: str) -> Failed | None:
        text = view.handle.properties.get(fence_key(former))
        if text is None:
            raise Refused(f"table {self._identifier}: it has no fence of {former} to take over; check the name")
        fence = decode(text, where=f"table {self._identifier}, property {fence_key(former)}")
        theirs = self._table.seen_as(view, former)
        if contradiction := rolled_back(theirs):
            raise Refused(f"table {self._identifier}: {contradiction}. {committer.ROLLBACK_REMEDY}.")
        self.took_over = True
        outcome = self._table.append(view, FileBatch((), fence, removed_keys=(fence_key(former),)))
        return outcome if isinstance(outcome, Failed) else None

    def _wait_after(self, failed: Failed, failures: int) -> None:
        """Wait before looking again, or raise if looking again cannot help."""
        match failed.outcome:
            case Outcome.REFUSED | Outcome.UNKNOWN if failures < committer.FAILURES_MAX:
                self._sleep(committer.FAILED.delay_seconds(failures, self._random))
            case Outcome.FULL | Outcome.FULL_LATE:
                raise StorageFull(f"table {self._identifier}: {failed.reason}. {committer.FULL_REMEDY}")
            case Outcome.DENIED:
                raise Refused(f"table {self._identifier}: the catalog refuses to open it: {failed.reason}")
            case _:
                raise Retryable(f"table {self._identifier}: the catalog failed {failures} times, last: {failed.reason}")


def row_count(table: Table) -> int | None:
    """Rows in the table's head by its summary, 0 without a head, None if the summary does not say."""
    head = table.current_snapshot()
    if head is None:
        return 0
    total = head.summary.get("total-records") if head.summary is not None else None
    return None if total is None else int(total)

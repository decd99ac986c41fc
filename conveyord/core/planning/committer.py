"""Commits one batch to one table exactly once: a step machine without I/O.

The driver performs the step it is handed, tells the machine what came of it, and gets the next one.

    state      event                      next step            new state
    ---------  -------------------------  -------------------  ---------
    (start)                               Load                 LOADING
    LOADING    View: fence is the base    Append(view)         APPENDING
    LOADING    View: fence is the next    Record               RECORDING
    LOADING    View: files do not fit     Rebuild              ended
    LOADING    View: anything else        Halted               ended
    LOADING    Failed UNKNOWN, REFUSED    Wait                 WAITING
    LOADING    Failed otherwise           Halted               ended
    APPENDING  Appended                   Record               RECORDING
    APPENDING  Failed REFUSED             Wait                 WAITING
    APPENDING  Failed UNKNOWN             Wait                 WAITING   (an attempt may still land)
    APPENDING  Failed FULL_LATE           Load                 LOADING   (an attempt may still land)
    APPENDING  Failed otherwise           Halted               ended
    WAITING    Waited                     Load                 LOADING
    RECORDING  Recorded                   Landed               ended

At a named number of refusals or unknown outcomes WAITING is replaced by Halted.

Why this is safe: every append asserts the head that the machine has just inspected, so of two
attempts on one head at most one lands, whenever they arrive. REFUSED too means "look again": a
retried request may have been refused by its own success. An attempt stops being possible when the
head has moved; until then its absence from the table proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, assert_never

from conveyord.core.planning.fence import Fence
from conveyord.core.retry import Backoff

if TYPE_CHECKING:
    from random import Random

REFUSALS_MAX = 50  # other writers landing first, again and again: at 10 commits/s this is far from starving
FAILURES_MAX = 8  # no answer or no catalog: with the waits below about 25 s of trying beyond the deadlines
REFUSED = Backoff(base_seconds=0.01, cap_seconds=1.0)  # a foreign commit takes tens of milliseconds
FAILED = Backoff(base_seconds=0.1, cap_seconds=10.0)  # a catalog that restarts takes seconds


class Outcome(Enum):
    """What a failed call to the catalog or its storage means."""

    REFUSED = "a requirement did not hold, or another commit came first"
    UNKNOWN = "no definite answer: it may have been applied, or may yet be"
    DENIED = "the request itself is not acceptable; repeating it cannot help"
    GONE = "there is no such table"
    FULL = "storage is full or read-only, before the catalog was asked"
    FULL_LATE = "storage is full or read-only, while the catalog was asked"


@dataclass(frozen=True, slots=True)
class View:
    """What was read of a table. All ids are Iceberg's.

    head: snapshot of the main branch, None if it has none. fence: this pipeline's, None if the table
    has no such property. own_batch and own_snapshot: batch number and id of the newest ancestor of
    the head that carries this pipeline's key. oldest_sequence: sequence number of the oldest ancestor
    that can be reached from the head. fitting_schemas: ids of schemas whose files lose no column
    under the current one. retries: the table's own commit retries, which must be 0. handle: the
    driver's, passed back untouched.
    """

    uuid: str
    head: int | None
    fence: Fence | None
    own_batch: int | None
    own_snapshot: int | None
    oldest_sequence: int | None
    spec_id: int
    fitting_schemas: frozenset[int]
    retries: int
    handle: Any = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch that is ready to be committed: files written under one spec and schema, and its fences."""

    table: str
    pipeline: str
    uuid: str
    base: Fence
    next: Fence
    spec_id: int
    schema_id: int

    def __post_init__(self) -> None:
        assert self.next.n == self.base.n + 1, (self.base.n, self.next.n)


@dataclass(frozen=True, slots=True)
class Appended:
    """The append was applied as this snapshot."""

    snapshot_id: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A call to the catalog did not succeed, and what that means."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class Waited:
    """The wait is over."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What had to be remembered about the landing is."""


Event = View | Appended | Failed | Waited | Recorded


@dataclass(frozen=True, slots=True)
class Load:
    """Read the table: answer with a `View` or `Failed`."""


@dataclass(frozen=True, slots=True)
class Append:
    """Append the batch to exactly this view: answer with `Appended` or `Failed`."""

    view: View


@dataclass(frozen=True, slots=True)
class Wait:
    """Let this much time pass: answer with `Waited`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Record:
    """Remember that batch `n` landed, in this snapshot if it is known: answer with `Recorded`."""

    n: int
    snapshot_id: int | None


@dataclass(frozen=True, slots=True)
class Landed:
    """The batch is in the table. snapshot_id: None if its snapshot was expired by others meanwhile."""

    n: int
    snapshot_id: int | None


@dataclass(frozen=True, slots=True)
class Rebuild:
    """The batch has not landed and its files no longer fit the table: write them again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Halted:
    """The batch cannot go on. code: of core.errors; sentence: what happened and what to do."""

    code: str
    sentence: str


Step = Load | Append | Wait | Record | Landed | Rebuild | Halted


def rolled_back(view: View) -> str | None:
    """Why the table's history contradicts its fence, or None if it does not.

    A batch's own snapshot is missing legitimately once it was expired; then the ancestry ends above
    it. An ancestry that reaches below the fence's sequence number without meeting the batch means
    that the head was set back to before it.
    """
    fence = view.fence
    assert fence is not None
    if view.own_batch is not None and view.own_batch != fence.n:
        return f"its fence says batch {fence.n}, its newest snapshot of this pipeline says {view.own_batch}"
    reaches_below = view.oldest_sequence is None or view.oldest_sequence < fence.sequence
    if view.own_batch is None and fence.n > 0 and reaches_below:
        return f"its fence says batch {fence.n}, its history was set back to before that batch"
    return None


def retries_sentence(retries: int) -> str:
    """Why a table that repeats commits by itself is not written to, and what to do."""
    return (
        f"its property commit.retry.num-retries is {retries} and must be 0, because a commit that pyiceberg"
        " repeats by itself can add rows twice. Set it to 0 and run again"
    )


class CommitMachine:
    """Drives one `Prepared` batch. Call `start`, then `on` with the outcome of each step, until it ends."""

    def __init__(self, batch: Prepared, random: Random) -> None:
        self._batch = batch
        self._random = random
        self._refusals = 0
        self._failures = 0
        self._appending: View | None = None
        self._in_doubt: set[int | None] = set()  # heads on which an attempt without an answer may still land
        self._full: str | None = None
        self._recording: Record | None = None

    @property
    def in_doubt(self) -> bool:
        """Whether an attempt may still land, as far as the last view told."""
        return bool(self._in_doubt)

    def start(self) -> Step:
        return Load()

    def on(self, event: Event) -> Step:
        """The next step. An event that cannot follow the last step is a bug of the driver and asserts."""
        match event:
            case View():
                return self._on_view(event)
            case Appended(snapshot_id):
                assert self._appending is not None
                return self._record(snapshot_id)
            case Failed(outcome, reason):
                return self._on_failure(outcome, reason)
            case Waited():
                return Load()
            case Recorded():
                assert self._recording is not None
                return Landed(self._recording.n, self._recording.snapshot_id)
            case _:
                assert_never(event)

    def _on_view(self, view: View) -> Step:
        self._appending = None
        batch, fence = self._batch, view.fence
        if view.uuid != batch.uuid:
            return self._halt(
                "it was dropped and created again while the batch was written. Run the pipeline again to fill"
                " the new table from its own fence, or restore the old one"
            )
        self._in_doubt &= {view.head}
        if fence is None:
            return self._halt(
                "its fence property was removed. Put the property back from an earlier metadata file, or run "
                "with adopt to start a new fence on the rows it holds"
            )
        if contradiction := rolled_back(view):
            return self._halt(f"{contradiction}. {ROLLBACK_REMEDY}")
        if fence.n == batch.next.n and fence.same_batch(batch.next):
            return self._record(view.own_snapshot)
        if not fence.same_batch(batch.base):
            return self._halt_behind(fence)
        if self._full is not None:
            return Halted(
                "STORAGE_FULL", f"table {batch.table}: {self._full}. {FULL_IN_DOUBT if self._in_doubt else FULL_REMEDY}"
            )
        if view.retries != 0:
            return self._halt(retries_sentence(view.retries))
        if view.spec_id != batch.spec_id:
            return Rebuild(f"files were written under partition spec {batch.spec_id}, the table has {view.spec_id}")
        if batch.schema_id not in view.fitting_schemas:
            return Rebuild(f"files were written under schema {batch.schema_id}, the table lost columns of it since")
        self._appending = view
        return Append(view)

    def _on_failure(self, outcome: Outcome, reason: str) -> Step:
        appending = self._appending
        self._appending = None
        table = self._batch.table
        match outcome:
            case Outcome.REFUSED:
                self._refusals += 1
                if self._refusals >= REFUSALS_MAX:
                    return self._give_up(f"refused {self._refusals} times, last because: {reason}")
                return Wait(REFUSED.delay_seconds(self._refusals, self._random))
            case Outcome.UNKNOWN:
                if appending is not None:
                    self._in_doubt.add(appending.head)
                self._failures += 1
                if self._failures >= FAILURES_MAX:
                    return self._give_up(f"no definite answer {self._failures} times, last: {reason}")
                return Wait(FAILED.delay_seconds(self._failures, self._random))
            case Outcome.FULL_LATE if appending is not None:
                # Look once: the catalog may have applied the commit before it ran out of space.
                self._in_doubt.add(appending.head)
                self._full = reason
                return Load()
            case Outcome.FULL | Outcome.FULL_LATE:
                return Halted(
                    "STORAGE_FULL", f"table {table}: {reason}. {FULL_IN_DOUBT if self._in_doubt else FULL_REMEDY}"
                )
            case Outcome.GONE:
                return self._halt(
                    f"it is no longer in the catalog ({reason}). Restore it, or run the pipeline again to"
                    " create and fill a new one"
                )
            case Outcome.DENIED:
                return Halted(
                    "OUTCOME_UNKNOWN" if self._in_doubt else "REFUSED",
                    f"table {table}: the catalog does not accept commit {self._batch.next.n}: {reason}. "
                    + self._doubt("Correct the credentials or settings and run again; nothing was committed"),
                )
            case _:
                assert_never(outcome)

    def _record(self, snapshot_id: int | None) -> Step:
        self._recording = Record(self._batch.next.n, snapshot_id)
        return self._recording

    def _halt(self, what: str) -> Step:
        return Halted("REFUSED", f"table {self._batch.table}: {what}.")

    def _halt_behind(self, fence: Fence) -> Step:
        ours = self._batch.next.n
        if fence.n >= self._batch.base.n:
            return self._halt(
                f"another run of {self._batch.pipeline} has committed batch {fence.n} while this one prepared"
                f" batch {ours}, so this run stops. Keep only one run per pipeline; nothing was written twice"
            )
        return self._halt(f"its fence went back from batch {self._batch.base.n} to {fence.n}. {ROLLBACK_REMEDY}")

    def _give_up(self, why: str) -> Step:
        if self._in_doubt:
            code, ending = "OUTCOME_UNKNOWN", "It may have been applied"
        else:
            code, ending = "UNAVAILABLE", "It was not applied"
        return Halted(
            code,
            f"table {self._batch.table}: commit {self._batch.next.n} {why}. {ending}; run the pipeline again"
            " once the catalog answers, it goes on from the fence that it finds in the table",
        )

    def _doubt(self, otherwise: str) -> str:
        return "An earlier attempt may yet land; run again and the fence will tell" if self._in_doubt else otherwise


ROLLBACK_REMEDY = (
    "Somebody rolled it back or restored it. Roll forward to the newest snapshot, or remove the fence"
    " property and run with adopt, which reads the source from its beginning"
)
FULL_REMEDY = "Free space or make it writable and run again; nothing was committed"
FULL_IN_DOUBT = "Free space or make it writable and run again; whether the batch landed, the fence will tell"

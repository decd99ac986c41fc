"""The commit machine against a model table: landing at most once, and never claiming what is not so."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.planning import committer as c
from conveyord.core.planning.committer import CommitMachine, Outcome, Prepared, View
from conveyord.core.planning.fence import Fence

BASE = Fence(3, writer="old", sequence=3)
NEXT = replace(BASE, n=4, writer="me", rows=10)
BATCH = Prepared("ns.t", "ns/p", "uuid", BASE, NEXT, spec_id=0, schema_id=0)
VIEW = View("uuid", 30, BASE, 3, 30, 3, 0, frozenset({0}), 0)


def machine() -> CommitMachine:
    made = CommitMachine(BATCH, Random(1))
    assert made.start() == c.Load()
    return made


def end(step: c.Step, code: str) -> str:
    assert isinstance(step, c.Halted), step
    assert step.code == code, step
    return step.sentence


def test_a_batch_lands_and_is_recorded_before_it_is_reported() -> None:
    m = machine()
    assert m.on(VIEW) == c.Append(VIEW)
    assert m.on(c.Appended(40)) == c.Record(4, 40)
    assert m.on(c.Recorded()) == c.Landed(4, 40)


def test_a_refusal_may_be_the_batchs_own_success() -> None:
    m = machine()
    m.on(VIEW)
    assert isinstance(m.on(c.Failed(Outcome.REFUSED, "409")), c.Wait)
    assert m.on(c.Waited()) == c.Load()
    landed = replace(VIEW, head=40, fence=replace(NEXT, sequence=4), own_batch=4, own_snapshot=40)
    assert m.on(landed) == c.Record(4, 40)


def test_absence_after_an_unknown_outcome_proves_nothing_and_the_batch_is_sent_again_on_the_same_head() -> None:
    m = machine()
    m.on(VIEW)
    m.on(c.Failed(Outcome.UNKNOWN, "timeout"))
    m.on(c.Waited())
    assert m.on(VIEW) == c.Append(VIEW)
    assert m.in_doubt


def test_a_head_that_moved_excludes_the_attempt_in_doubt() -> None:
    m = machine()
    m.on(VIEW)
    m.on(c.Failed(Outcome.UNKNOWN, "timeout"))
    m.on(c.Waited())
    m.on(replace(VIEW, head=31))
    assert not m.in_doubt


def test_giving_up_in_doubt_says_so() -> None:
    m = machine()
    step = m.on(VIEW)
    while not isinstance(step, c.Halted):
        step = m.on(VIEW if isinstance(step, c.Load) else c.Waited() if isinstance(step, c.Wait) else UNKNOWN)
    assert "may have been applied" in end(step, "OUTCOME_UNKNOWN")


UNKNOWN = c.Failed(Outcome.UNKNOWN, "504")


def test_a_catalog_that_cannot_be_read_is_unavailable_not_unknown() -> None:
    m, step = machine(), None
    step = m.start()
    while not isinstance(step, c.Halted):
        step = m.on(UNKNOWN if isinstance(step, c.Load) else c.Waited())
    assert "was not applied" in end(step, "UNAVAILABLE")


def test_a_denial_after_an_unknown_outcome_is_still_unknown() -> None:
    m = machine()
    m.on(VIEW)
    m.on(UNKNOWN)
    m.on(c.Waited())
    m.on(VIEW)
    assert "may yet land" in end(m.on(c.Failed(Outcome.DENIED, "401")), "OUTCOME_UNKNOWN")


def test_a_full_disk_before_the_catalog_was_asked_halts_at_once() -> None:
    m = machine()
    m.on(VIEW)
    assert "nothing was committed" in end(m.on(c.Failed(Outcome.FULL, "no space")), "STORAGE_FULL")


@pytest.mark.parametrize("landed", [False, True])
def test_a_full_disk_during_the_commit_is_settled_by_one_look(landed: bool) -> None:
    m = machine()
    m.on(VIEW)
    assert m.on(c.Failed(Outcome.FULL_LATE, "no space")) == c.Load()
    if landed:
        assert m.on(replace(VIEW, head=40, fence=NEXT, own_batch=4, own_snapshot=40)) == c.Record(4, 40)
    else:
        assert "whether the batch landed, the fence will tell" in end(m.on(VIEW), "STORAGE_FULL")


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (replace(VIEW, uuid="other"), "dropped and created again"),
        (replace(VIEW, fence=None), "fence property was removed"),
        (replace(VIEW, own_batch=2), "rolled it back"),
        (replace(VIEW, own_batch=None, oldest_sequence=2), "set back to before"),
        (replace(VIEW, own_batch=None, oldest_sequence=None, head=None), "set back to before"),
        (
            replace(VIEW, fence=replace(BASE, n=4, writer="x"), own_batch=4),
            "another run of ns/p has committed batch 4",
        ),
        (replace(VIEW, fence=replace(BASE, n=9), own_batch=9), "another run of ns/p has committed batch 9"),
        (
            replace(VIEW, fence=replace(BASE, writer="x"), own_batch=3),
            "another run of ns/p has committed batch 3",
        ),
        (replace(VIEW, fence=replace(BASE, n=2), own_batch=2), "went back from batch 3 to 2"),
        (replace(VIEW, retries=4), "num-retries is 4 and must be 0"),
    ],
)
def test_a_table_that_someone_changed_halts_the_batch_with_a_remedy(view: View, words: str) -> None:
    assert words in end(machine().on(view), "REFUSED")


def test_a_snapshot_expired_by_others_does_not_look_like_a_rollback() -> None:
    view = replace(VIEW, own_batch=None, own_snapshot=None, oldest_sequence=7)
    assert machine().on(view) == c.Append(view)


def test_files_of_an_old_spec_or_of_a_schema_that_lost_columns_are_rebuilt() -> None:
    assert isinstance(machine().on(replace(VIEW, spec_id=1)), c.Rebuild)
    assert isinstance(machine().on(replace(VIEW, fitting_schemas=frozenset({1}))), c.Rebuild)


def test_a_landed_batch_is_not_rebuilt_although_the_spec_changed_since() -> None:
    view = replace(VIEW, head=40, fence=NEXT, own_batch=4, own_snapshot=40, spec_id=1)
    assert machine().on(view) == c.Record(4, 40)


@dataclass
class ModelTable:
    """A table with compare-and-set on its head, and requests that may arrive late."""

    head: int = 30
    fence: Fence = BASE
    own_batch: int = 3
    landed: int = 0
    flying: list[int] = field(default_factory=list)

    def view(self) -> View:
        return replace(VIEW, head=self.head, fence=self.fence, own_batch=self.own_batch, own_snapshot=self.head)

    def apply(self, pinned: int) -> bool:
        if pinned != self.head:
            return False
        self.head, self.fence, self.own_batch = self.head + 1, NEXT, 4
        self.landed += 1
        return True

    def foreign(self) -> None:
        self.head += 1

    def arrive(self) -> None:
        for pinned in self.flying:
            self.apply(pinned)
        self.flying = []


FAULTS = st.sampled_from(["ok", "applied-then-lost", "late", "lost", "foreign-first", "foreign-and-late", "arrive"])


@given(st.lists(FAULTS, max_size=30), st.integers(0, 2**32))
def test_whatever_is_lost_or_late_the_batch_lands_at_most_once_and_the_verdict_is_true(
    faults: list[str], seed: int
) -> None:
    table, m, plan = ModelTable(), CommitMachine(BATCH, Random(seed)), iter(faults)
    step = m.start()
    while isinstance(step, c.Load | c.Append | c.Wait | c.Record):
        fault = next(plan, "lost")
        match step:
            case c.Load():
                if fault == "arrive":
                    table.arrive()
                step = m.on(UNKNOWN if fault == "lost" else table.view())
            case c.Append(view):
                assert view.head is not None
                if fault.startswith("foreign"):
                    table.foreign()
                if fault in ("late", "foreign-and-late"):
                    table.flying.append(view.head)
                    step = m.on(UNKNOWN)
                elif fault in ("lost", "arrive"):
                    step = m.on(UNKNOWN)
                else:
                    done = table.apply(view.head)
                    lost = fault == "applied-then-lost"
                    step = m.on(UNKNOWN if lost else c.Appended(40) if done else c.Failed(Outcome.REFUSED, "409"))
            case c.Wait(seconds):
                assert 0 <= seconds <= 10
                step = m.on(c.Waited())
            case c.Record():
                step = m.on(c.Recorded())
    before = table.landed
    table.arrive()
    assert table.landed <= 1
    if isinstance(step, c.Landed):
        assert before == 1
    elif isinstance(step, c.Halted) and step.code != "OUTCOME_UNKNOWN":
        assert table.landed == 0, step
    else:
        assert isinstance(step, c.Halted)

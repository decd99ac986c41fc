"""A catalog over HTTP whose answers are lost, late, wrong or missing: each batch still lands once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyiceberg import exceptions

from conveyord.core.errors import Corrupt, OutcomeUnknown, Refused, StorageFull
from conveyord.core.planning.committer import Outcome
from conveyord.storage.lake.catalog import open_embedded
from conveyord.storage.lake.outcomes import PYICEBERG, failure, within
from tests.storage.lake_rig import Run, assert_exactly_once, load
from tests.storage.rest_catalog import RestServer, serving

# A thread whose call was given up keeps its socket until the server goes away.
pytestmark = [
    pytest.mark.usefixtures("unclosed_files"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RestServer]:
    Run(tmp_path).open().close()
    with serving(open_embedded(tmp_path)) as running:
        yield running


def over_http(tmp_path: Path, server: RestServer, *, deadline_seconds: float = 60.0) -> Run:
    run = Run(tmp_path, catalog=server.client(), deadline_seconds=deadline_seconds).open()
    server.commits = 0
    return run


@pytest.mark.parametrize("fault", ["ok", "lost", "500-applied", "409-applied", "503-applied", "garbage"])
def test_an_answer_that_hides_a_success_does_not_repeat_the_batch(
    tmp_path: Path, server: RestServer, fault: str
) -> None:
    run = over_http(tmp_path, server)
    server.faults.append(fault)
    run.commit_next()
    assert server.commits == 1
    run.commit_next()
    assert assert_exactly_once(load(tmp_path)) == 2


@pytest.mark.parametrize("fault", ["504", "500", "503", "429", "422"])
def test_an_answer_that_proves_nothing_is_followed_by_a_look_and_another_attempt(
    tmp_path: Path, server: RestServer, fault: str
) -> None:
    run = over_http(tmp_path, server)
    server.faults += [fault, fault]
    run.commit_next()
    assert server.commits == 3
    assert assert_exactly_once(load(tmp_path)) == 1


@pytest.mark.parametrize("fault", ["400", "401", "403"])
def test_a_denied_commit_halts_and_nothing_was_written(tmp_path: Path, server: RestServer, fault: str) -> None:
    run = over_http(tmp_path, server)
    server.faults += [fault, fault]  # pyiceberg repeats a request once after 401, in case a token had expired
    with pytest.raises(Refused, match=r"does not accept commit 1: .*switched to.*nothing was committed"):
        run.commit_next()
    server.faults.clear()
    run.open()
    run.commit_next()
    assert assert_exactly_once(load(tmp_path)) == 1


def test_a_commit_that_arrives_after_the_retry_is_excluded_by_it(tmp_path: Path, server: RestServer) -> None:
    run = over_http(tmp_path, server)
    server.faults.append("late")
    run.commit_next()
    assert server.release() == [409]
    assert assert_exactly_once(load(tmp_path)) == 1


def test_a_commit_that_arrives_before_the_retry_excludes_it(tmp_path: Path, server: RestServer) -> None:
    run = over_http(tmp_path, server)
    arrived: list[int] = []

    def arrive_between_look_and_retry(*_: object) -> object:
        arrived.extend(server.release())
        return append(*_)

    append = run.committer._table.append
    run.committer._table.append = arrive_between_look_and_retry
    server.faults.append("late")
    run.commit_next()
    assert arrived == [200]
    assert server.commits == 2
    assert assert_exactly_once(load(tmp_path)) == 1


def test_a_commit_that_arrives_batches_later_changes_nothing(tmp_path: Path, server: RestServer) -> None:
    run = over_http(tmp_path, server)
    server.faults.append("late")
    for _ in range(3):
        run.commit_next()
    assert server.release() == [409]
    assert assert_exactly_once(load(tmp_path)) == 3


def test_a_catalog_that_never_answers_is_given_up_at_the_deadline_and_the_batch_lands_once(
    tmp_path: Path, server: RestServer
) -> None:
    run = over_http(tmp_path, server, deadline_seconds=1.0)
    server.faults.append("never")
    run.commit_next()
    assert server.release() == [409]
    assert assert_exactly_once(load(tmp_path)) == 1


def test_a_commit_that_nobody_can_tell_about_ends_in_outcome_unknown_and_the_next_run_finds_out(
    tmp_path: Path, server: RestServer
) -> None:
    run = over_http(tmp_path, server)
    server.faults += ["late"] * 8
    with pytest.raises(OutcomeUnknown, match=r"commit 1 no definite answer 8 times.*may have been applied"):
        run.commit_next()
    assert sorted(server.release()) == [200] + [409] * 7
    again = over_http(tmp_path, server)
    assert again.committer.fence.n == 1
    again.commit_next()
    assert assert_exactly_once(load(tmp_path)) == 2


def test_a_dropped_table_is_reported_although_the_catalog_answers_404(tmp_path: Path, server: RestServer) -> None:
    run = over_http(tmp_path, server)
    server.backing.drop_table("ns.t")
    following = run.committer.fence.advanced([], run.committer.fence.tally, 0)
    with pytest.raises(Refused, match="no longer in the catalog"):
        run.committer.commit([], following, spec_id=0, schema_id=0)


def test_every_exception_of_pyiceberg_has_an_outcome() -> None:
    """A class that a new version adds must be thought about, not fall through."""
    defined = {name for name, value in vars(exceptions).items() if isinstance(value, type)}
    assert defined == set(PYICEBERG)
    for name, outcome in PYICEBERG.items():
        assert failure(getattr(exceptions, name)("because"), sent=True).outcome is outcome


def test_errors_of_drivers_are_unknown_once_something_was_sent() -> None:
    from requests import ConnectionError as NoConnection
    from requests import ReadTimeout
    from sqlalchemy.exc import OperationalError

    locked = OperationalError("UPDATE", {}, Exception("database is locked"))
    for error in (NoConnection(), ReadTimeout(), locked, TimeoutError(), OSError(5, "io"), KeyError("x")):
        assert failure(error, sent=True).outcome is Outcome.UNKNOWN
    assert failure(NotImplementedError("501"), sent=True).outcome is Outcome.DENIED
    full = OperationalError("UPDATE", {}, Exception("database or disk is full"))
    assert failure(full, sent=True).outcome is Outcome.FULL_LATE
    assert failure(StorageFull("x"), sent=False).outcome is Outcome.FULL


def test_what_no_outcome_stands_for_is_raised() -> None:
    with pytest.raises(Corrupt):
        failure(Corrupt("the fence"), sent=True)
    with pytest.raises(KeyError):
        failure(KeyError("a bug of ours"), sent=False)


def test_a_call_within_its_deadline_returns_or_raises_what_it_did() -> None:
    assert within(60, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(60, lambda: 1 // 0)

"""The journal of pushed requests: what was taken is there after a crash, and keys are known."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conveyord.core.errors import Corrupt, Refused, StorageFull
from conveyord.storage import push_journal
from conveyord.storage.push_journal import Push, PushJournal, Retention, Taken, Verdict, journal_path, take_over
from tests.storage.power_cut_rig import Disk
from tests.storage.push_journal_child import LIMIT, LONG, push

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("push_journal_child.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def path(data_dir: Path) -> Path:
    return journal_path(data_dir, pipeline="default/p", stage="in")


@pytest.fixture
def journal(path: Path) -> Iterator[PushJournal]:
    with closing(PushJournal(path)) as journal:
        yield journal


def append(journal: PushJournal, *pushes: Push, now: float = 0.0, bytes_max: int = LIMIT) -> list[Taken]:
    return journal.append(pushes, now=now, bytes_max=bytes_max)


def test_what_was_appended_is_read_again_in_order_by_the_next_run(path: Path) -> None:
    with closing(PushJournal(path)) as journal:
        taken = append(journal, push(1, records=2), push(2), push(3, records=3))
        identity = journal.identity
    assert taken == [Taken(Verdict.NEW, 0, 2), Taken(Verdict.NEW, 2, 1), Taken(Verdict.NEW, 3, 3)]
    with closing(PushJournal(path)) as journal:
        assert (journal.identity, journal.next, journal.floor) == (identity, 6, 0)
        assert journal.bytes == sum(len(push(n, records=r).body) for n, r in [(1, 2), (2, 1), (3, 3)])
        found = journal.read(2, bytes_max=LIMIT)
        assert [(one.first, one.records, one.body) for one in found] == [
            (2, 1, push(2).body),
            (3, 3, push(3, records=3).body),
        ]
        assert [one.first for one in journal.read(0, bytes_max=1)] == [0], "one at least"
        assert journal.read(6, bytes_max=LIMIT) == []


def test_a_key_is_known_also_within_one_transaction_and_settled(journal: PushJournal) -> None:
    assert append(journal, push(1), push(1)) == [Taken(Verdict.NEW, 0, 1), Taken(Verdict.KNOWN, 0, 1)]
    journal.settle(1, LONG, now=0)
    assert append(journal, push(1)) == [Taken(Verdict.KNOWN, 0, 1)]
    assert append(journal, push(2, key=b"k1")) == [Taken(Verdict.OTHER)]
    assert (journal.next, journal.bytes) == (1, 0)


def test_requests_without_a_key_are_all_new(journal: PushJournal) -> None:
    plain = Push(None, b"d", 1, b"{}")
    assert [one.verdict for one in append(journal, plain, plain)] == [Verdict.NEW, Verdict.NEW]


def test_no_more_is_taken_than_there_is_room_for_and_known_keys_still_are(journal: PushJournal) -> None:
    size = len(push(1).body)
    verdicts = [one.verdict for one in append(journal, push(1), push(2), push(3), push(1), bytes_max=2 * size)]
    assert verdicts == [Verdict.NEW, Verdict.NEW, Verdict.FULL, Verdict.KNOWN]
    journal.settle(1, LONG, now=0)
    assert append(journal, push(3), bytes_max=2 * size) == [Taken(Verdict.NEW, 2, 1)]
    journal.settle(3, LONG, now=0)
    assert append(journal, push(4), bytes_max=1)[0].verdict is Verdict.NEW, "an empty journal takes any size"


def test_keys_are_forgotten_by_age_and_by_number_once_settled(journal: PushJournal) -> None:
    append(journal, push(1), push(2), push(3), now=100)
    journal.settle(1, Retention(seconds=50, keys_max=1), now=1000)
    known = [one.verdict for one in append(journal, push(2), push(3))]
    assert known == [Verdict.KNOWN, Verdict.KNOWN], "what no sink has is always known"
    assert append(journal, push(1), now=1000)[0].verdict is Verdict.NEW
    journal.settle(4, Retention(seconds=5000, keys_max=2), now=1001)
    verdicts = [one.verdict for one in append(journal, push(2), push(3), push(1))]
    assert verdicts == [Verdict.NEW, Verdict.KNOWN, Verdict.KNOWN]


def test_a_full_disk_takes_nothing_and_goes_on_when_there_is_room(journal: PushJournal) -> None:
    append(journal, push(1))
    (pages,) = journal._connection.execute("PRAGMA page_count").fetchone()
    journal._connection.execute(f"PRAGMA max_page_count = {pages}")
    large = Push(b"large", b"d", 1, b"x" * 100_000)
    with pytest.raises(StorageFull, match="nothing that was taken is lost"):
        append(journal, push(2), large)
    journal._connection.execute("PRAGMA max_page_count = 100000")
    assert (journal.next, len(journal.read(0, bytes_max=LIMIT))) == (1, 1)
    assert append(journal, push(2), large) == [Taken(Verdict.NEW, 1, 1), Taken(Verdict.NEW, 2, 1)]


@pytest.mark.parametrize("harm", ["UPDATE bodies SET body = x'00'", "DELETE FROM bodies"])
def test_damage_is_told_of_and_never_passed_over(journal: PushJournal, harm: str) -> None:
    append(journal, push(1), push(2))
    journal._connection.execute(f'{harm} WHERE "first" = 0')
    with pytest.raises(Corrupt, match="record 0 is missing or is not what was written"):
        journal.read(0, bytes_max=LIMIT)


def test_a_file_that_is_none_of_ours_is_refused(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(Corrupt, match="is damaged"):
        PushJournal(path)
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 9")
    with pytest.raises(Corrupt, match="its version is 9"):
        PushJournal(path)


def test_every_transaction_is_synced(journal: PushJournal) -> None:
    assert journal._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert journal._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


STEP = st.one_of(
    st.tuples(st.just("append"), st.lists(st.tuples(st.integers(0, 6), st.integers(1, 3)), max_size=4)),
    st.tuples(st.just("settle"), st.integers(0, 5)),
    st.tuples(st.just("reopen"), st.none()),
)


@given(st.lists(STEP, max_size=12))
@settings(max_examples=40)
def test_a_journal_is_a_list_of_requests_and_a_map_of_keys(tmp_path_factory: pytest.TempPathFactory, steps) -> None:
    path = tmp_path_factory.mktemp("journal") / "j.db"
    journal, stored, known, following, floor = PushJournal(path), [], {}, 0, 0
    for step, given_ in steps:
        if step == "append":
            for (number, records), found in zip(
                given_, append(journal, *(push(n, records=r) for n, r in given_)), strict=True
            ):
                if number in known:
                    same = known[number][1] == b"d%d" % number
                    assert found == (Taken(Verdict.KNOWN, *known[number][::2]) if same else Taken(Verdict.OTHER))
                else:
                    assert found == Taken(Verdict.NEW, following, records)
                    known[number] = (following, b"d%d" % number, records)
                    stored.append((following, records, push(number, records=records).body))
                    following += records
        elif step == "settle" and stored:
            at = stored[min(given_, len(stored) - 1)]
            floor = at[0] + at[1]
            journal.settle(floor, LONG, now=0)
            stored = [one for one in stored if one[0] >= floor]
        elif step == "reopen":
            journal.close()
            journal = PushJournal(path)
        assert [(one.first, one.records, one.body) for one in journal.read(floor, bytes_max=LIMIT)] == stored
        assert (journal.next, journal.floor) == (following, floor)
        assert journal.bytes == sum(len(body) for _, _, body in stored)
    journal.close()


# ------------------------------------------------------------------------------ renamed pipelines


@pytest.fixture
def former(data_dir: Path) -> Path:
    return journal_path(data_dir, pipeline="default/old", stage="in")


def filled(path: Path, requests: int) -> str:
    """A journal as a killed run leaves it, with requests in it and its WAL beside it. Returns its identity."""
    live = path.with_name("live.db")
    with closing(PushJournal(live)) as journal:
        append(journal, *(push(number) for number in range(requests)))
        for suffix in ("", "-wal"):
            shutil.copy(f"{live}{suffix}", f"{path}{suffix}")
        identity = journal.identity
    live.unlink()
    assert path.with_name(f"{path.name}-wal").stat().st_size
    return identity


def holds(path: Path, identity: str, requests: int) -> None:
    with closing(PushJournal(path)) as journal:
        assert (journal.identity, journal.next) == (identity, requests)
        assert [one.body for one in journal.read(0, bytes_max=LIMIT)] == [push(n).body for n in range(requests)]
        assert append(journal, push(requests - 1))[0].verdict is Verdict.KNOWN


def test_a_renamed_pipeline_has_its_requests_and_keys_and_may_ask_again(path: Path, former: Path) -> None:
    identity = filled(former, 5)
    assert take_over(path, former)
    assert list(former.parent.iterdir()) == []
    holds(path, identity, 5)
    assert not take_over(path, former)
    holds(path, identity, 5)


@pytest.mark.parametrize("step", ["make_durable_directories", "sync_directory", "rename"])
def test_a_crash_on_the_way_to_another_name_leaves_one_of_both(
    path: Path, former: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = filled(former, 5)
    with monkeypatch.context() as patch:

        def crash(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(*((Path, step, crash) if step == "rename" else (push_journal, step, crash)))
        with pytest.raises(KeyboardInterrupt):
            take_over(path, former)
    take_over(path, former)
    holds(path, identity, 5)


def test_a_journal_without_requests_makes_way_for_that_of_the_former_name(path: Path, former: Path) -> None:
    identity = filled(former, 3)
    with closing(PushJournal(path)):
        pass
    assert take_over(path, former)
    holds(path, identity, 3)


def test_of_two_journals_with_requests_none_is_taken(path: Path, former: Path) -> None:
    one, other = filled(former, 3), filled(path, 2)
    with pytest.raises(Refused, match=r"both it and .*old.*, the journal of the pipeline's former name, hold requests"):
        take_over(path, former)
    holds(former, one, 3)
    holds(path, other, 2)


def test_without_a_journal_of_the_former_name_there_is_nothing_to_do(path: Path, former: Path) -> None:
    assert not take_over(path, former)
    assert not path.exists()


def check(path: Path, acknowledged: int) -> int:
    """That everything acknowledged is there, whole, and known. Returns where the journal ends."""
    with closing(PushJournal(path)) as journal:
        assert journal.next >= acknowledged
        found = journal.read(journal.floor, bytes_max=LIMIT)
        assert [one.body for one in found] == [push(n).body for n in range(journal.floor, journal.next)]
        if acknowledged:
            assert append(journal, push(acknowledged - 1))[0].verdict is Verdict.KNOWN
        return journal.next


@pytest.mark.parametrize("kills", [3, pytest.param(25, marks=pytest.mark.check)])
def test_nothing_that_was_acknowledged_is_lost_by_sigkill(path: Path, kills: int) -> None:
    random = Random(7)
    for _ in range(kills):
        child = subprocess.Popen(
            [sys.executable, str(CHILD), str(path)], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(random.randint(1, 30))]
        child.kill()
        said += child.stdout.read().splitlines(keepends=True)
        child.stdout.close()
        child.wait()
        check(path, int([line for line in said if line.endswith("\n")][-1]))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.fail("the power-cut test mounts a file system and needs root: run `make check` as root")
    disk = Disk(tmp_path)
    try:
        yield disk
    finally:
        disk.unmount()


def cut_while_appending(disk: Disk, path: Path, *arguments: str) -> int:
    """The last end that was acknowledged before the power went."""
    return max([0, *map(int, disk.cut_under(CHILD, path, disk.mount_point, *arguments))])


@pytest.mark.check
def test_after_a_power_cut_everything_acknowledged_is_there(disk: Disk) -> None:
    path, reached = disk.mount_point / "data" / "journals" / "p" / "in.db", 0
    for number in range(6):
        reached = check(path, cut_while_appending(disk, path, str(0.02 + 0.13 * number)))
    assert reached > 20, "hardly anything was appended: the cuts came too early"


@pytest.mark.check
def test_without_its_syncs_the_same_cut_loses_requests(disk: Disk) -> None:
    """The negative control: it shows that the cut takes what was not synced."""
    path = disk.mount_point / "data" / "journals" / "p" / "in.db"
    acknowledged = cut_while_appending(disk, path, "0.4", "careless")
    assert acknowledged > 0
    with pytest.raises((AssertionError, Corrupt)):
        check(path, acknowledged)

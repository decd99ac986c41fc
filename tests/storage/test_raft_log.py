"""A Raft log keeps what it was told to, in one sync each time."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

import msgpack
import pytest
from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from conveyord.core.errors import Refused
from conveyord.core.raft.messages import Install, Write
from conveyord.core.raft.types import ENTRY_BYTES, Entry, HardState, Kind, Mark, make_entry, size_of
from conveyord.storage.raft_log import log as raft_log
from conveyord.storage.raft_log import writing
from conveyord.storage.raft_log.log import RaftLog
from conveyord.storage.raft_log.quarantine import Quarantined
from tests.storage.raft_log_rig import (
    EVERYTHING,
    Model,
    appended,
    contents,
    entries_after,
    found,
    membership,
    next_step,
    opened,
)
from tests.storage.vfs_recorder import Recorder


class TestLoading:
    """What a node is handed when it starts."""

    def test_a_new_log_is_empty(self, tmp_path: Path) -> None:
        assert found(tmp_path) == Model().contents()

    def test_the_window_has_the_newest_entries_and_all_that_may_change(self, tmp_path: Path) -> None:
        log, model = opened(tmp_path), Model()
        log.load(0)
        for term in (1, 2, 3):
            appended(log, model, [100] * 10, term=term)  # the commit hint is where the log ended before
        log.close()
        log = opened(tmp_path)
        window = 5 * (100 + ENTRY_BYTES) + 99
        assert [one.index for one in log.load(0, window_bytes=window).entries] == list(range(21, 31))
        assert [one.index for one in log.load(28, window_bytes=window).entries] == list(range(26, 31))
        assert [one.index for one in log.load(30, window_bytes=0).entries] == [30]
        loaded = log.load(28, window_bytes=window)
        assert (loaded.runs, loaded.applied) == ([(1, 1), (11, 2), (21, 3)], 28)
        log.close()

    def test_memberships_are_told_with_their_indices_also_of_entries_that_are_not_in_the_window(
        self, tmp_path: Path
    ) -> None:
        log, model = opened(tmp_path), Model()
        log.load(0)
        appended(log, model, [], entries=entries_after(model.end, 1, [0], kind=Kind.MEMBERSHIP))
        appended(log, model, [9, 9])
        log.close()
        log = opened(tmp_path)
        loaded = log.load(3, window_bytes=0)
        assert loaded.memberships == [(1, membership(1))]
        assert len(loaded.entries) == 1
        log.close()

    def test_nothing_is_written_before_all_is_verified(self, tmp_path: Path) -> None:
        log, model = opened(tmp_path), Model()
        log.load(0)
        appended(log, model, [9] * 9)
        log.close()
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "lock"}
        opened(tmp_path).close()
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "lock"} == before


class TestFounding:
    """The first members of a cluster are in no entry."""

    def test_the_members_of_a_new_cluster_are_those_at_the_base(self, tmp_path: Path) -> None:
        log = opened(tmp_path)
        log.load(0)
        log.found(membership(2))
        log.found(membership(3))
        assert log.load(0).membership == membership(3)
        log.close()
        assert found(tmp_path)[2] == membership(3)

    def test_a_blank_log_that_an_earlier_process_made_may_be_founded_before_it_is_loaded(self, tmp_path: Path) -> None:
        opened(tmp_path).close()
        log = opened(tmp_path)
        log.found(membership(2))
        assert log.load(0).membership == membership(2)
        log.close()
        assert found(tmp_path)[2] == membership(2)

    @pytest.mark.parametrize("held", ["entry", "vote"])
    def test_a_log_that_holds_anything_founds_nothing(self, tmp_path: Path, held: str) -> None:
        log, model = opened(tmp_path), Model()
        log.load(0)
        if held == "entry":
            appended(log, model, [1])
        else:
            log.write(Write(0, HardState(1, "n1"), None, (), None))
        with pytest.raises(Refused, match="founded by nodes whose logs are empty"):
            log.found(membership(2))
        appended(log, model, [1])
        log.close()


class TestReading:
    """What a leader reads for a follower that is behind."""

    @pytest.fixture
    def log(self, tmp_path: Path) -> RaftLog:
        log, model = opened(tmp_path), Model()
        log.load(0)
        appended(log, model, [100] * 10)
        log.compact(model.mark(3), model.members)
        return log

    @pytest.mark.parametrize(
        ("first", "end", "bytes_max", "indices"),
        [
            (4, 11, EVERYTHING, [4, 5, 6, 7, 8, 9, 10]),
            (4, 7, EVERYTHING, [4, 5, 6]),
            (4, 11, 3 * (100 + ENTRY_BYTES) + 99, [4, 5, 6]),
            (4, 11, 1, [4]),
            (9, 99, EVERYTHING, [9, 10]),
            (3, 11, EVERYTHING, []),
            (11, 12, EVERYTHING, []),
        ],
    )
    def test_as_much_is_read_as_is_there_and_wanted(
        self, log: RaftLog, first: int, end: int, bytes_max: int, indices: list[int]
    ) -> None:
        assert [entry.index for entry in log.read(first, end, bytes_max)] == indices
        log.close()


class TestOneSync:
    """A transaction that is on disk costs one sync, whatever is in it."""

    @pytest.mark.parametrize(
        "write",
        [
            Write(0, HardState(2, "n2", 0), None, (), None),
            Write(0, None, None, entries_after(Mark(), 1, [])[:0], None),
            Write(0, HardState(2, None, 5), 3, entries_after(Mark(2, 1), 2, [200] * 300), None),
            Write(0, None, 1, (), None),
            Write(0, HardState(2), None, entries_after(Mark(50, 2), 2, [9]), Install(Mark(50, 2), membership(50))),
        ],
        ids=["vote", "nothing", "all of it", "truncation", "install"],
    )
    def test_a_write_is_one_sync(self, tmp_path: Path, write: Write) -> None:
        recorder = Recorder(f"counting-{id(write)}", tmp_path)
        with recorder.recording():
            log, model = opened(tmp_path, vfs=recorder.name), Model()
            log.load(0)
            appended(log, model, [200] * 20)
            before = recorder.syncs
            log.write(write)
            assert recorder.syncs == before + 1
            log.close()
        recorder.unregister()

    def test_a_compaction_is_one_sync(self, tmp_path: Path) -> None:
        recorder = Recorder("counting-compaction", tmp_path)
        with recorder.recording():
            log, model = opened(tmp_path, vfs=recorder.name), Model()
            log.load(0)
            appended(log, model, [200] * 20)
            before = recorder.syncs
            log.compact(model.mark(10), model.members)
            assert recorder.syncs == before + 1
            log.close()
        recorder.unregister()

    def test_what_follows_a_checkpoint_costs_one_more_for_the_head_of_the_write_ahead_log(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(raft_log, "CHECKPOINT_PAGES", 20)
        recorder = Recorder("counting-checkpoints", tmp_path)
        costs = list[int]()
        with recorder.recording():
            log, model = opened(tmp_path, vfs=recorder.name), Model()
            log.load(0)
            for _ in range(12):
                before = recorder.syncs
                appended(log, model, [200] * 20)
                costs.append(recorder.syncs - before)
            log.close()
        recorder.unregister()
        assert costs == [2, 1, 1, 1, 4, 1, 1, 1, 4, 1, 1, 1]


class TestSpace:
    """A log that is compacted stays as large as what it keeps."""

    def test_space_of_compacted_entries_is_used_again(self, tmp_path: Path) -> None:
        log, model = opened(tmp_path), Model()
        log.load(0)
        sizes = list[int]()
        for _ in range(40):
            appended(log, model, [2000] * 100)
            base = model.mark(max(1, model.last - 100))
            if base.index > model.base.index:
                log.compact(base, model.members)
                model.compact(base, model.members)
            sizes.append((tmp_path / "raft.db").stat().st_size)
        assert sizes[-1] == sizes[-20] < 4_000_000
        log.close()

    def test_sweeping_takes_slices_and_ends(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(writing, "SWEEP_ENTRIES", 10)
        log, model = opened(tmp_path), Model()
        log.load(0)
        appended(log, model, [1] * 100)
        log.compact(model.mark(95), model.members)
        left = list[int]()
        for _ in range(10):
            log.write(Write(0, HardState(1, "n1", len(left)), None, (), None))
            ((count,),) = log._connection.execute("SELECT count(*) FROM entries").fetchall()
            left.append(count)
        assert left == [80, 70, 60, 50, 40, 30, 20, 10, 5, 5]
        log.close()

    def test_of_large_entries_a_slice_has_fewer(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(writing, "SWEEP_BYTES", 2_000)
        log, model = opened(tmp_path), Model()
        log.load(0)
        appended(log, model, [900] * 12)
        log.compact(model.mark(10), model.members)
        left = list[int]()
        for _ in range(4):
            ((count,),) = log._connection.execute("SELECT count(*) FROM entries").fetchall()
            left.append(count)
            log.write(Write(0, HardState(1, "n1", len(left)), None, (), None))
        appended(log, model, [2_000])  # twice as much goes
        ((count,),) = log._connection.execute("SELECT count(*) FROM entries").fetchall()
        assert left == [9, 6, 3, 2]
        assert count == 3
        log.close()

    def test_a_compaction_that_is_old_does_nothing(self, tmp_path: Path) -> None:
        log, model = opened(tmp_path), Model()
        log.load(0)
        appended(log, model, [1] * 9)
        for index in (7, 3, 7):
            log.compact(model.mark(index), model.members)
        assert log.base == model.mark(7)
        log.close()


class TestWhoMayOpenIt:
    """One process, the node whose votes are in it, and no file of something else."""

    def test_two_processes_cannot_have_one_log(self, tmp_path: Path) -> None:
        log = opened(tmp_path)
        script = (
            "import sys; from pathlib import Path; from conveyord.storage.raft_log.log import RaftLog\n"
            "from conveyord.core.errors import Refused\n"
            "try: RaftLog(Path(sys.argv[1]), node='n1')\n"
            "except Refused as error: print(error)"
        )
        ended = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "raft.db")], capture_output=True, text=True, check=True
        )
        assert "is in use by process" in ended.stdout
        log.close()

    def test_the_log_of_another_node_is_refused(self, tmp_path: Path) -> None:
        opened(tmp_path).close()
        with pytest.raises(Refused, match="is the log of node n1, whose votes are in it, and this is node n2"):
            opened(tmp_path, node="n2")

    def test_a_database_of_something_else_is_refused_and_stays(self, tmp_path: Path) -> None:
        connection = sqlite3.connect(tmp_path / "raft.db")
        connection.execute("CREATE TABLE accounts (name TEXT)")
        connection.close()
        before = (tmp_path / "raft.db").read_bytes()
        with pytest.raises(Refused, match="is a database of something else"):
            opened(tmp_path)
        assert (tmp_path / "raft.db").read_bytes() == before

    def test_a_log_of_a_newer_conveyord_is_refused_and_stays(self, tmp_path: Path) -> None:
        opened(tmp_path).close()
        connection = sqlite3.connect(tmp_path / "raft.db")
        connection.execute("PRAGMA user_version = 2")
        connection.close()
        with pytest.raises(Refused, match="has schema 2, this conveyord knows 1"):
            opened(tmp_path)
        assert (tmp_path / "raft.db").exists()

    @pytest.mark.parametrize("window_bytes", [0, EVERYTHING])
    def test_an_entry_of_a_kind_that_a_newer_conveyord_wrote_is_refused_and_stays(
        self, tmp_path: Path, window_bytes: int
    ) -> None:
        log, model = opened(tmp_path), Model()
        log.load(0)
        newer = make_entry(model.end.chain, 1, 1, 7, b"of another day")
        appended(log, model, [], entries=(newer, *entries_after(Mark(1, 1, newer.chain), 1, [9, 9])))
        log.close()
        log = opened(tmp_path)
        with pytest.raises(Refused, match="entry 1 .* is of kind 7, which this conveyord does not know"):
            log.load(3, window_bytes=window_bytes)
        log.close()
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == []
        assert (tmp_path / "raft.db").exists()

    def test_members_in_a_form_of_a_newer_conveyord_are_refused_and_stay(self, tmp_path: Path) -> None:
        log, model = opened(tmp_path), Model()
        log.load(0)
        newer = make_entry(model.end.chain, 1, 1, Kind.MEMBERSHIP, msgpack.packb([["n1"], [], [], [], ["witness"]]))
        appended(log, model, [], entries=(newer,))
        log.close()
        for _ in range(2):
            log = opened(tmp_path)
            with pytest.raises(
                Refused, match="entry 1 of the log of node n1: .*a newer conveyord wrote it; upgrade this node"
            ):
                log.load(0)
            log.close()
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []

    def test_members_that_nobody_ever_wrote_are_damage(self, tmp_path: Path) -> None:
        log, model = opened(tmp_path), Model()
        log.load(0)
        appended(log, model, [], entries=(make_entry(model.end.chain, 1, 1, Kind.MEMBERSHIP, b"\xc1"),))
        log.close()
        log = opened(tmp_path)
        with pytest.raises(Quarantined, match="entry 1.*is not what was written"):
            log.load(0)

    def test_a_log_that_is_closed_refuses(self, tmp_path: Path) -> None:
        log = opened(tmp_path)
        log.load(0)
        log.close()
        log.close()
        with pytest.raises(Refused, match="as it is closed"):
            log.read(1, 2, 3)


class LogAgainstList(RuleBasedStateMachine):
    """Whatever a log is asked, and whenever it is opened again, it holds what a list holds."""

    @initialize(pages=strategies.sampled_from((3, 1000)), entries=strategies.sampled_from((2, 1000)))
    def begin(self, pages: int, entries: int) -> None:
        self.directory = Path(tempfile.mkdtemp(dir="/dev/shm"))
        self.constants = raft_log.CHECKPOINT_PAGES, writing.SWEEP_ENTRIES
        raft_log.CHECKPOINT_PAGES, writing.SWEEP_ENTRIES = pages, entries
        self.model = Model()
        self.log = opened(self.directory)
        self.log.load(0)

    @rule(random=strategies.randoms(use_true_random=False))
    def step(self, random: Random) -> None:
        next_step(random, self.model)(self.log)

    @rule(bytes_max=strategies.integers(0, 3000), data=strategies.data())
    def read(self, bytes_max: int, data: strategies.DataObject) -> None:
        first = data.draw(strategies.integers(1, self.model.last + 2))
        end = data.draw(strategies.integers(first + 1, self.model.last + 4))
        entries = [one for one in self.model.entries if first <= one.index < end]
        wanted, size = list[Entry](), 0
        for entry in entries if first > self.model.base.index else []:
            size += size_of([entry])
            if wanted and size > bytes_max:
                break
            wanted.append(entry)
        assert self.log.read(first, end, bytes_max) == tuple(wanted)

    @rule()
    def open_again(self) -> None:
        self.log.close()
        self.log = opened(self.directory)
        assert contents(self.log.load(0, window_bytes=EVERYTHING)) == self.model.contents()

    @invariant()
    @precondition(lambda self: hasattr(self, "log"))
    def base_is_known(self) -> None:
        assert self.log.base == self.model.base

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.open_again()
            self.log.close()
            raft_log.CHECKPOINT_PAGES, writing.SWEEP_ENTRIES = self.constants
            shutil.rmtree(self.directory)


TestLogAgainstList = LogAgainstList.TestCase
TestLogAgainstList.settings = settings(max_examples=15, stateful_step_count=20)

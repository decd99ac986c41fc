"""A run into several tables is stopped at every step in turn; the next one, from the tables alone, makes all whole.

The tables are committed by turns, and one of them is new, so every step of a commit of each is among them.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import trio

from conveyord.engine.gate import Gate
from conveyord.engine.messages import Eos, Message
from tests.engine.topics_rig import (
    Log,
    assert_rows_are_the_fence,
    assert_whole,
    batch_of,
    interleaved,
    sink_in,
    spans_of,
    tables,
)
from tests.storage.crash_rig import Crashed, crashing
from tests.storage.lake_rig import files_on_disk, files_reachable
from tests.storage.test_commit_crashes import STEPS, small_limits

# A killed process does not close its files either.
pytestmark = [
    pytest.mark.usefixtures("unclosed_files"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

BEFORE: Log = {"a[0]": 3, "b[0]": 3}
DURING: Log = {"a[0]": 9, "b[0]": 9, "b[1]": 3, "new[0]": 3}
AFTER: Log = {name: end + 3 for name, end in DURING.items()}


def run(data_dir: Path, log: Log) -> None:
    """Write `log`, each batch of three records a commit, and close nothing: what runs may be killed."""

    async def write() -> None:
        sink = sink_in(data_dir, commit={"rows": 3}, tables_max=2)
        held = await sink.open()
        gate = Gate("sink", held, names={})
        send, receive = trio.open_memory_channel[Message](100)
        for span in interleaved(spans_of(log, held, size=3), Random(2)):
            batch = gate.admit(batch_of(span))
            assert batch is not None
            await send.send(batch)
        await send.send(Eos())
        await sink.run(receive)

    trio.run(write)


def crash_and_recover(data_dir: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    run(data_dir, BEFORE)
    with crashing(monkeypatch, STEPS, at), pytest.raises(Crashed):
        run(data_dir, DURING)
    for name, table in tables(data_dir).items():
        assert_rows_are_the_fence(table, name)
    run(data_dir, AFTER)
    assert_whole(data_dir, AFTER)
    for name, table in tables(data_dir).items():
        reachable = files_reachable(table)
        # Whoever is killed while it creates a table leaves its first metadata: what no catalog knows has no ledger yet.
        present = {path for path in files_on_disk(table) if path in reachable or "/metadata/00000-" not in path}
        assert reachable <= present, f"something that {name} names was deleted"
        assert not present - reachable, f"garbage of {name} that nothing will ever delete"


def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, stride: int, first: int = 0) -> None:
    small_limits(monkeypatch)
    run(tmp_path / "count", BEFORE)
    with crashing(monkeypatch, STEPS, None) as crasher:
        run(tmp_path / "count", DURING)
    names = crasher.names
    assert {"commit_table", "create_table", "close", "write", "unlink", "sync_directory"} <= set(names)
    for at in range(first, len(names), stride):
        try:
            crash_and_recover(tmp_path / f"at-{at}", monkeypatch, at)
        except AssertionError as error:
            raise AssertionError(f"stopped before step {at} ({names[at]}): {error}") from error


def test_a_run_stopped_at_steps_all_along_its_way_is_made_whole_in_every_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep(tmp_path, monkeypatch, first=31, stride=197)


@pytest.mark.parametrize(
    "stride", [pytest.param(59, marks=pytest.mark.check), pytest.param(7, marks=pytest.mark.soak)], ids=["some", "many"]
)
@pytest.mark.timeout(3600)
def test_a_run_stopped_at_many_steps_is_made_whole_in_every_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    """A dozen places in a check, a hundred in a soak, of every kind of step."""
    sweep(tmp_path, monkeypatch, first=5, stride=stride)

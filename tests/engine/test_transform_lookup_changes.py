"""A lookup whose reference is replaced all the time."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.graph_rig import World, line, numbered, run_now, sink, source, transform
from tests.engine.test_transform_lookup import letters, look, write


def test_a_reference_that_changes_all_the_time_confuses_no_record() -> None:
    """A later stage fails on rows of batches that met other states of the reference: their records are the right ones.

    Which rows are dropped depends on when the reference was read again. Where a row came from must not.
    """
    letters_seen = 0

    @given(st.randoms(use_true_random=False))
    @settings(max_examples=5)
    def lived(random: Any) -> None:
        nonlocal letters_seen
        letters_seen += letters_of_a_changing_reference(random)

    lived()
    assert letters_seen


def letters_of_a_changing_reference(random: Any) -> int:
    """Asserts that each letter has its own record. Returns how many there were."""
    world = World(tables={"t": numbered(120)}, delays=random)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write(folder / "r.csv", letters("ab"))
        world.watchers.append(lambda: write(path, letters(random.choice(["a", "b", "ab", "bc", "abc"]))) and None)
        looking = look(path, on_miss="drop", cache={"check_every": "10ms"})
        stages = [
            source(),
            looking,
            transform("repeat", "repeat"),
            transform("brittle", "brittle", poison=[4, 7]),
            sink(),
        ]
        outcome = run_now(world, line(*stages), folder / "data")
    assert not outcome.failed()
    found = outcome.letters_of()
    for stored in found:
        assert stored.letter.raw is not None
        assert stored.letter.row is not None
        record = json.loads(stored.letter.raw)
        (row,) = pa.ipc.open_stream(stored.letter.row).read_all().to_pylist()
        assert (row["n"], row["v"]) == (record["n"], record["v"])
        assert record["v"] in (4, 7)
        assert stored.letter.key.offset == record["n"] * 10
        assert row["title"] == row["k"].upper()
    kept = world.kept("default/p", "out")
    assert all(row["v"] not in (4, 7) and row["title"] == row["k"].upper() for row in kept.rows)
    return len(found)

"""The transform `lookup`: rows without a match, and keys of the reference that no row can have, however many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog

from conveyord.core.pipeline.graph import Stage
from tests.engine.graph_rig import World, line, numbered, run_now, sink, source, transform


def look(path: Path, *on: str, **options: Any) -> Stage:
    return transform("look", "lookup", reference={"type": "csv", "path": str(path)}, on=list(on), **options)


def test_more_rows_may_miss_than_a_search_would_find(data_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("k,title\nc,C\n")
    world = World(tables={"t": numbered(3_600)})
    step = look(path, "k", on_miss="dead_letter")
    outcome = run_now(world, line(source(batch_rows=3_600), step, sink()), data_dir)
    assert not outcome.failed()
    assert [row["n"] for row in world.kept("default/p", "out").rows] == [n for n in range(3_600) if n % 3 == 2]
    found = outcome.letters_of()
    assert sorted(stored.letter.key.offset // 10 for stored in found) == [n for n in range(3_600) if n % 3 != 2]
    assert {stored.letter.message.rpartition(" with ")[2] for stored in found} == {"k = 'a'", "k = 'b'"}


def test_a_key_that_is_not_of_the_rows_type_matches_none_and_is_counted_in_the_log(
    data_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "r.csv"
    path.write_text("n,name\n1,one\nN/A,none\n 2,two\n2,deux\n99999999999999999999,many\n,null\n")
    world = World(tables={"t": numbered(4)})
    with structlog.testing.capture_logs() as logs:
        outcome = run_now(world, line(source(), look(path, "n"), sink()), data_dir)
    assert not outcome.failed()
    assert [row["name"] for row in world.kept("default/p", "out").rows] == [None, "one", "deux", None]
    assert [entry for entry in logs if "keys" in entry["event"]] == [
        {
            "event": "keys of the reference match no row",
            "log_level": "warning",
            "reference": f"reference {path}",
            "column": "n",
            "reason": "they are no int64, which the rows have",
            "count": 3,
            "first_row": 2,
        }
    ]

"""Graphs, killed at random again and again: sinks of different speed, a spill, dead letters and their copies.

Afterwards every sink has every row once, every poison record is a dead letter once, and `dlq.sink` has one
copy of each. The tables are counted by DuckDB in the files that their metadata names.
"""

from __future__ import annotations

import faulthandler
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.graph_rig import RECORDS, GraphJob, copies, sink
from tests.e2e.harness import line
from tests.e2e.test_kill_loop import (
    AT_ONCE,
    COMMIT_SECONDS,
    COMMITS_MAX,
    EARLY_SECONDS_MAX,
    EARLY_SHARE,
    SEED,
    Load,
    check_leftovers,
)

QUICK = {"commit": {"rows": 200, "every": "0.1s"}}
SLOW = {"commit": {"rows": 20_000, "every": "1h"}}
SMALL_BATCHES = {**RECORDS, "batch_rows": 100}
BAD_JSON, BAD_ROW, BAD_CONDITION = 997, 1009, 1103  # every so manieth record fails: here, in the SQL, at an edge

Expected = Callable[[int], bool]


def text(number: int) -> bytes:
    """A record without its newline: every so manieth is cut short."""
    whole = line(number).rstrip(b"\n")
    return whole[:-9] if is_bad_json(number) else whole


def is_bad_json(number: int) -> bool:
    return number % BAD_JSON == 7


def is_bad_row(number: int) -> bool:
    return number % BAD_ROW == 17 and not is_bad_json(number)


def is_bad_at_edge(number: int) -> bool:
    return number % BAD_CONDITION == 27 and not is_bad_json(number) and not is_bad_row(number)


def is_good(number: int) -> bool:
    return not (is_bad_json(number) or is_bad_row(number) or is_bad_at_edge(number))


class PoisonLoad(Load):
    """Records of which some are no JSON, on some a query fails, and on some the condition of an edge."""

    def content(self, numbers: range, *, appended: bool) -> bytes:
        return b"".join(text(number) + b"\n" for number in numbers)


@dataclass(frozen=True)
class Shape:
    """A pipeline, its input, and which records each of its tables is to have."""

    job: GraphJob
    load: Load
    expected: dict[str, Expected]


def two_speeds(home: Path) -> Shape:
    sinks = [sink("quick", provenance=True, **QUICK), sink("slow", **SLOW)]
    job = GraphJob(home, sources=[SMALL_BATCHES], sinks=sinks, edges=[["in", "quick"], ["in", "slow"]])
    return Shape(job, Load(job), {"quick": lambda _: True, "slow": lambda _: True})


def spilling(home: Path) -> Shape:
    """Both sinks commit often, and the channels are short, so that the edge spills in every run."""
    halves = {"name": "halves", "type": "filter", "when": "id % 2 = 0"}
    edges = [["in", "quick"], {"from": "in", "to": "halves", "on_slow": "spill"}, ["halves", "even"]]
    edges += [{"from": "halves.dropped", "to": "odd", "on_slow": "spill"}]
    sinks = [sink("quick", **SLOW), sink("even", **QUICK), sink("odd", **QUICK)]
    job = GraphJob(home, sources=[SMALL_BATCHES], transforms=[halves], sinks=sinks, edges=edges)
    return Shape(
        job,
        Load(job),
        {"quick": lambda _: True, "even": lambda number: number % 2 == 0, "odd": lambda number: number % 2 == 1},
    )


def poisoned(home: Path) -> Shape:
    failing = f"CASE WHEN id % {BAD_ROW} = 17 THEN 1 / (id - id) ELSE id END"
    calc = {"name": "calc", "type": "sql_transform", "query": f"SELECT id, name, {failing} AS n FROM input_data"}
    fails_too = f"CASE WHEN id % {BAD_CONDITION} = 27 THEN 1 / (id - id) ELSE id % 2 END"
    edges = [["in", "calc"], {"from": "calc", "to": "quick", "when": f"{fails_too} = 0"}]
    edges += [{"from": "calc", "to": "slow", "otherwise": True, "on_slow": "spill"}]
    sinks = [sink("quick", **QUICK), sink("slow", **SLOW), sink("dead", commit={"rows": 3, "every": "0.1s"})]
    job = GraphJob(home, sources=[SMALL_BATCHES], transforms=[calc], sinks=sinks, edges=edges, dlq={"sink": "dead"})
    return Shape(
        job,
        PoisonLoad(job),
        {
            "quick": lambda number: is_good(number) and number % 2 == 0,
            "slow": lambda number: is_good(number) and number % 2 == 1,
        },
    )


SHAPES = {"speeds": two_speeds, "spill": spilling, "poison": poisoned}


def kill_loop(shape: Shape, *, kills: int, records: int, files: int) -> Counter[str]:
    """Kill `kills` runs, finish, and assert that everything is everywhere once. Returns what the runs had done."""
    faulthandler.cancel_dump_traceback_later()  # see test_kill_loop
    rng, job, load, done = random.Random(SEED), shape.job, shape.load, Counter[str]()
    print(f"seed={SEED}")
    for _ in range(files):
        load.add(records // files)
    while done["kills"] < kills:
        running = job.start("--channel-capacity", "2")
        if rng.random() < EARLY_SHARE or not running.saw("committed", times=rng.randint(1, COMMITS_MAX)):
            pause = rng.uniform(0.0, EARLY_SECONDS_MAX)
        else:
            pause = rng.uniform(0.0, COMMIT_SECONDS)
        if running.killed_after(pause):
            done["kills"] += 1
            done["kills with frames left"] += bool(job.spilled())
            done["kills with letters"] += job.letter_count() > 0
            continue
        running.wait().succeeded()
        more = load.add if rng.random() < 0.5 else load.append
        more(records // files)
    for one in job.sinks:
        one["commit"] = AT_ONCE  # the rest, and more: what was left behind goes after a commit
    load.add(records // files)
    job.run().succeeded()
    print(f"{dict(done)}, records: {load.records}, files: {load.files}")
    check(shape)
    assert job.run().succeeded()["rows_in"] == 0
    check(shape)
    return done


def check(shape: Shape) -> None:
    job, records = shape.job, shape.load.records
    job.hold(**{name: filter(keep, range(records)) for name, keep in shape.expected.items()})
    for name in shape.expected:
        check_leftovers(job.table(name))
        job.table(name).audit()
    assert not job.spilled()
    poison = [number for number in range(records) if not is_good(number)] if job.dlq is not None else []
    assert Counter(letter["raw"] for letter in job.letters()) == Counter(text(number).decode() for number in poison)
    if job.dlq is not None:
        found = copies(job.table("dead"))
        assert Counter(row["raw"] for row in found) == Counter(map(text, poison))
        job.table("dead").audit()


@pytest.mark.parametrize("shape", [pytest.param("speeds", marks=pytest.mark.check), "spill", "poison"])
def test_every_row_is_at_every_sink_once_after_a_few_kills(tmp_path: Path, shape: str) -> None:
    kill_loop(SHAPES[shape](tmp_path), kills=2, records=9_000, files=3)


@pytest.mark.check
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("shape", "kills"), [("speeds", 15), ("spill", 15), ("poison", 10)])
def test_every_row_is_at_every_sink_once_after_many_kills(tmp_path: Path, shape: str, kills: int) -> None:
    done = kill_loop(SHAPES[shape](tmp_path), kills=kills, records=40_000, files=6)
    assert shape != "spill" or done["kills with frames left"]
    assert shape != "poison" or done["kills with letters"]


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_row_is_at_every_sink_once_after_200_kills(tmp_path: Path, shape: str) -> None:
    kill_loop(SHAPES[shape](tmp_path), kills=200, records=120_000, files=12)

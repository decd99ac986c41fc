"""Replays in this process, one case each: who gets which letter, and what waits for what."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from conveyord.core.flow.dead_letters import PARTS_PER_LETTER
from conveyord.core.flow.positions import Positions
from conveyord.core.pipeline.graph import Pipeline
from conveyord.engine import lanes
from conveyord.engine.contracts import Rejected
from conveyord.engine.dead_lettering import Draft, StageLetters
from conveyord.storage.dead_letters.letters import Selection
from tests.engine.graph_rig import (
    Keep,
    World,
    letters_in,
    numbered,
    pipeline,
    raw_of,
    sink,
    source,
    transform,
)
from tests.engine.replay_rig import PARTS, ROWS, Flawed, arrived, bytes_of, counts, flip, replayed, run
from tests.storage.dead_letters_rig import opened


@pytest.fixture
def world() -> Flawed:
    return Flawed({"t": numbered(ROWS)})


def forked() -> Pipeline:
    """in -> a -> one and two, which commit at different times."""
    sinks = [sink("one"), sink("two", commit_batches=1_000)]
    return pipeline([source(), transform("a", "fussy"), *sinks], [("in", "a"), ("a", "one"), ("a", "two")])


def ns(world: World, name: str, pipe: str = "default/p") -> list[int]:
    return sorted(row["n"] for row in world.kept(pipe, name).rows)


def cut_between(world: Flawed, data_dir: Path, pipe: Pipeline) -> None:
    """A run after which the sink `one` has the first records and `two`, which fails before its commit, has none."""
    world.sink_faults = {("default/p", "two"): 5}
    run(world, data_dir, pipe)
    assert ns(world, "one")
    assert not ns(world, "two")


def test_a_record_read_again_for_one_sink_is_replayed_for_the_other_only(world: Flawed, data_dir: Path) -> None:
    world.bad = {"a": {1, 2}}
    cut_between(world, data_dir, forked())
    world.bad = {}  # mended: the second sink gets the rows when their records are read again
    run(world, data_dir, forked())
    assert ns(world, "two") == list(range(ROWS))
    report = replayed(world, data_dir, forked())
    assert report is not None
    assert counts(report) == (2, 0, 0, 0)
    assert ns(world, "one") == ns(world, "two") == list(range(ROWS))


def test_a_letter_waits_for_each_sink_to_pass_its_record(world: Flawed, data_dir: Path) -> None:
    world.bad = {"a": {1, 2}}
    cut_between(world, data_dir, forked())
    world.bad = {}
    report = replayed(world, data_dir, forked())
    assert report is not None
    assert counts(report) == (0, 0, 2, 0)
    assert (ns(world, "one")[:3], ns(world, "two")) == ([0, 1, 2], [])


def test_a_letter_that_no_sink_has_passed_is_dropped_when_its_record_is_read_again(
    world: Flawed, data_dir: Path
) -> None:
    world.bad = {"a": {1, 2}}
    world.sink_faults = {("default/p", "one"): 0, ("default/p", "two"): 0}
    run(world, data_dir, forked())
    assert (ns(world, "one"), len(letters_in(data_dir))) == ([], 2)
    world.bad = {}
    run(world, data_dir, forked())
    assert letters_in(data_dir) == []
    assert ns(world, "one") == ns(world, "two") == list(range(ROWS))


def test_a_sink_that_is_added_gets_its_rows_and_the_others_none_twice(world: Flawed, data_dir: Path) -> None:
    """All records are read again for it, and those that were replayed to the others fail once more."""
    two = [("in", "a"), ("a", "one"), ("in", "two")]
    stages = [source(), transform("a", "fussy"), sink("one"), sink("two")]
    world.bad = {"a": {1, 2}}
    run(world, data_dir, pipeline(stages, two))
    world.bad = {}
    replayed(world, data_dir, pipeline(stages, two))
    world.bad = {"a": {1, 2, 3}}
    elsewhere = pipeline([*stages, sink("new")], [*two, ("in", "new")])
    run(world, data_dir, elsewhere)
    assert letters_in(data_dir) == [], "that stage's rows had arrived, so nobody lacks what fails now"
    behind = pipeline([*stages, sink("new"), sink("newer")], [*two, ("in", "new"), ("a", "newer")])
    run(world, data_dir, behind)
    assert [stored.letter.sinks for stored in letters_in(data_dir)] == [{"newer"}] * 3
    world.bad = {}
    replayed(world, data_dir, behind)
    for name in ("one", "two", "new", "newer"):
        assert ns(world, name) == list(range(ROWS))


def test_a_pipeline_that_shares_a_source_fails_no_record_of_another_again(world: Flawed, data_dir: Path) -> None:
    stages, edges = [source(), transform("a", "fussy"), sink("one")], [("in", "a"), ("a", "one")]
    first, second = pipeline(stages, edges), pipeline(stages, edges, name="q")
    world.bad = {"a": {1, 2}}
    run(world, data_dir, first)
    world.bad = {}
    replayed(world, data_dir, first)
    world.bad = {"a": {1, 2}}
    run(world, data_dir, first, second)
    world.bad = {}
    replayed(world, data_dir, first)
    replayed(world, data_dir, second)
    assert ns(world, "one") == ns(world, "one", "default/q") == list(range(ROWS))


def test_what_fails_on_the_way_to_nobody_who_lacks_it_is_no_letter(world: Flawed, data_dir: Path) -> None:
    """A letter for the new sink passes a stage of the other branch again, which has had the record long ago."""
    stages, edges = [source(), transform("a", "fussy"), sink("one")], [("in", "a"), ("a", "one")]
    run(world, data_dir, pipeline(stages, edges))
    both = pipeline([*stages, sink("new")], [*edges, ("in", "new")])
    world.bad = {"in": {0}}
    run(world, data_dir, both)
    assert [stored.letter.sinks for stored in letters_in(data_dir)] == [{"new"}]
    world.bad = {"a": {0}}
    report = replayed(world, data_dir, both)
    assert report is not None
    assert counts(report) == (1, 0, 0, 0)
    assert letters_in(data_dir) == []
    world.bad = {}
    replayed(world, data_dir, both)
    assert ns(world, "one") == ns(world, "new") == list(range(ROWS))


def two_ways(*names: str) -> Pipeline:
    """One fussy stage before as many sinks."""
    stages = [source(), transform("a", "fussy"), *(sink(name) for name in names)]
    return pipeline(stages, [("in", "a"), *(("a", name) for name in names)])


def test_a_sink_that_is_away_during_a_replay_gets_its_letters_when_it_is_back(world: Flawed, data_dir: Path) -> None:
    world.bad = {"a": {0, 1}}
    run(world, data_dir, two_ways("one", "two"))
    world.bad = {"a": {1}}
    report = replayed(world, data_dir, two_ways("one"))
    assert report is not None
    assert counts(report) == (0, 1, 0, 0)
    assert report.absent == {"two": 2}
    assert ns(world, "one") == [0, *range(2, ROWS)], "the sink that is there gets what passes now"
    world.bad = {}
    for names in (["one"], ["one", "two"], ["one", "two"]):
        run(world, data_dir, two_ways(*names))
        replayed(world, data_dir, two_ways(*names))
    assert ns(world, "one") == ns(world, "two") == list(range(ROWS))
    assert letters_in(data_dir) == []


def test_a_run_with_other_sinks_leaves_the_letters_of_those_that_are_away(world: Flawed, data_dir: Path) -> None:
    world.bad = {"a": {0, 1}}
    run(world, data_dir, two_ways("one", "two"))
    run(world, data_dir, two_ways("other"))
    world.bad = {}
    replayed(world, data_dir, two_ways("other"))
    run(world, data_dir, two_ways("one", "two"))
    replayed(world, data_dir, two_ways("one", "two", "other"))
    assert ns(world, "one") == ns(world, "two") == ns(world, "other") == list(range(ROWS))
    assert letters_in(data_dir) == []


@pytest.mark.parametrize("first", ["one", "two"])
def test_a_replay_that_was_killed_goes_on_for_each_sink_whichever_is_away(
    world: Flawed, data_dir: Path, first: str
) -> None:
    """One sink has some of the letters, the other none; what each has is told by the letters' numbers."""
    world.tables["t"] = numbered(40)
    world.bad = {"a": set(range(20))}
    run(world, data_dir, two_ways("one", "two"))
    world.bad = {"a": {3}}
    world.sink_faults = {("default/p", "two"): 0}
    replayed(world, data_dir, two_ways("one", "two"))
    replayed(world, data_dir, two_ways(first))
    run(world, data_dir, two_ways(first, "new"))
    world.bad = {}
    for names in ([first], ["one", "two", "new"], ["one", "two", "new"]):
        replayed(world, data_dir, two_ways(*names))
        run(world, data_dir, two_ways(*names))
    assert ns(world, "one") == ns(world, "two") == ns(world, "new") == list(range(40))
    assert letters_in(data_dir) == []


def test_what_was_mended_while_a_replay_lay_half_done_does_not_come_twice(world: Flawed, data_dir: Path) -> None:
    """A letter got further and failed there; the next replay sends it again, and this time it passes."""
    stages = [source(), transform("a", "fussy"), transform("b", "fussy"), sink("one"), sink("two", commit_batches=99)]
    pipe = pipeline(stages, [("in", "a"), ("a", "b"), ("b", "one"), ("b", "two")])
    world.bad = {"a": set(range(8))}
    run(world, data_dir, pipe)
    world.bad = {"b": {0, 1}}
    world.sink_faults = {("default/p", "two"): 0}
    replayed(world, data_dir, pipe)
    assert {stored.letter.key.stage for stored in letters_in(data_dir)} == {"a", "b"}
    world.bad = {}
    for _ in range(2):
        replayed(world, data_dir, pipe)
    assert ns(world, "one") == ns(world, "two") == list(range(ROWS))
    assert letters_in(data_dir) == []


def test_a_replay_goes_on_although_the_letter_a_sink_got_to_failed_again(
    world: Flawed, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last letter of a batch is the one that fails in it; one sink has committed that batch, the other not."""
    monkeypatch.setattr(lanes, "LETTERS_PER_BATCH", 50)
    world.tables["t"] = numbered(125)
    world.bad = {"in": set(range(60))}
    run(world, data_dir, forked())
    world.bad = {"a": {49}}
    world.sink_faults = {("default/p", "two"): 55}
    report = replayed(world, data_dir, forked())
    assert report is not None
    assert "disk full" in str(report.error)
    assert len(ns(world, "one")) > len(ns(world, "two"))
    world.bad = {}
    for _ in range(2):
        report = replayed(world, data_dir, forked())
        assert report is not None
        assert report.error is None
    assert ns(world, "one") == ns(world, "two") == list(range(125))
    assert letters_in(data_dir) == []


def test_letters_of_a_stage_that_is_gone_stay_also_when_they_were_queued(world: Flawed, data_dir: Path) -> None:
    sinks = [sink("one"), sink("two")]
    whole = pipeline(
        [source(), transform("a", "fussy"), transform("b", "fussy"), *sinks],
        [("in", "a"), ("a", "one"), ("in", "b"), ("b", "two")],
    )
    less = pipeline([source(), transform("b", "fussy"), *sinks], [("in", "one"), ("in", "b"), ("b", "two")])
    world.bad = {"a": {1, 2}, "b": {3, 4}}
    run(world, data_dir, whole)
    world.bad = {}
    world.sink_faults = {("default/p", "one"): 0}
    replayed(world, data_dir, whole, Selection(stage="a"))
    assert [stored.letter.key.stage for stored in letters_in(data_dir) if stored.state == "queued"] == ["a", "a"]
    report = replayed(world, data_dir, less)
    assert report is not None
    assert counts(report) == (2, 0, 0, 0)
    assert report.absent == {"stage a": 2}
    assert len(letters_in(data_dir)) == 2, "settling the others' numbers settled none of these"
    replayed(world, data_dir, whole)
    assert ns(world, "one") == ns(world, "two") == list(range(ROWS))


def test_sequence_numbers_are_above_what_fences_hold_although_the_letters_were_moved_away(
    world: Flawed, data_dir: Path
) -> None:
    world.bad = {"a": set(range(8))}
    run(world, data_dir, forked())
    world.bad = {}
    replayed(world, data_dir, forked())
    (data_dir / "dead-letters").rename(data_dir / "away")
    world.tables["t"] = numbered(ROWS + 4)
    world.bad = {"a": {ROWS, ROWS + 1}}
    run(world, data_dir, forked())
    world.bad = {}
    replayed(world, data_dir, forked())
    assert ns(world, "one") == ns(world, "two") == list(range(ROWS + 4))


def test_a_record_that_was_edited_into_several_or_none_is_refused(world: Flawed, data_dir: Path) -> None:
    world.bad = {"in": {1}}
    run(world, data_dir, forked())
    world.bad, empty = {}, b"[]"
    with opened(data_dir) as store:
        store.edit(1, raw=empty)
    report = replayed(world, data_dir, forked())
    assert report is not None
    assert counts(report) == (0, 1, 0, 0)
    (left,) = letters_in(data_dir)
    assert (left.letter.code, left.letter.raw) == ("MALFORMED_RECORD", empty)


def test_a_sink_that_never_comes_back_holds_up_nobody(world: Flawed, data_dir: Path) -> None:
    """Also where it has letters on their way, and others of that stage come later."""
    world.tables["t"] = numbered(12)
    world.bad = {"a": {0, 1}}
    run(world, data_dir, two_ways("one", "two"))
    world.bad = {}
    world.sink_faults = {("default/p", "two"): 0}
    replayed(world, data_dir, two_ways("one", "two"))
    world.tables["t"] = numbered(20)
    world.bad = {"a": {15}}
    world.sink_faults = {}
    run(world, data_dir, two_ways("one"))
    world.bad = {}
    report = replayed(world, data_dir, two_ways("one"))
    assert report is not None
    assert counts(report)[1:] == (0, 0, 0)
    assert report.absent == {"two": 2}
    assert ns(world, "one") == list(range(20))
    for _ in range(2):
        replayed(world, data_dir, two_ways("one", "two"))
        run(world, data_dir, two_ways("one", "two"))
    assert ns(world, "one") == ns(world, "two") == list(range(20))


def test_a_table_that_was_emptied_lets_its_letters_go_also_those_on_their_way(world: Flawed, data_dir: Path) -> None:
    world.bad = {"a": {0, 1, 2}}
    run(world, data_dir, two_ways("one", "two"))
    world.bad = {"a": {2}}
    world.sink_faults = {("default/p", "two"): 0}
    replayed(world, data_dir, two_ways("one", "two"))
    assert "queued" in {stored.state for stored in letters_in(data_dir)}
    world.sink_faults = {}
    del world.sinks["default/p", "two"]
    report = replayed(world, data_dir, two_ways("one", "two"))
    assert report is not None
    assert report.waiting >= 2, "the run reads their records again"
    world.bad = {}
    run(world, data_dir, two_ways("one", "two"))
    replayed(world, data_dir, two_ways("one", "two"))
    assert ns(world, "one") == ns(world, "two") == list(range(ROWS))
    assert letters_in(data_dir) == []


def test_what_failed_further_on_waits_for_the_letter_it_came_from(world: Flawed, data_dir: Path) -> None:
    """That one will be sent once more when its stage is back, and with it what it became."""
    stages, edges = [source(), transform("a", "fussy"), transform("b", "fussy"), sink("one")], ["in", "a", "b", "one"]
    whole = pipeline(stages, list(pairwise(edges)))
    less = pipeline([stages[0], *stages[2:]], [("in", "b"), ("b", "one")])
    world.bad = {"a": {0, 1}}
    run(world, data_dir, whole)
    world.bad = {"b": {0}}
    world.sink_faults = {("default/p", "one"): 0}
    replayed(world, data_dir, whole)
    assert {stored.letter.key.stage: stored.state for stored in letters_in(data_dir)} == {"a": "queued", "b": "dead"}
    world.bad, world.sink_faults = {}, {}
    report = replayed(world, data_dir, less)
    assert report is not None
    assert (counts(report), report.absent) == ((0, 0, 0, 0), {"stage a": 3})
    replayed(world, data_dir, whole)
    assert ns(world, "one") == list(range(ROWS))
    assert letters_in(data_dir) == []


def chain(*middle: str, sinks: tuple[str, ...] = ("one",)) -> Pipeline:
    """in -> a -> the middle, of which `r` is opaque -> b -> sinks."""
    stages = [source(), transform("a", "fussy"), *(transform(name, "reverse") for name in middle)]
    stages += [transform("b", "fussy"), *(sink(name) for name in sinks)]
    names = ["in", "a", *middle, "b"]
    return pipeline(stages, [*pairwise(names), *(("b", name) for name in sinks)])


@pytest.mark.parametrize("left", ["fussy", "split"])
@pytest.mark.parametrize("begun_by", ["run", "replay"])
def test_rows_of_a_record_that_meet_again_and_fail_then_are_letters_of_their_own(
    data_dir: Path, left: str, begun_by: str
) -> None:
    def diamond() -> Pipeline:
        stages = [source(), transform("a", "fussy"), transform("c", left), transform("e", "fussy")]
        stages += [transform("j", "fussy"), sink("one")]
        return pipeline(stages, [("in", "a"), ("a", "c"), ("a", "e"), ("c", "j"), ("e", "j"), ("j", "one")])

    reference = Flawed({"t": numbered(4)})
    run(reference, data_dir.parent / "reference", diamond())
    world = Flawed({"t": numbered(4)})
    world.bad = {"j" if begun_by == "run" else "a": {1}}
    run(world, data_dir, diamond())
    world.bad = {"j": {1}}
    replayed(world, data_dir, diamond())
    world.bad = {}
    replayed(world, data_dir, diamond())
    assert arrived(world) == arrived(reference)
    assert letters_in(data_dir) == []


def test_what_failed_behind_an_opaque_stage_is_forgotten_when_its_letters_are_sent_again(
    world: Flawed, data_dir: Path
) -> None:
    world.bad = {"a": {1, 2, 3}}
    run(world, data_dir, chain("r"))
    world.bad, world.sink_faults = {"b": {2}}, {("default/p", "one"): 0}
    replayed(world, data_dir, chain("r"))
    world.bad, world.sink_faults = {}, {}
    for _ in range(2):
        replayed(world, data_dir, chain("r"))
        run(world, data_dir, chain("r"))
    assert ns(world, "one") == list(range(ROWS))
    assert letters_in(data_dir) == []


def test_a_replay_that_meets_another_table_leaves_what_is_on_its_way_to_the_first(
    world: Flawed, data_dir: Path
) -> None:
    """The first replay is killed between the commit and the note of it; then the settings are wrong for once."""

    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    world.bad = {"a": {1, 2}}
    run(world, data_dir, chain())
    world.bad = {}
    world.watchers.append(kill)
    with pytest.raises(Killed):
        replayed(world, data_dir, chain())
    world.watchers.clear()
    table = world.sinks.pop(("default/p", "one"))
    report = replayed(world, data_dir, chain())
    assert report is not None
    assert counts(report) == (0, 0, 2, 0)
    world.sinks["default/p", "one"] = table
    replayed(world, data_dir, chain())
    assert ns(world, "one") == list(range(ROWS))
    assert letters_in(data_dir) == []


@pytest.mark.parametrize(
    ("stage", "mended"),
    [("in", "typed anew"), ("in", "restored"), ("in", "purged"), ("a", "restored"), ("a", "purged")],
)
def test_what_a_damaged_letter_became_waits_until_that_is_mended_or_purged(
    world: Flawed, data_dir: Path, stage: str, mended: str
) -> None:
    """It would come twice otherwise: with the letter too, once that can be sent again."""
    world.bad = {stage: {1}}
    run(world, data_dir, chain())
    world.bad, world.sink_faults = {"b": {1}}, {("default/p", "one"): -1}
    replayed(world, data_dir, chain())
    assert {stored.letter.key.stage: stored.state for stored in letters_in(data_dir)} == {stage: "queued", "b": "dead"}
    damaged = bytes_of(data_dir, lambda stored: stored.id == 1)
    flip(damaged)
    world.bad, world.sink_faults = {}, {}
    for _ in range(2):
        report = replayed(world, data_dir, chain())
        assert report is not None
        assert (counts(report), report.held_back) == ((0, 0, 0, 1), 1)
        assert ns(world, "one") == [0, *range(2, ROWS)]
    if mended == "restored":
        flip(damaged)
    with opened(data_dir) as store:
        if mended == "typed anew":
            store.edit(1, raw=raw_of(numbered(2)[1]))
        elif mended == "purged":
            store.purge(Selection(ids=(1,)))
    report = replayed(world, data_dir, chain())
    assert report is not None
    assert (counts(report), report.held_back) == ((1, 0, 0, 0), 0)
    assert ns(world, "one") == list(range(ROWS))
    assert letters_in(data_dir) == []


def test_a_sink_that_moved_away_from_behind_a_stage_is_named_with_it(world: Flawed, data_dir: Path) -> None:
    stages = [source(), transform("a", "fussy"), sink("one"), sink("two")]
    world.bad = {"a": {3}}
    run(world, data_dir, pipeline(stages, [("in", "a"), ("a", "one"), ("a", "two")]))
    world.bad = {}
    report = replayed(world, data_dir, pipeline(stages, [("in", "a"), ("a", "one"), ("in", "two")]))
    assert report is not None
    assert report.absent == {"two behind stage a": 1}


@pytest.mark.parametrize("begun_by", ["run", "replay"])
def test_rows_that_are_made_of_a_record_behind_a_place_where_its_ways_meet_are_letters_of_their_own(
    data_dir: Path, begun_by: str
) -> None:
    def diamond() -> Pipeline:
        stages = [source(), transform("a", "fussy"), transform("c", "passthrough"), transform("e", "passthrough")]
        stages += [transform("j", "split"), transform("b", "fussy"), sink("one")]
        edges = [("in", "a"), ("a", "c"), ("a", "e"), ("c", "j"), ("e", "j"), ("j", "b"), ("b", "one")]
        return pipeline(stages, edges)

    reference = Flawed({"t": numbered(4)})
    run(reference, data_dir.parent / "reference", diamond())
    world = Flawed({"t": numbered(4)})
    world.bad = {"b" if begun_by == "run" else "a": {1}}
    run(world, data_dir, diamond())
    world.bad = {"b": {1}}
    replayed(world, data_dir, diamond())
    assert len(letters_in(data_dir)) == 6
    world.bad = {}
    replayed(world, data_dir, diamond())
    assert arrived(world) == arrived(reference)
    assert letters_in(data_dir) == []


def test_a_sink_without_positions_loses_nothing_that_failed_in_an_earlier_replay(
    world: Flawed, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also behind a stage that does not tell its rows apart, where letters are known by their place in the replay."""
    opened_before = Keep.open

    async def opened_without_positions(self: Keep) -> None:
        self.world.kept(self.context.pipeline, self.context.stage).positions = Positions()
        await opened_before(self)

    monkeypatch.setattr(Keep, "open", opened_without_positions)
    world.bad = {"a": {1, 2, 3, 5, 6, 7}}
    run(world, data_dir, chain("r"))
    world.bad = {"b": {2, 6}}
    replayed(world, data_dir, chain("r"), Selection(ids=(1, 2, 3)))
    replayed(world, data_dir, chain("r"), Selection(ids=(4, 5, 6)))
    world.bad = {}
    replayed(world, data_dir, chain("r"))
    assert set(ns(world, "one")) == set(range(ROWS))


def test_rows_that_a_mistake_gave_one_key_all_arrive(
    world: Flawed, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing does so; should anything ever, no row may take the place of another."""
    made = StageLetters._draft

    def mistaken(self: StageLetters, pipeline: str, rejected: Rejected) -> Draft:
        draft = made(self, pipeline, rejected)
        key = draft.letter.key
        sent = key.part // PARTS_PER_LETTER
        return replace(draft, letter=replace(draft.letter, key=replace(key, part=sent * PARTS_PER_LETTER)))

    monkeypatch.setattr(StageLetters, "_draft", mistaken)
    stages = [source(), transform("a", "fussy"), transform("s", "split"), transform("b", "fussy"), sink("one")]
    pipe = pipeline(stages, list(pairwise(["in", "a", "s", "b", "one"])))
    world.bad = {"a": {1}, "b": {2}}
    with capture_logs() as logs:
        run(world, data_dir, pipe)
    assert [one["stages"] for one in logs if "cannot be told apart" in one["event"]] == [["b"]]
    world.bad = {"b": {1}}
    replayed(world, data_dir, pipe)
    world.bad = {}
    assert len(letters_in(data_dir)) == 3
    replayed(world, data_dir, pipe)
    assert arrived(world) == {"one": Counter((n, i) for n in range(ROWS) for i in range(PARTS))}

"""A pipeline that was renamed takes its letters along, wherever the run that adopts its positions is cut short."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio

from conveyord.core.errors import Refused
from conveyord.core.flow.positions import Positions
from conveyord.core.pipeline.graph import Pipeline
from conveyord.engine import local_run
from conveyord.engine.registry import Registry
from tests.engine.graph_rig import RigRegistry, letters_in, numbered, pipeline, source, stage, transform
from tests.engine.replay_rig import ROWS, Flawed, Picky, acted, counts, replayed, request_of, run

FORMER, NEW = "default/p", "default/renamed"
ALL = list(range(ROWS))


class Killed(BaseException):
    """As if the process ended there."""


@dataclass
class Renaming(Flawed):
    """A world whose sinks take over what they kept under a former name, and tell if they are such.

    killed: when the run ends there.
    """

    killed: str | None = None
    tells: bool = True

    def registry(self) -> Registry:
        rig = super().registry()
        assert isinstance(rig, RigRegistry)
        return RigRegistry(rig.by_name, {**rig.own, "sink.adopting": type("Adopting", (Adopting,), {"world": self})})


class Adopting(Picky):
    """As sinks do: refuses if there is nothing to take over, and goes on if that was done before."""

    world: ClassVar[Renaming]

    async def open(self) -> Positions:
        sinks, key = self.world.sinks, (self.context.pipeline, self.config.place)
        if self.world.killed == "before":
            raise Killed
        self.took_over = key not in sinks if self.world.tells else None
        if self.context.adopt_from is not None and key not in sinks:
            former = self.context.adopt_from, self.config.place
            if former not in sinks:
                raise Refused(f"{self.config.place} has nothing of {self.context.adopt_from}")
            sinks[key] = sinks.pop(former)
        if self.world.killed == "after":
            raise Killed
        return await super().open()


@pytest.fixture
def world() -> Renaming:
    return Renaming({"t": numbered(ROWS)})


def pipe(name: str, *places: str) -> Pipeline:
    sinks = [stage(place, "sink", "adopting", place=place) for place in places]
    stages = [source(), transform("a", "fussy"), *sinks]
    return pipeline(stages, [("in", "a"), *(("a", place) for place in places)], name=name)


def adopted(world: Renaming, data_dir: Path, pipe: Pipeline, *, former: str = FORMER) -> None:
    request = replace(request_of(world, (pipe,), data_dir), adopt_from=former)

    async def work(drain: trio.Event) -> Any:
        progress = local_run.progress_of(request, world.registry())
        return await local_run.run_pipelines(request, world.registry(), drain=drain, progress=progress)

    acted(world, work)


def ns(world: Renaming, name: str, place: str) -> list[int]:
    return sorted(row["n"] for row in world.kept(name, place).rows)


def owners(data_dir: Path) -> set[str]:
    return {stored.letter.key.pipeline for stored in letters_in(data_dir)}


@pytest.mark.parametrize("killed", ["before", "after"])
@pytest.mark.parametrize("again", [True, False], ids=["adopting again", "under the new name"])
def test_no_letter_stays_under_the_former_name_when_adopting_is_cut_short(
    world: Renaming, data_dir: Path, killed: str, again: bool
) -> None:
    """Killed before a sink has taken anything over, a run that does not adopt reads everything once more."""
    world.bad = {"a": {1, 5}}
    run(world, data_dir, pipe("p", "one"))
    world.killed = killed
    with pytest.raises(Killed):
        adopted(world, data_dir, pipe("renamed", "one"))
    world.killed = None
    if again:
        adopted(world, data_dir, pipe("renamed", "one"))
    else:
        run(world, data_dir, pipe("renamed", "one"))
    assert owners(data_dir) == {NEW}
    world.bad = {}
    replayed(world, data_dir, pipe("renamed", "one"))
    assert ns(world, NEW, "one") == ALL
    assert letters_in(data_dir) == []


def test_letters_of_a_name_that_no_sink_knows_stay_with_it(world: Renaming, data_dir: Path) -> None:
    world.bad = {"a": {1, 5}}
    run(world, data_dir, pipe("other", "two"))
    run(world, data_dir, pipe("p", "one"))
    with pytest.raises(Refused, match="one has nothing of default/other"):
        adopted(world, data_dir, pipe("renamed", "one"), former="default/other")
    assert owners(data_dir) == {"default/other", FORMER}
    adopted(world, data_dir, pipe("renamed", "one"))
    world.bad = {}
    replayed(world, data_dir, pipe("other", "two"))
    replayed(world, data_dir, pipe("renamed", "one"))
    assert ns(world, "default/other", "two") == ns(world, NEW, "one") == ALL


def test_letters_go_with_what_was_taken_over_although_a_new_sink_refuses(world: Renaming, data_dir: Path) -> None:
    world.bad = {"a": {1, 5}}
    run(world, data_dir, pipe("p", "one"))
    with pytest.raises(Refused, match="two has nothing of default/p"):
        adopted(world, data_dir, pipe("renamed", "one", "two"))
    world.bad = {}
    run(world, data_dir, pipe("renamed", "one", "two"))
    replayed(world, data_dir, pipe("renamed", "one", "two"))
    assert ns(world, NEW, "one") == ns(world, NEW, "two") == ALL
    assert letters_in(data_dir) == []


@pytest.mark.parametrize("places", [["two"], ["two", "three"]])
def test_letters_of_another_pipeline_are_left_to_it(world: Renaming, data_dir: Path, places: list[str]) -> None:
    """Every sink has positions under the pipeline's own name: that is no pipeline that was renamed."""
    world.bad = {"a": {1, 5}}
    run(world, data_dir, pipe("p", "one"))
    world.bad = {"a": {2}}
    run(world, data_dir, pipe("alive", *places))
    with pytest.raises(Refused, match=r"default/alive: every sink holds positions of its own, and none of default/p, "):
        adopted(world, data_dir, pipe("alive", *places))
    assert owners(data_dir) == {FORMER, "default/alive"}
    world.bad = {}
    replayed(world, data_dir, pipe("p", "one"))
    replayed(world, data_dir, pipe("alive", *places))
    assert ns(world, FORMER, "one") == ns(world, "default/alive", places[-1]) == ALL


def test_letters_stay_with_their_pipeline_if_one_sink_refuses_and_no_other_took_over(
    world: Renaming, data_dir: Path
) -> None:
    world.bad = {"a": {1, 5}}
    run(world, data_dir, pipe("p", "one"))
    world.bad = {"a": {2}}
    run(world, data_dir, pipe("alive", "two"))
    with pytest.raises(Refused, match="three has nothing of default/p"):
        adopted(world, data_dir, pipe("alive", "two", "three"))
    assert owners(data_dir) == {FORMER, "default/alive"}


def test_sinks_that_do_not_tell_are_believed(world: Renaming, data_dir: Path) -> None:
    world.bad, world.tells = {"a": {1, 5}}, False
    run(world, data_dir, pipe("p", "one"))
    world.bad = {}
    run(world, data_dir, pipe("renamed", "two"))
    adopted(world, data_dir, pipe("renamed", "two"))
    assert owners(data_dir) == {NEW}


PLACES = {
    "iceberg": ("table", "ns.{}"),
    "parquet_dir": ("path", "{home}/{}"),
    "file_jsonl": ("path", "{home}/{}.jsonl"),
}


@pytest.mark.parametrize("kind", PLACES)
def test_sinks_tell_whether_they_took_anything_over(world: Renaming, data_dir: Path, kind: str) -> None:
    def writing_to(place: str, name: str) -> Pipeline:
        option, pattern = PLACES[kind]
        out = stage("out", "sink", kind, **{option: pattern.format(place, home=data_dir.parent)})
        return pipeline([source(), transform("a", "fussy"), out], [("in", "a"), ("a", "out")], name=name)

    world.bad = {"a": {1, 5}}
    run(world, data_dir, writing_to("one", "p"))
    world.bad = {}
    run(world, data_dir, writing_to("two", "alive"))
    with pytest.raises(Refused, match="default/alive: every sink holds positions of its own, and none of default/p"):
        adopted(world, data_dir, writing_to("two", "alive"))
    assert owners(data_dir) == {FORMER}
    for _ in range(2):
        adopted(world, data_dir, writing_to("one", "renamed"))
        assert owners(data_dir) == {NEW}
    report = replayed(world, data_dir, writing_to("one", "renamed"))
    assert report is not None
    assert counts(report) == (2, 0, 0, 0)

"""Runs tests one after the other, each in a directory of its own that is gone afterwards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import trio

from conveyord.core.errors import ConveyordError
from conveyord.core.pipeline.checks import DEAD_LETTERS
from conveyord.core.pipeline.graph import Pipeline, PipelineTest
from conveyord.core.pipeline.trial import Trial, trial_of
from conveyord.core.units import counted
from conveyord.engine.dead_lettering import row_of
from conveyord.engine.graph import run_graph
from conveyord.engine.plan import RunSettings
from conveyord.engine.preparation import Limits, Prepared, prepare
from conveyord.engine.registry import Registry
from conveyord.engine.summary import RunProgress
from conveyord.engine.testing.comparing import Row, compared, compared_letters
from conveyord.engine.testing.operators import PARTITION, CollectedRows, with_test_ends
from conveyord.engine.testing.values import json_rows, types_of
from conveyord.engine.testing.verdicts import OutputVerdict, Verdict
from conveyord.storage.dead_letters.letters import Selection, StoredLetter

TEST_SECONDS_MAX = 60.0  # a test takes milliseconds; one that hangs must not hang a build
CHANNEL_CAPACITY = 8
_LIMITS = Limits(dead_letter_bytes=1024**3, dead_letter_seconds=None, spill_bytes=0)  # nothing spills in a test

_PLACE = re.compile(rf"\b{PARTITION} rows \d+ to \d+: ")
"""Where a batch stands in its source: of no use in a test, whose rows are all one batch."""


async def run_tests(
    tests: Sequence[tuple[Pipeline, PipelineTest]], registry: Registry, *, threads: int
) -> list[Verdict]:
    """Run tests with the pipelines they belong to. `threads` bounds CPU-bound work.

    Whatever a pipeline cannot do with the given rows is a failed test; a bug in an operator is raised.
    """
    limiter, ends, verdicts = trio.CapacityLimiter(threads), with_test_ends(registry), []
    for pipeline, test in tests:
        with TemporaryDirectory(prefix="conveyord-test-") as directory:
            verdicts.append(await _run(pipeline, test, ends, RunSettings(Path(directory), limiter)))
    return verdicts


@dataclass(frozen=True, slots=True)
class _Failed:
    """Why a test came to no comparison."""

    message: str
    code: str


async def _run(pipeline: Pipeline, test: PipelineTest, registry: Registry, settings: RunSettings) -> Verdict:
    started = trio.current_time()
    outputs: tuple[OutputVerdict, ...] = ()
    failed: _Failed | None = _Failed(f"it did not end within {TEST_SECONDS_MAX:.0f} s", "TIMEOUT")
    with trio.move_on_after(TEST_SECONDS_MAX):
        try:
            outputs, failed = await _outcome(trial_of(pipeline, test), test, registry, settings)
        except ConveyordError as error:
            failed = _Failed(str(error), error.code)
    seconds = trio.current_time() - started
    if failed is None:
        return Verdict(pipeline.identity, test.name, outputs, seconds)
    return Verdict(pipeline.identity, test.name, outputs, seconds, failed.message, failed.code)


async def _outcome(
    trial: Trial, test: PipelineTest, registry: Registry, settings: RunSettings
) -> tuple[tuple[OutputVerdict, ...], _Failed | None]:
    """The rows of every output that is expected, or why there are none."""
    identity = trial.pipeline.identity
    progress = {identity: RunProgress(pipeline=identity, delivery="at-least-once")}
    letters: list[StoredLetter] = []
    async with AsyncExitStack() as stack:
        prepared = await prepare([trial.pipeline], registry, settings, _LIMITS, progress, stack)
        failures = await run_graph(
            prepared.graph, channel_capacity=CHANNEL_CAPACITY, threads=settings.threads, drain=trio.Event()
        )
        if failures.all:
            first = failures.all[0]
            return (), _Failed(f"stage {first.stage}: {_PLACE.sub('', str(first.error))}", first.error.code)
        if prepared.box is not None:
            letters = list(prepared.box.store.select(Selection(pipeline=identity)))
    outputs = [_collected(key, trial, test, prepared) for key in trial.collectors]
    if trial.dead_letters is not None:
        outputs.append(compared_letters(trial.dead_letters, test.expect[trial.dead_letters], _letter_rows(letters)))
    elif letters:
        outputs.append(compared_letters(DEAD_LETTERS, (), _letter_rows(letters)))
    return tuple(outputs), None


def _collected(key: str, trial: Trial, test: PipelineTest, prepared: Prepared) -> OutputVerdict:
    """What came of one output. Rows of several sources stand in the order of the sources."""
    plan, identity = prepared.assembly.plan, trial.pipeline.identity
    number = plan.node_of(identity, trial.collectors[key]).number
    collector = prepared.assembly.operators[number]
    assert isinstance(collector, CollectedRows)
    order = {stage.name: place for place, stage in enumerate(trial.pipeline.stages)}
    got = [
        Row(row, types_of(data.schema))
        for _, data in sorted(collector.batches, key=lambda batch: order[batch[0]])
        for row in json_rows(data)
    ]
    verdict = compared(key, test.expect[key], got)
    if verdict.passed:
        return verdict
    notes = ["no given row can come here"] if key in trial.unreached else _removed(prepared, number)
    return replace(verdict, notes=tuple(notes))


def _removed(prepared: Prepared, number: int) -> list[str]:
    """Where rows went that did not come to a node."""
    plan, above = prepared.assembly.plan, {number}
    for node in reversed(plan.nodes):
        if any(edge.target in above for edge in plan.edges_from(node.number)):
            above.add(node.number)
    return [
        f"{node.operator.context.stage!r} let {counted(rows, 'row')} go no further"
        for node in prepared.graph.nodes
        if node.number in above and (rows := node.removed.of(plan.pipelines[0])) > 0
    ]


def _letter_rows(letters: Sequence[StoredLetter]) -> list[Row]:
    """Dead letters as a test sees them, by the record they stand for."""
    rows = []
    for stored in sorted(letters, key=lambda stored: (stored.letter.key.partition, stored.letter.key.offset)):
        letter = stored.letter
        values: dict[str, Any] = {
            "stage": letter.key.stage,
            "code": letter.code,
            "message": letter.message,
        }
        types = {"stage": pa.string(), "code": pa.string(), "message": pa.string()}
        if letter.row is not None:
            row = row_of(letter.row)
            values["row"], types["row"] = json_rows(row)[0], pa.struct(list(row.schema))
        values["attempts"], types["attempts"] = letter.attempts, pa.int64()
        rows.append(Row(values, types))
    return rows

"""What a message or the reference counts is called by its name: rows are no bytes, a duration is no number."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from conveyord.core.units import Bytes, Seconds
from conveyord.engine.contracts import OperatorConfig
from conveyord.engine.reference import options_of
from tests.engine.graph_rig import World, line, run_now, sink, stage, transform


@pytest.mark.parametrize(
    ("source", "place"),
    [
        (stage("in", "source", "generate", rows=3, columns={"v": {"type": "row_number"}}), "0 rows 0 to 3: "),
        (stage("in", "source", "file_jsonl", path="in.jsonl"), "in.jsonl bytes 0 to 9: "),
    ],
)
def test_a_batch_is_placed_in_the_unit_of_its_source(
    source: object, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_bytes(b'{"v": 0}\n')
    made = line(source, transform("f", "filter", when="1 / v > 0"), sink(), dlq=None)  # type: ignore[arg-type]
    ((_, message),) = run_now(World(), made, tmp_path).failed()
    assert place in message


class _Options(OperatorConfig):
    a: Seconds | None = Field(default=None)
    b: Bytes | None = Field(default=1024, ge=1)
    c: Seconds = 60.0
    d: int | None = None


def test_an_option_that_may_be_left_out_keeps_its_unit() -> None:
    found = {option.key: (option.type, option.default) for option in options_of(_Options)}
    assert found == {"a": ("duration", None), "b": ("size", "1KiB"), "c": ("duration", "60s"), "d": ("integer", None)}

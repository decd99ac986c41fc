"""Refused definitions: every refusal says where, what, and what to do about it.

They are kept as files: tests/data/errors/NAME.yaml, or the files in the directory NAME, must give exactly
NAME.txt. After a change of words run `REWRITE=1 pytest tests/engine/test_definitions_refused.py` and read the
difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conveyord.engine.definitions import parse_pipelines
from conveyord.engine.problems import DefinitionError
from conveyord.engine.registry import Registry
from tests.engine.definition_samples import ENVIRON, ERRORS, files_of, sample_registry

CASES = sorted({path.with_suffix(".txt") for path in ERRORS.iterdir() if path.suffix == ".yaml" or path.is_dir()})


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.syspath_prepend(str(ERRORS))
    return sample_registry()


@pytest.mark.parametrize("case", [case for case in CASES if "__" not in case.name], ids=lambda path: path.stem)
def test_a_wrong_definition_is_refused_with_the_agreed_words(case: Path, registry: Registry) -> None:
    with pytest.raises(DefinitionError) as refused:
        parse_pipelines(files_of(case), registry=registry, environ=ENVIRON)
    told = str(refused.value) + "\n"
    if os.environ.get("REWRITE"):
        case.write_text(told, encoding="utf-8")
    assert told == case.read_text(encoding="utf-8")


def test_every_kept_message_belongs_to_a_definition() -> None:
    assert sorted(ERRORS.glob("*.txt")) == [case for case in CASES if "__" not in case.name]

"""docs/raft.md names a test for every claim that it makes: here is looked whether there is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TEXT = (HERE.parents[2] / "docs" / "raft.md").read_text()
TESTS = {
    name for path in HERE.glob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
}
TRANSCRIPTS = {path.name for path in (HERE / "transcripts").glob("*.txt")}
CLAIMS_MIN = 60


def rows(text: str) -> list[list[str]]:
    """The rows of the tables whose last column says what shows it."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for table in re.findall(r"^\|[^\n]*shown by \|\n\|[-|]+\|\n((?:\|.*\n?)+)", text, re.MULTILINE)
        for line in table.splitlines()
    ]


def missing(text: str) -> list[str]:
    """Claims that name no test, or one that there is not."""
    found = []
    for where, claim, shown in rows(text):
        names = re.findall(r"`([^`]+)`", shown)
        lacks = [name for name in names if name not in TESTS | TRANSCRIPTS]
        if lacks or not names:
            found.append(f"{where}, {claim}: {' '.join(lacks) or 'no test'}")
    return found


def test_every_claim_names_tests_that_there_are() -> None:
    assert missing(TEXT) == []
    assert len(rows(TEXT)) >= CLAIMS_MIN


@pytest.mark.parametrize("shown", ["`test_nobody_wrote`", "`nowhere.txt`", "it is obvious"])
def test_a_claim_without_a_test_is_found(shown: str) -> None:
    assert len(missing(f"| where | claim | shown by |\n|---|---|---|\n| paper 1 | all is well | {shown} |\n")) == 1


@pytest.mark.parametrize("name", sorted(TRANSCRIPTS))
def test_every_transcript_has_its_place_in_the_docs(name: str) -> None:
    assert f"`{name}`" in TEXT

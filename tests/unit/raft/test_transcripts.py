"""Transcripts: what a cluster does, step by step, to be read and to be kept (in the manner of etcd's datadriven files).

A file of transcripts/ is a row of blocks: comments, commands, `----`, what they led to, an empty line. The commands are
those of `script.Script`, the words those of `telling`. Every block is compared; after a change that is meant,

    REWRITE_TRANSCRIPTS=1 python -m pytest -n 0 tests/unit/raft/test_transcripts.py

writes them anew, and the difference is what the change does.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import pytest

from tests.unit.raft.script import Script

FOLDER = Path(__file__).parent / "transcripts"
RULE = "----"
NOTHING = "(nothing)"


def told(text: str) -> str:
    """A transcript with the output that its commands have now."""
    script, found = Script(), list[str]()
    for block in text.split("\n\n"):
        head = block.strip("\n").split(f"\n{RULE}")[0].splitlines()
        commands = [line for line in head if line and not line.startswith("#")]
        said = [line for command in commands for line in script.run(command)]
        found.append("\n".join([*head, RULE, *(said or [NOTHING])] if commands else head))
    return "\n\n".join(found) + "\n"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_a_cluster_does_what_is_written(path: Path) -> None:
    text = path.read_text()
    now = told(text)
    if "REWRITE_TRANSCRIPTS" in os.environ:
        path.write_text(now)
    elif now != text:
        lines = difflib.unified_diff(text.splitlines(), now.splitlines(), "written", "now", lineterm="", n=2)
        pytest.fail("\n".join([f"{path.name} (REWRITE_TRANSCRIPTS=1 writes it anew):", *lines]), pytrace=False)


def test_a_transcript_that_is_not_true_is_found() -> None:
    true = told("nodes a\n\npropose a x")
    assert told(true) == true
    assert "dropped (this node does not lead)" in true
    assert told(true.replace("dropped", "accepted")) == true

"""docs/operators.md is what the operators say of themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conveyord.engine.reference import reference_of
from conveyord.engine.registry import installed

GENERATE = Path(__file__).resolve().parents[2] / "docs" / "generate.py"


def test_the_operator_reference_is_up_to_date() -> None:
    subprocess.run([sys.executable, str(GENERATE), "--check"], check=True, timeout=60)


def test_an_option_that_another_may_stand_for_is_not_called_required_whatever_else_there_is() -> None:
    columns = {option.key: option for option in reference_of(installed(), "transform", "validate").options}["columns"]
    assert (columns.required, columns.instead) == (True, ("schema", "schema_file"))
    assert columns.as_json()["instead"] == ["schema", "schema_file"]
    assert "| `columns` | map of text to map | required unless there is `schema` or `schema_file` |" in (
        GENERATE.with_name("operators.md").read_text()
    )

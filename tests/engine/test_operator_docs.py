"""docs/operators.md is what the operators say of themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

GENERATE = Path(__file__).resolve().parents[2] / "docs" / "generate.py"


def test_the_operator_reference_is_up_to_date() -> None:
    subprocess.run([sys.executable, str(GENERATE), "--check"], check=True, timeout=60)

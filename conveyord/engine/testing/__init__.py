"""Runs the `tests:` of pipelines with the real runner, on rows of their own. Nothing outside is touched."""

from __future__ import annotations

from conveyord.engine.testing.running import run_tests
from conveyord.engine.testing.verdicts import Difference, OutputVerdict, Verdict

__all__ = ["Difference", "OutputVerdict", "Verdict", "run_tests"]

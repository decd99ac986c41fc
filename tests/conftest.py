"""Shared by every test: Hypothesis profiles and a place to write to.

Profiles: `dev` by default, `ci` in .ci/run (repeatable: the examples follow from the test alone), `soak`
for hours. Choose one with HYPOTHESIS_PROFILE.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

# A busy two-core machine stalls for seconds at times; time is no verdict in these tests.
_SLOW = [HealthCheck.too_slow]

settings.register_profile("dev", max_examples=50, deadline=None, suppress_health_check=_SLOW)
settings.register_profile(
    "ci", max_examples=50, deadline=None, derandomize=True, print_blob=True, suppress_health_check=_SLOW
)
settings.register_profile(
    "soak", max_examples=5_000, stateful_step_count=200, deadline=None, suppress_health_check=_SLOW
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what was not run, by reason: pytest folds it to places in files, which do not tell parameters apart."""
    names: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", ()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        names.setdefault(reason, []).append(report.nodeid)
    for reason, skipped in sorted(names.items()):
        terminalreporter.section(f"not run: {reason.removeprefix('Skipped: ')}")
        for name in sorted(skipped):
            terminalreporter.line(name)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """An empty data directory of its own, as `--data-dir` takes it."""
    path = tmp_path / "data"
    path.mkdir()
    return path


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """A verb that is run in this process sets up logging; the next test looks at what it finds."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def unclosed_files() -> Iterator[None]:
    """For a test whose process dies in simulation: its open files are let go of here, or a later test is blamed."""
    yield
    gc.collect()

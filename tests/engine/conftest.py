"""Shared by the engine's tests: a clock for what waits and works in threads by turns."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from tests.engine.graph_rig import fast_clock


@pytest.fixture
def hasty_clock() -> MockClock:
    return fast_clock()

"""Seeds that found something once: they are lived through for ever. A seed lives another life whenever the core or the
rig changes, so each find has a test of its own in tests/unit/raft as well: test_leaving, test_reordering and others.
"""

from __future__ import annotations

from tests.sim.run import Life

REGRESSIONS: tuple[tuple[Life, str], ...] = (
    (Life(70), "a candidate whose disk had gone sick won its election, and led on"),
)

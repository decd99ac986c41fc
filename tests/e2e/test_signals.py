"""The three signals of a run, on a process of its own whose thread cannot be interrupted."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from tests.e2e.harness import Running

COMPUTING = """
import threading, sys, trio
from conveyord.cli.logs import configure_logs
from conveyord.cli.run_shell import SIGNALS
from conveyord.runtime.signals import under_signals

def compute():  # as a long query of DataFusion's does: nothing but the end of the process ends it
    print("computing", file=sys.stderr, flush=True)
    threading.Event().wait()

async def work(drain):
    await trio.to_thread.run_sync(compute)

configure_logs(level="info", form="text")
trio.run(under_signals, work, SIGNALS)
"""


def test_the_third_signal_leaves_at_once_whatever_a_thread_computes(tmp_path: Path) -> None:
    running = Running([sys.executable, "-c", COMPUTING], tmp_path)
    assert running.saw("computing")
    running.send(signal.SIGTERM)
    assert running.saw("draining")
    running.send(signal.SIGTERM)
    assert running.saw("stopping at once")
    running.send(signal.SIGTERM)
    assert running.wait().code == 128 + signal.SIGTERM

"""The node for Maelstrom under its contract: linearizable while it is cut off, killed and started again."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.maelstrom.workbench import CALL_SECONDS, Workbench, workbench
from tests.sim.linear import NEVER, is_linearizable

NAMES = ["n0", "n1", "n2"]
KEYS = 3
CLIENTS = 6
WAIT_SECONDS = 30.0


async def served(bench: Workbench) -> None:
    """Every node answers a write."""
    with trio.fail_after(WAIT_SECONDS):
        for name in bench.names:
            answer = None
            while answer is None or answer["type"] != "write_ok":
                answer = await bench.ask("c99", name, {"type": "write", "key": 99, "value": 1}, CALL_SECONDS)


async def trouble(bench: Workbench, until: float) -> None:
    """Partitions as Maelstrom's nemesis makes them, and kills, which it does not."""
    random = bench.random
    while trio.current_time() < until:
        await trio.sleep(random.uniform(0.5, 1.5))
        alone = random.choice(bench.names)
        if random.random() < 0.4:
            await bench.kill(alone)
            await trio.sleep(random.uniform(0, 1.0))
            await bench.start(alone)
        else:
            bench.cuts |= {pair for other in NAMES for pair in ((alone, other), (other, alone))}
            await trio.sleep(random.uniform(0.5, 3.0))
            bench.cuts.clear()
    bench.cuts.clear()


async def test_a_node_keeps_the_contract(tmp_path: Path) -> None:
    async with workbench(tmp_path, ["n0"], 1) as bench:
        await served(bench)
        answers = [
            await bench.ask("c1", "n0", body, CALL_SECONDS)
            for body in (
                {"type": "read", "key": 1},
                {"type": "cas", "key": 1, "from": 1, "to": 2},
                {"type": "write", "key": 1, "value": 3},
                {"type": "cas", "key": 1, "from": 1, "to": 2},
                {"type": "cas", "key": 1, "from": 3, "to": 4},
                {"type": "read", "key": 1},
                {"type": "read", "key": "1"},
                {"type": "frob"},
                {"type": "read"},
            )
        ]
    said = [(answer["type"], answer.get("code"), answer.get("value")) for answer in answers if answer is not None]
    assert said == [
        ("error", 20, None),
        ("error", 20, None),
        ("write_ok", None, None),
        ("error", 22, None),
        ("cas_ok", None, None),
        ("read_ok", None, 4),
        ("error", 20, None),
        ("error", 10, None),
        ("error", 12, None),
    ]


@pytest.mark.parametrize(
    ("seed", "seconds"),
    [
        (1, 3.0),
        *(pytest.param(seed, 20.0, marks=pytest.mark.check) for seed in (2, 3)),
        *(pytest.param(seed, 300.0, marks=[pytest.mark.soak, pytest.mark.timeout(600)]) for seed in (4, 5)),
    ],
)
async def test_histories_are_linearizable(tmp_path: Path, seed: int, seconds: float) -> None:
    async with workbench(tmp_path, NAMES, seed) as bench:
        await served(bench)
        until = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:
            for number in range(1, CLIENTS + 1):
                nursery.start_soon(bench.client, number, until, KEYS)
            nursery.start_soon(trouble, bench, until)
        await served(bench)
    for key in range(KEYS):
        history = bench.of(key)
        known = [op for op in history if op.returned != NEVER]
        assert len(known) > 3 * seconds / KEYS, f"seed {seed}: {len(known)} of {len(history)} operations were answered"
        assert is_linearizable(history), f"seed {seed}, key {key}: {history}"


async def test_what_was_written_is_there_after_all_nodes_were_killed(tmp_path: Path) -> None:
    async with workbench(tmp_path, NAMES, 1) as bench:
        await served(bench)
        for name in NAMES:
            await bench.kill(name)
        for name in NAMES:
            await bench.start(name)
        answer = None
        with trio.fail_after(WAIT_SECONDS):
            while answer is None or answer["type"] == "error":
                answer = await bench.ask("c1", "n1", {"type": "read", "key": 99}, CALL_SECONDS)
    assert answer["value"] == 1

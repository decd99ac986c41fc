"""What an idle node has imported, how much memory it takes, and how soon `conveyord dev` is ready."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.e2e.daemon.node_rig import NodeProcess, end, start
from tests.e2e.harness import Running

# What an idle router needs beside the standard library. pyarrow, pyiceberg, datafusion and confluent_kafka, which take
# seconds and hundreds of megabytes, are not among it, nor is anything that only some node or some request needs.
LIGHT = {
    *(
        "apsw",
        "click",
        "conveyord",
        "h11",
        "msgpack",
        "msgspec",
        "orjson",
        "prometheus_client",
        "pydantic",
        "structlog",
        "trio",
    ),
    *("numpy", "rich", "sqlite_utils", "zstandard"),  # numpy: sqlite_utils takes it if it is there, and rich structlog
    *("annotated_types", "attr", "attrs", "idna", "outcome", "pydantic_core", "sniffio", "sortedcontainers"),
    *("dateutil", "pluggy", "pygments", "six", "sqlite_fts4", "typing_extensions", "typing_inspection"),
}
ROUTER_BYTES_MAX = 110_000_000
IMPORTED = """
import sys
from conveyord.daemon import announcing
from conveyord.__main__ import main
told = announcing.Announcing._wait_answer
async def wait_answer(self):
    await told(self)
    print(*sorted({name.partition(".")[0] for name in sys.modules}), flush=True)
announcing.Announcing._wait_answer = wait_answer
main()
"""


def test_an_idle_router_has_imported_nothing_heavy(tmp_path: Path) -> None:
    arguments = ["start", "--rpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log-format", "json"]
    node = NodeProcess(Running([sys.executable, "-c", IMPORTED, *arguments], tmp_path))
    try:
        node.answers()
        out = Path(f"/proc/{node.running.pid}/fd/1")
        assert node.running.until(lambda: "trio" in out.read_text())
        imported = set(out.read_text().split())
    finally:
        end(node)
    beside = {name for name in imported - sys.stdlib_module_names if not name.startswith(("_", "cython"))}
    assert beside <= LIGHT, sorted(beside - LIGHT)


@pytest.mark.check
def test_an_idle_router_is_small(tmp_path: Path) -> None:
    node = start(tmp_path, is_new=True)
    try:
        node.answers()
        status = Path(f"/proc/{node.running.pid}/status").read_text()
    finally:
        end(node)
    resident = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert resident is not None
    assert int(resident[1]) * 1024 < ROUTER_BYTES_MAX

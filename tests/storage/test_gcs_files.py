"""Files in Google Cloud Storage: the process goes on while the store is waited for."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from conveyord.storage.lake.fileio import DurableFileIO, GcsFile, names_in
from tests.storage.faulty_proxy import faulty
from tests.storage.object_stores import Server, running

pytestmark = pytest.mark.check


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running("gcs", tmp_path_factory.mktemp("store")) as found:
        yield found


def test_metadata_is_read_through_a_store_that_needs_this_very_process_to_answer(server: Server) -> None:
    """The proxy's threads live here: if a read held the global lock, neither would ever go on."""
    with faulty(server) as store:
        io = DurableFileIO(store.properties())
        for name in ("a.metadata.json", "b.avro", "fence.jsonl"):
            location = f"gs://lake/metadata/{name}"
            with io.new_output(location).create() as stream:
                stream.write(b"some bytes")
            with io.new_input(location).open() as found:
                assert found.read() == b"some bytes"
                found.seek(5)
                assert found.read() == b"bytes"
    assert threading.active_count() < 20
    assert isinstance(io.new_input(location), GcsFile)
    assert sorted(names_in(io, "gs://lake/metadata/")) == ["a.metadata.json", "b.avro", "fence.jsonl"]
    assert names_in(io, "gs://lake/nothing/") == []


STUCK = """
import faulthandler, sys
from tests.storage.faulty_proxy import faulty
from tests.storage.object_stores import Server
from pyiceberg.io.pyarrow import PyArrowFileIO
faulthandler.dump_traceback_later(5, exit=True)
server = Server("gcs", int(sys.argv[1]))
with faulty(server) as store:
    io = PyArrowFileIO(store.properties())
    with io.new_output("gs://lake/trap.json").create() as stream:
        stream.write(b"bytes")
    with io.new_input("gs://lake/trap.json").open() as found:
        found.read()
print("read")
"""


def test_pyarrow_still_holds_the_lock_and_needs_the_class_of_ours(server: Server) -> None:
    """If this fails, pyarrow was mended and `GcsFile` can go."""
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", STUCK, str(server.port)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "read" not in ended.stdout
    assert "Timeout" in ended.stderr

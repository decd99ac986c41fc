"""`founding.json`: what a node has promised on its way into a cluster, and who the founders are from then on."""

from __future__ import annotations

from pathlib import Path

import msgspec

from conveyord.core.errors import Corrupt
from conveyord.core.planning.founding import Promises
from conveyord.storage.disk import write_file

FILE = "founding.json"


def load_promises(data_dir: Path) -> Promises:
    """What was kept. Blocking; raises Corrupt for what is not what was written."""
    path = data_dir / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Promises)
    except FileNotFoundError:
        return Promises()
    except msgspec.MsgspecError as error:
        raise Corrupt(
            f"{path} is not what was written ({error}); start this node anew on an empty data directory"
        ) from error


def keep_promises(data_dir: Path, promises: Promises) -> None:
    """Put it on disk. Blocking; raises OSError."""
    write_file(data_dir / FILE, msgspec.json.encode(promises) + b"\n")

"""`restored.json`: word from a restore or a recovery to the first leader that follows it (docs/backup.md)."""

from __future__ import annotations

from pathlib import Path

import msgspec

from conveyord.core.errors import Corrupt
from conveyord.storage.disk import sync_directory

FILE = "restored.json"


def load_restored(data_dir: Path) -> str | None:
    """The history that the cluster is to have from now on; None if there is no word. Blocking; raises Corrupt."""
    path = data_dir / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])["history"]
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, KeyError) as error:
        raise Corrupt(f"{path} is not what was written ({error}); run the restore again") from error


def forget_restored(data_dir: Path) -> None:
    """It was done. Blocking; raises OSError."""
    (data_dir / FILE).unlink(missing_ok=True)
    sync_directory(data_dir)

"""Where the queue of an edge lies: `<data-dir>/spill/<pipeline>/<edge>/`, both escaped into one safe name each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

SPILL_DIRECTORY = "spill"
NAME_BYTES_MAX = 200  # file systems end at 255; longer names are cut and told apart by a digest


def queue_directory(data_dir: Path, *, pipeline: str, edge: str) -> Path:
    """The directory of one queue. Different names never share one. Does not create it."""
    return data_dir / SPILL_DIRECTORY / escaped(pipeline) / escaped(edge)


def escaped(name: str) -> str:
    """`name` as one path component, with percent escapes; itself where it is plain."""
    text = quote(name, safe=" >+,=@").replace("~", "%7E") or "%"
    if text.startswith("."):
        text = "%2E" + text[1:]
    if len(text) <= NAME_BYTES_MAX:
        return text
    return f"{text[:NAME_BYTES_MAX]}~{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:16]}"


def shown(component: str) -> str:
    """The name that `component` stands for; a name that was cut is shown as it lies there."""
    return component if "~" in component else unquote(component)


def queues_in(data_dir: Path) -> Iterator[tuple[str, str, Path]]:
    """Blocking. (pipeline, edge, directory) of every queue below `data_dir`, sorted."""
    for pipeline in _folders(data_dir / SPILL_DIRECTORY):
        for edge in _folders(pipeline):
            yield shown(pipeline.name), shown(edge.name), edge


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []

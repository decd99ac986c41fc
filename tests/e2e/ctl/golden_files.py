"""What verbs print, as files: told apart from them, and written anew with CONVEYORD_GOLDEN=write."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from difflib import unified_diff
from pathlib import Path

from tests.e2e.ctl.calling import Said

HOME = Path(__file__).with_name("golden")
WRITE = os.environ.get("CONVEYORD_GOLDEN") == "write"

# What differs from run to run. Ports have five digits and ids twelve, so that columns stay where they are.
_SAME: tuple[tuple[str, str], ...] = (
    (r"(?<=127\.0\.0\.1:)\d{5}\b", "#####"),
    (r"\bc-[0-9a-f]{12}\b", "c-############"),
    (r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "YYYY-MM-DDTHH:MM:SSZ"),
    (r'("?\w*at_ms"?: ?)\d+', r"\1MS"),
    (r'("?(?:uptime|heard)_seconds"?: ?)[\d.e-]+', r"\1SECONDS"),
    (r"\bcvd_[0-9a-f]{12}_[\w-]{43}", "TOKEN"),
    (r"(?<=token )[0-9a-f]{12}\b", "############"),
    (r"(\"?changed\"?: ?)\d\b", r"\1#"),  # of a member, which says when it has started how it is, in any order
    (r"(Z +)\d( +)", r"\1#\2"),
    (r"\b\d{8}T\d{9}Z-\d{12}-[0-9a-f]{6}\b", "YYYYMMDDTHHMMSSSSSZ-############-######"),
    (r"\b\d+\.\d\d KiB", "#.## KiB"),
    (r", [\d.]+ KiB unpacked", ", ### KiB unpacked"),
    (r"(?<=chain: )'?[0-9a-f]{16}\b'?|(?<=chain\":\")[0-9a-f]{16}\b", "CHAIN"),
    (r"\b[0-9a-f]{64}\b", "DIGEST"),
    (r"\b\d+\.\ds ago", "#.#s ago"),
)
_AGE = re.compile(r"\b\d{2}[smhd]\b|\b\d[smhd]\b ?(?=\s|,|$)", re.MULTILINE)


def as_text(arguments: Sequence[object], said: Said) -> str:
    """A call and what it said."""
    parts = [f"$ conveyorctl {' '.join(map(str, arguments))}\n", said.out.decode()]
    if said.err:
        parts.append(f"--- stderr\n{said.err}")
    parts.append(f"--- exit {said.code}\n")
    return "".join(part if part.endswith("\n") or not part else f"{part}\n" for part in parts)


def same(text: str, names: dict[str, str] | None = None, *, ages: bool = False) -> str:
    """`text` without what differs from run to run. names: texts of this run, and what stands for each.

    ages: spans of time differ, too.
    """
    for found, shown in sorted((names or {}).items(), key=lambda pair: -len(pair[0])):
        text = text.replace(found, shown)
    for pattern, shown in _SAME:
        text = re.sub(pattern, shown, text, flags=re.MULTILINE)
    text = _AGE.sub("#s ", text) if ages else text
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def check(name: str, text: str) -> None:
    """Compare with the file of that name, or write it."""
    path = HOME / f"{name}.txt"
    if WRITE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    assert path.exists(), f"there is no {path}; CONVEYORD_GOLDEN=write makes it"
    expected = path.read_text(encoding="utf-8")
    difference = "".join(unified_diff(expected.splitlines(True), text.splitlines(True), "file", "now"))
    assert text == expected, f"{path} says otherwise; CONVEYORD_GOLDEN=write writes it anew:\n{difference}"

"""What a look at one thing gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "info", "warning", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    """check: the thing that was looked at. found: a sentence. remedy: what to do, if something is to be done.

    verdict: `info` tells without judging, `warning` may do harm later, and with `wrong` a node cannot work.
    """

    check: str
    verdict: Verdict
    found: str
    remedy: str = ""

"""What became of a command: the same bytes at every replica, so no text of a library, a locale or a clock is in it."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

CONFLICT = "CONFLICT"
"""The object is not at the index that was expected, or it is another's. Read it again and decide anew."""
DUPLICATE_NODE = "DUPLICATE_NODE"
"""Two nodes run under one id."""
EXISTS = "EXISTS"
INVALID = "INVALID"
"""A name, a number or a text that can never be right."""
LAST_ADMIN = "LAST_ADMIN"
LIMIT = "LIMIT"
NOT_FOUND = "NOT_FOUND"
PROTOCOL = "PROTOCOL"
"""Some member does not know what is asked for, or would not be understood by the others."""
SESSION_NEEDED = "SESSION_NEEDED"
STALE = "STALE"
"""It speaks for a node that was started again since."""
WRONG_STATE = "WRONG_STATE"


class Ok(Struct, frozen=True, array_like=True, tag=0):
    """It is done. value: what the command's docstring says, usually the index at which its object changed last."""

    value: Any = None


class No(Struct, frozen=True, array_like=True, tag=1):
    """It was refused, and nothing was changed but the audit. code: one of the above, or of a session's."""

    code: str
    message: str


Reply = Ok | No

"""What names may look like and how much there may be. A later program that allows more raises the protocol for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from conveyord.core.state.replies import INVALID, No

CONFIG_KEY_CHARS_MAX = 512
CONFIG_VALUE_BYTES_MAX = 256 * 1024
CONFIG_ENTRIES_MAX = 100_000
CONFIG_BYTES_MAX = 256 * 1024 * 1024  # of keys and values; all of it is in every snapshot
MEMBERS_MAX = 1_024  # with those that left and were not forgotten; Raft takes 255
TOKENS_MAX = 1_000  # every one is looked at when an admin is revoked
ADDRESS_CHARS_MAX = 255
SHOWN_CHARS = 80  # of what is refused; a session keeps its replies
TEXT_CHARS_MAX = 128
ROLES = ("builder", "ingestion", "router", "scheduler", "sidecar")

_KEY = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


def shown(value: str) -> str:
    """`value` for a sentence in a reply. In ASCII: which other characters are shown as such depends on the Python."""
    return ascii(value[:SHOWN_CHARS])


@lru_cache(1_024)
def wrong_key(key: str) -> No | None:
    """Whether a configuration entry cannot be called so. Asked of the same ones again and again."""
    if len(key) > CONFIG_KEY_CHARS_MAX:
        return No(INVALID, f"a key of {len(key)} characters, at most {CONFIG_KEY_CHARS_MAX}; shorten it")
    if _KEY.fullmatch(key):
        return None
    return No(INVALID, f"{shown(key)} is no key; write letters, digits, '.', '_' and '-' in parts joined by '/'")


def wrong_id(what: str, value: str) -> No | None:
    """Whether `value` cannot be the id of `what`."""
    if _ID.fullmatch(value):
        return None
    return No(
        INVALID,
        f"{shown(value)} is no id of a {what}; write up to 64 letters, digits, '.', '_', '-'; a letter or digit first",
    )


def wrong_address(what: str, value: str) -> No | None:
    """Whether `value` cannot be an address to connect to."""
    found = _ADDRESS.fullmatch(value) if len(value) <= ADDRESS_CHARS_MAX else None
    if found and 0 < int(found[1]) < 65_536:
        return None
    return No(INVALID, f"{shown(value)} is no {what} address; write host:port, IPv6 as [::1]:7400")


def wrong_text(what: str, value: str) -> No | None:
    """Whether `value` cannot be shown on one line."""
    if 0 < len(value) <= TEXT_CHARS_MAX and all(" " <= char <= "~" or char >= "\xa0" for char in value):
        return None
    return No(INVALID, f"the {what} has {len(value)} characters; write 1 to {TEXT_CHARS_MAX}, none of them for control")


def wrong_roles(roles: Sequence[str]) -> No | None:
    """Whether no node can have these roles."""
    if roles and list(roles) == sorted(set(roles)) and set(roles) <= set(ROLES):
        return None
    return No(INVALID, f"roles {shown(','.join(roles))}; name some of {', '.join(ROLES)}, in this order, each once")

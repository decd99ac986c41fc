"""What a token looks like, and how it is known again: `cvd_<id>_<secret>`.

The secret is 32 bytes of the system's randomness, so its hash needs no scrypt: that is for words that people choose and
others can guess. Nobody goes through 2^256 secrets, however fast one SHA-256 is, and a slow hash for every request
would be a way to keep a node busy. The salt keeps equal secrets from having equal hashes.
"""

from __future__ import annotations

import hmac
import re
import secrets
from hashlib import sha256
from typing import NamedTuple

PREFIX = "cvd"
SECRET_BYTES = 32
SALT_BYTES = 16
ID_BYTES = 6  # 281 trillion; one that is taken is refused when it is made
_TEXT = re.compile(rf"{PREFIX}_([A-Za-z0-9][A-Za-z0-9.-]{{0,63}})_([A-Za-z0-9_-]{{43}})")


class NewToken(NamedTuple):
    """text: what is told, once. salt, hash: what is kept."""

    id: str
    text: str
    salt: bytes
    hash: bytes


class Parts(NamedTuple):
    """Of the text of a token."""

    id: str
    secret: str


def new_token(id_: str = "") -> NewToken:
    """A token that never was. id_: its id; a new one if it is empty."""
    id_ = id_ or secrets.token_hex(ID_BYTES)
    secret, salt = secrets.token_urlsafe(SECRET_BYTES), secrets.token_bytes(SALT_BYTES)
    return NewToken(id_, f"{PREFIX}_{id_}_{secret}", salt, hashed(secret, salt))


def parts_of(text: str) -> Parts | None:
    """The parts of what may be a token; None if it is none."""
    found = _TEXT.fullmatch(text)
    return None if found is None else Parts(found[1], found[2])


def hashed(secret: str, salt: bytes) -> bytes:
    """What is kept of a secret."""
    return sha256(salt + secret.encode("ascii")).digest()


def is_secret(secret: str, salt: bytes, hash_: bytes) -> bool:
    """Whether a secret is the one that was hashed. How long that takes tells nothing of it."""
    return hmac.compare_digest(hashed(secret, salt), hash_)

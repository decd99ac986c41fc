"""Values made unrecognisable, by Arrow and DataFusion a column at a time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from conveyord.core.errors import ConfigError
from conveyord.engine.column_paths import plain_values
from conveyord.engine.naming import type_word
from conveyord.engine.schema.text import to_text
from conveyord.engine.schema.types import is_bytes, is_list, is_text
from conveyord.engine.sql import INPUT_TABLE, BatchQuery

DIGEST_BYTES = 32  # of SHA-256
BLOCK_BYTES = 64  # of SHA-256, for HMAC
KEY_BYTES_MIN = 16  # a shorter key is guessed in less time than it takes to read its description
TOKEN_PURPOSE = b"conveyord mask tokenize"
BASE32 = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz234567", np.uint8)
BITS_PER_CHARACTER = 5

_INNER, _OUTER = 0x36, 0x5C  # HMAC's paddings


class Digest(Protocol):
    """Values to 32 bytes each."""

    def __call__(self, values: pa.Array) -> pa.Array:
        """values: binary without nulls. Returns binary values of `DIGEST_BYTES` each."""


class Sha256:
    """SHA-256 of each value, by DataFusion: several times faster than a loop in Python. For one thread at a time."""

    @cached_property
    def _query(self) -> BatchQuery:
        return BatchQuery(f'SELECT sha256(v) AS "digest" FROM {INPUT_TABLE}', setting="mask")  # noqa: S608

    def __call__(self, values: pa.Array) -> pa.Array:
        """See `Digest`."""
        return self._query.run(pa.record_batch({"v": values})).column(0)


class KeyedSha256:
    """HMAC-SHA256 of each value (RFC 2104). Nothing of the key appears in any rendering."""

    def __init__(self, key: bytes) -> None:
        padded = (hashlib.sha256(key).digest() if len(key) > BLOCK_BYTES else key).ljust(BLOCK_BYTES, b"\0")
        self._inner = pa.scalar(bytes(byte ^ _INNER for byte in padded), pa.binary())
        self._outer = pa.scalar(bytes(byte ^ _OUTER for byte in padded), pa.binary())
        self._sha256 = Sha256()

    def __call__(self, values: pa.Array) -> pa.Array:
        """See `Digest`."""
        return self._sha256(_joined(self._outer, self._sha256(_joined(self._inner, values))))


def _joined(first: pa.Scalar, values: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(first, values, pa.scalar(b"", pa.binary()))


def token_key(key: bytes) -> bytes:
    """The key of tokens. Not `key` itself: a token would be the beginning of the same value's hash."""
    return hmac.digest(key, TOKEN_PURPOSE, "sha256")


class Method(Protocol):
    """One way to mask."""

    def __call__(self, array: pa.Array, beside: bool) -> pa.Array:
        """What becomes of `array`; null stays null. beside: it is a sibling column, of any type.

        Raises ConfigError if it cannot be done to values of this type.
        """


@dataclass(frozen=True, slots=True)
class Nullify:
    """Every value becomes null; the type stays."""

    def __call__(self, array: pa.Array, beside: bool) -> pa.Array:  # noqa: ARG002 - the protocol's
        """See `Method`."""
        return pa.nulls(len(array), array.type)


@dataclass(frozen=True, slots=True)
class Redact:
    """Every text becomes the same one."""

    path: str
    text: str

    def __call__(self, array: pa.Array, beside: bool) -> pa.Array:
        """See `Method`."""
        values = _texts(array, self.path, "redact", beside=beside)
        return pc.if_else(values.is_valid(), pa.scalar(self.text), pa.scalar(None, pa.string()))


@dataclass(frozen=True, slots=True)
class Partial:
    """All characters but some at the ends become `char`. A text too short to hide any is hidden whole."""

    path: str
    keep_first: int
    keep_last: int
    char: str

    def __call__(self, array: pa.Array, beside: bool) -> pa.Array:
        """See `Method`."""
        values = _texts(array, self.path, "partial", beside=beside)
        lengths = pc.utf8_length(values)
        kept = self.keep_first + self.keep_last
        hidden = pc.if_else(pc.less_equal(lengths, kept), lengths, pc.subtract(lengths, kept))
        middle = pc.binary_repeat(pa.scalar(self.char), hidden)
        first = pc.utf8_slice_codeunits(values, start=0, stop=self.keep_first)
        # -0 would be the whole text.
        last = pc.utf8_slice_codeunits(values, start=-self.keep_last) if self.keep_last else pa.scalar("")
        shown = pc.binary_join_element_wise(first, middle, last, "")
        return pc.if_else(pc.less_equal(lengths, kept), middle, shown)


@dataclass(frozen=True, slots=True)
class Hash:
    """Every value becomes its digest in hexadecimal digits."""

    path: str
    digest: Digest

    def __call__(self, array: pa.Array, beside: bool) -> pa.Array:
        """See `Method`."""
        return _by_value(array, self.path, "hash", self._hexadecimal, beside=beside)

    def _hexadecimal(self, values: pa.Array) -> pa.Array:
        digits = np.frombuffer(b"0123456789abcdef", np.uint8)
        digests = _matrix(self.digest(values))
        return _fixed_text(np.stack([digits[digests >> 4], digits[digests & 15]], axis=2))


@dataclass(frozen=True, slots=True)
class Tokenize:
    """Every value becomes a prefix and the first bits of its digest, as lower-case base32."""

    path: str
    digest: Digest
    prefix: str
    bits: int

    def __call__(self, array: pa.Array, beside: bool) -> pa.Array:
        """See `Method`."""
        return _by_value(array, self.path, "tokenize", self._tokens, beside=beside)

    def _tokens(self, values: pa.Array) -> pa.Array:
        bits = np.unpackbits(_matrix(self.digest(values)), axis=1)[:, : self.bits]
        weights = 1 << np.arange(BITS_PER_CHARACTER, dtype=np.uint8)[::-1]
        numbers = bits.reshape(len(values), -1, BITS_PER_CHARACTER) @ weights
        return pc.binary_join_element_wise(self.prefix, _fixed_text(BASE32[numbers]), "")


def _by_value(array: pa.Array, path: str, name: str, make: Callable[[pa.Array], pa.Array], *, beside: bool) -> pa.Array:
    """What `make` gives for each distinct value: columns worth masking repeat theirs."""
    array = plain_values(array)
    if is_bytes(array.type):
        values = array.cast(pa.binary())
    else:
        if pt.is_nested(array.type) and not beside:
            raise _wrong_type(array.type, path, name)
        values = to_text(array).cast(pa.binary())
    encoded = values.dictionary_encode()
    if len(encoded.dictionary) == 0:
        return pa.nulls(len(array), pa.string())
    return make(encoded.dictionary).take(encoded.indices)


def _texts(array: pa.Array, path: str, name: str, *, beside: bool) -> pa.Array:
    array = plain_values(array)
    if not (is_text(array.type) or pt.is_null(array.type) or beside):
        raise _wrong_type(array.type, path, name)
    return to_text(array)


def _wrong_type(kind: pa.DataType, path: str, name: str) -> ConfigError:
    if is_list(kind) or pt.is_struct(kind) or pt.is_map(kind):
        remedy = f"name a field in it ({path}.field), or nullify it"
    else:
        remedy = "use hash or tokenize, which make text of it, or nullify"
    return ConfigError(
        f"mask.columns.{path}: {name} works on text, and the column is of type {type_word(kind)}; {remedy}"
    )


def _matrix(digests: pa.Array) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """A row of bytes per digest."""
    content = digests.cast(pa.binary(DIGEST_BYTES))
    flat = np.frombuffer(content.buffers()[1], np.uint8)
    return flat[content.offset * DIGEST_BYTES :][: len(content) * DIGEST_BYTES].reshape(len(content), DIGEST_BYTES)


def _fixed_text(characters: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> pa.Array:
    """A text per row of ASCII codes, all of one length."""
    count = len(characters)
    flat = np.ascontiguousarray(characters).reshape(count, -1)
    # Not through a fixed-size binary array: this keeps the one copy.
    offsets = np.arange(count + 1, dtype=np.int32) * flat.shape[1]
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(flat))

"""A source's schema as text, to be stored with its positions and taken up by the next run.

Columns that appear after the sample are typed by the block that brought them. A run that goes on in
the middle cannot see that block any more, so what was settled is handed on to it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence

import pyarrow as pa

from conveyord.engine.contracts import OperatorConfig

VERSION = "1"
NOT_OF_TYPES = ("path", "follow", "poll_every", "on_replaced", "registry")
DIGEST_CHARACTERS = 12  # tells apart the few configurations that one pipeline goes through


def schema_to_remember(config: OperatorConfig, schema: pa.Schema) -> str:
    """`schema`, marked with the options that it was inferred under."""
    packed = zlib.compress(schema.remove_metadata().serialize().to_pybytes())
    return f"{VERSION}:{_digest(config)}:{base64.b85encode(packed).decode('ascii')}"


def remembered_schema(config: OperatorConfig, states: Sequence[str | None]) -> pa.Schema | None:
    """The widest schema in `states`, or None if there is none, or none inferred under these options.

    Schemas only grow, within their columns too, so the widest is the newest; one that is ahead of a position
    is harmless, because a block decodes alike under every schema that it does not make grow.
    """
    found = []
    for state in states:
        version, _, rest = (state or "").partition(":")
        digest, _, packed = rest.partition(":")
        if version == VERSION and digest == _digest(config):
            found.append(pa.ipc.read_schema(pa.py_buffer(zlib.decompress(base64.b85decode(packed)))))
    return max(found, key=lambda schema: sum(map(_width, schema.types)), default=None)


def _width(kind: pa.DataType) -> int:
    """How many fields there are in a column, itself included; one without a type yet counts nothing."""
    if pa.types.is_null(kind):
        return 0
    return 1 + sum(_width(kind.field(index).type) for index in range(kind.num_fields))


def _digest(config: OperatorConfig) -> str:
    """Of everything but where the files are and how they are waited for: those change while their columns stay."""
    options = config.model_dump(mode="json", exclude=set(NOT_OF_TYPES))
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:DIGEST_CHARACTERS]

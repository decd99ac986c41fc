"""Transform `mask`: personal data made unrecognisable before it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
from pydantic import Discriminator, Field, Tag, model_validator

from conveyord.core.errors import ConfigError
from conveyord.engine.batch_transform import BatchTransform
from conveyord.engine.column_paths import Change, changed_at, missing_column, within_lists
from conveyord.engine.contracts import Inbound, OperatorConfig, OperatorContext, Outbound
from conveyord.engine.masking import (
    BITS_PER_CHARACTER,
    DIGEST_BYTES,
    KEY_BYTES_MIN,
    Digest,
    Hash,
    KeyedSha256,
    Nullify,
    Partial,
    Redact,
    Sha256,
    Tokenize,
    token_key,
)
from conveyord.engine.secrets import Secret
from conveyord.engine.sql import without_views

MethodName = Literal["redact", "hash", "partial", "nullify", "tokenize"]

_OPTIONS: Mapping[str, frozenset[str]] = {
    "redact": frozenset({"text"}),
    "hash": frozenset(),
    "partial": frozenset({"keep_first", "keep_last", "char"}),
    "nullify": frozenset(),
    "tokenize": frozenset({"prefix", "bits"}),
}
"""Which options each method has."""


class ColumnMask(OperatorConfig):
    """How one column is masked, with options."""

    method: MethodName = Field(description="How.")
    text: str = Field(default="***", description="redact: what stands in place of every value.")
    keep_first: int = Field(default=0, ge=0, description="partial: how many characters at the beginning stay.")
    keep_last: int = Field(default=0, ge=0, description="partial: how many characters at the end stay.")
    char: str = Field(default="*", min_length=1, max_length=1, description="partial: what hides a character.")
    prefix: str = Field(default="tok_", description="tokenize: what every token begins with.")
    bits: int = Field(
        default=80,
        ge=40,
        le=DIGEST_BYTES * 8 - 1,
        multiple_of=BITS_PER_CHARACTER,
        description="tokenize: how much of the digest a token holds, 5 bits a character.",
    )

    @model_validator(mode="after")
    def _has_only_its_own_options(self) -> Self:
        others = self.model_fields_set - {"method"} - _OPTIONS[self.method]
        if others:
            raise ValueError(f"{self.method} has no option {min(others)!r}")
        return self


def _form(given: Any) -> str:
    """Which of the two forms a mask is written in: what is wrong with the other form is no matter then."""
    return "mapping" if isinstance(given, dict | ColumnMask) else "method"


Mask = Annotated[
    Annotated[MethodName, Tag("method")] | Annotated[ColumnMask, Tag("mapping")],
    Discriminator(_form),
]


class MaskConfig(OperatorConfig):
    """Makes the values of columns unrecognisable. A null stays null.

    `redact` puts a fixed text in place of a text, `partial` hides all of a text but some characters at its ends (a
    text with no more than these is hidden whole), `nullify` removes values of any type. `hash` and `tokenize` make
    text of a value of any plain type, the same for the same value in every column and run, so that rows can still
    be joined: `hash` the HMAC-SHA256 of the value under `key` in hexadecimal digits, `tokenize` a prefix and the
    first bits of another such digest (under the key HMAC-SHA256(key, "conveyord mask tokenize")) in base32. Two of n
    values get the same token with a probability of about n * n / 2^(bits + 1): with the default of 80 bits, one in
    two million for a thousand million values. A value that is no text is taken as the text that stands for it in
    JSON: the long 1 and the double 1.0 are both `1`. But decimals keep all their digits, so that 1.5 and 1.50 are
    different values, and so are 0.0 and -0.0: cast such columns to one type before, if they are to be joined.

    A path goes into objects and lists: `items.email` masks that field in every object of the list `items`. What did
    not fit a column when it was read, and so stands in a column beside it (`email__double`, `user__string`), is masked
    with it, as text if it has another type; so is what stands where an object should be.

    Dead letters keep the record as the source read it, and the row as it arrived at the stage that failed:
    unmasked, for every stage up to this one, and the record (`raw`) also for those after it. The copies that
    `dlq.sink` gets hold the same, whatever is masked on the way to other sinks. Protect the data directory, and what
    `dlq.sink` writes to, as you protect the source.
    """

    columns: dict[str, Mask] = Field(
        min_length=1,
        examples=[{"email": "redact"}],
        description="The method for each column or path: `redact`, `hash`, `partial`, `nullify` or `tokenize`, or a "
        "mapping with `method` and its options: `text` of redact (default `***`); `keep_first`, `keep_last` (default "
        "0) and `char` (default `*`) of partial; `prefix` (default `tok_`) and `bits` (default 80) of tokenize.",
    )
    key: Secret | None = Field(
        default=None,
        description="The key of `hash` and `tokenize`, at least 16 bytes: `env:NAME` or `file:PATH`. Who has it can "
        "find out the values by trying; with another key all hashes and tokens change.",
    )
    unkeyed: bool = Field(
        default=False,
        description="Hash without a key: plain SHA-256, which anybody can undo for values that can be guessed, such as "
        "phone numbers. Not for tokenize.",
    )
    on_missing: Literal["fail", "ignore"] = Field(
        default="fail",
        description="What becomes of a name that rows do not have: `fail` stops the run, so that a misspelt name leaks "
        "nothing; `ignore` passes over it, for fields that not all records have.",
    )

    @model_validator(mode="after")
    def _has_a_key_where_needed(self) -> Self:
        methods = {each if isinstance(each, str) else each.method for each in self.columns.values()}
        if self.key is not None and self.unkeyed:
            raise ValueError("key and unkeyed exclude each other; leave one out")
        if self.key is None and "tokenize" in methods:
            raise ValueError("tokenize needs a key, such as key: env:MASK_KEY")
        if self.key is None and not self.unkeyed and "hash" in methods:
            raise ValueError("hash needs a key, such as key: env:MASK_KEY (or unkeyed: true, which hides little)")
        return self


class MaskTransform(BatchTransform):
    """See docs/operators.md. Values that repeat within a batch are hashed once."""

    Config = MaskConfig
    same_count_same_rows = True
    pure = True

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self._changes: Mapping[str, Change] | None = None

    async def check(self) -> None:
        """See `Operator.check`: the key must be there."""
        await self.context.in_thread(self._prepared)

    async def run(self, inbound: Inbound, outbound: Outbound) -> None:
        """See `Transform.run`. Raises ConfigError before the first batch if the key is missing or too short."""
        await self.context.in_thread(self._prepared)
        await super().run(inbound, outbound)

    def row_wise(self, data: pa.RecordBatch) -> bool:  # noqa: ARG002 - the contract's
        """See `BatchTransform.row_wise`: a value is masked by itself."""
        return True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """See `BatchTransform.apply`. Columns keep their places.

        Raises ConfigError if a column is missing, or of a type that its method cannot mask.
        """
        data = without_views(data)
        if not data.schema.names:  # records that are empty objects: there is nothing to leak
            return data
        for path, change in self._prepared().items():
            changed = changed_at(data, path, change)
            if changed is not None:
                data = changed
            elif self.config.on_missing == "fail":
                raise missing_column(path, data.schema.names, setting="mask.columns")
        return data

    def _prepared(self) -> Mapping[str, Change]:
        """What is done at each path. Blocking: reads the key the first time."""
        if self._changes is None:
            hashing: Digest
            tokens: Digest
            if self.config.key is None:
                hashing = tokens = Sha256()
            else:
                key = _key(self.config.key)
                hashing, tokens = KeyedSha256(key), KeyedSha256(token_key(key))
            self._changes = {
                path: _change(path, each if isinstance(each, ColumnMask) else ColumnMask(method=each), hashing, tokens)
                for path, each in self.config.columns.items()
            }
        return self._changes


def _key(secret: Secret) -> bytes:
    try:
        key = secret.reveal().encode()
    except ConfigError as error:
        raise ConfigError(f"mask.key: {error}") from error
    if len(key) < KEY_BYTES_MIN:
        raise ConfigError(
            f"mask.key: {secret} has {len(key)} bytes, at least {KEY_BYTES_MIN} are needed; "
            "make one with `openssl rand -hex 32`"
        )
    return key


def _change(path: str, mask: ColumnMask, hashing: Digest, tokens: Digest) -> Change:
    match mask.method:
        case "redact":
            return within_lists(Redact(path, mask.text))
        case "hash":
            return within_lists(Hash(path, hashing))
        case "partial":
            return within_lists(Partial(path, mask.keep_first, mask.keep_last, mask.char))
        case "tokenize":
            return within_lists(Tokenize(path, tokens, mask.prefix, mask.bits))
        case "nullify":
            return Nullify()

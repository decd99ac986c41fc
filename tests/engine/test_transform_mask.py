"""The transform `mask`: what is hidden stays hidden, wherever it stands, and the key shows nowhere."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import ConfigError
from conveyord.engine.definitions import parse_pipelines
from conveyord.engine.problems import DefinitionError, render
from conveyord.engine.registry import installed
from conveyord.engine.secrets import redacted
from conveyord.operators.transform_mask import MaskTransform
from tests.engine.graph_rig import World, line, numbered, run_now, sink, source, transform
from tests.engine.transform_rig import LAYOUTS, batch, made, rows, texts

KEY = "0123456789abcdef-a-key-of-the-tests"
TEXTS = st.lists(st.one_of(st.none(), st.text(max_size=8), st.sampled_from(["a@b.cz", ""])), max_size=9)


def mask(**options: Any) -> MaskTransform:
    return made(MaskTransform, **options)


def keyed(method: Any, **options: Any) -> MaskTransform:
    return mask(columns={"s": method}, key=KEY, **options)


def hashed(value: bytes | str) -> str:
    return hmac.digest(KEY.encode(), value.encode() if isinstance(value, str) else value, "sha256").hex()


def token(value: str, bits: int) -> str:
    own = hmac.digest(KEY.encode(), b"conveyord mask tokenize", "sha256")
    digest = int.from_bytes(hmac.digest(own, value.encode(), "sha256"), "big") >> (256 - bits)
    padded = (digest << (-bits % 40)).to_bytes((bits + 39) // 40 * 5, "big")
    return base64.b32encode(padded).decode().lower()[: bits // 5]


def partly(value: str, first: int, last: int, char: str) -> str:
    if len(value) <= first + last:
        return char * len(value)
    return value[:first] + char * (len(value) - first - last) + value[len(value) - last :]


HASH, TOKENS = keyed("hash"), {bits: keyed({"method": "tokenize", "bits": bits}) for bits in (40, 80, 255)}


@given(TEXTS, st.sampled_from(LAYOUTS), st.integers(0, 3), st.integers(0, 3))
def test_every_method_does_to_each_value_what_plain_python_does(
    values: list[str | None], layout: str, first: int, last: int
) -> None:
    data = batch(s=texts(values, layout)).slice(1)
    values = values[1:]
    partial = mask(columns={"s": {"method": "partial", "keep_first": first, "keep_last": last, "char": "é"}})
    wanted = {
        HASH: [None if v is None else hashed(v) for v in values],
        partial: [None if v is None else partly(v, first, last, "é") for v in values],
        mask(columns={"s": "redact"}): [None if v is None else "***" for v in values],
        **{made: [None if v is None else f"tok_{token(v, bits)}" for v in values] for bits, made in TOKENS.items()},
    }
    for masking, expected in wanted.items():
        got = masking.apply(data)
        got.validate(full=True)
        assert got.schema.types == [pa.string()]
        assert got.to_pydict() == {"s": expected}
    nothing = mask(columns={"s": "nullify"}).apply(data)
    assert nothing.to_pydict() == {"s": [None] * len(values)}


def test_hash_and_tokenize_take_the_text_of_any_plain_value() -> None:
    data = batch(
        i=pa.array([5, None]),
        d=pa.array([Decimal("1.50"), None], pa.decimal128(9, 2)),
        t=pa.array([dt.datetime(2026, 1, 2, 3, 4, 5), None], pa.timestamp("us", "UTC")),
        b=pa.array([b"\xff\x00", None]),
        o=pa.array([True, None]),
        n=pa.nulls(2),
    )
    got = mask(columns=dict.fromkeys(data.schema.names, "hash"), key=KEY).apply(data)
    assert got.schema.types == [pa.string()] * 6
    assert got.to_pylist()[0] == {
        "i": hashed("5"),
        "d": hashed("1.50"),
        "t": hashed("2026-01-02T03:04:05Z"),
        "b": hashed(b"\xff\x00"),
        "o": hashed("true"),
        "n": None,
    }
    assert set(got.to_pylist()[1].values()) == {None}


def test_nullify_keeps_the_type_of_any_column() -> None:
    data = rows({"a": {"b": [1]}, "n": 5})
    got = mask(columns={"a": "nullify", "n": "nullify"}).apply(data)
    assert got.schema == data.schema
    assert got.to_pylist() == [{"a": None, "n": None}]


def test_paths_go_through_objects_and_lists_and_leave_the_rest_alone() -> None:
    data = rows(
        {"u": {"name": "Eva", "age": 9}, "items": [{"mail": ["x", None], "n": 1}, None, {"mail": [], "n": 2}], "k": 1},
        {"u": None, "items": None, "k": None},
    )
    got = mask(columns={"u.name": {"method": "redact", "text": "?"}, "items.mail": "redact"}).apply(data.slice(0, 2))
    got.validate(full=True)
    assert got.to_pylist() == [
        {"u": {"name": "?", "age": 9}, "items": [{"mail": ["***", None], "n": 1}, None, {"mail": [], "n": 2}], "k": 1},
        {"u": None, "items": None, "k": None},
    ]
    dotted = batch(**{"u.name": pa.array(["whole"]), "u": pa.array([{"name": "inner"}])})
    assert mask(columns={"u.name": "redact"}).apply(dotted).to_pylist() == [{"u.name": "***", "u": {"name": "inner"}}]


def test_a_value_under_a_null_object_does_not_come_back() -> None:
    hidden = pa.StructArray.from_arrays([pa.array(["x", "y"])], names=["s"], mask=pa.array([False, True]))
    got = mask(columns={"o.s": "redact"}).apply(batch(o=hidden))
    assert got.to_pylist() == [{"o": {"s": "***"}}, {"o": None}]


def test_what_did_not_fit_its_column_is_masked_beside_it() -> None:
    data = rows(
        {"mail": "a@b", "mail__double": None, "mail__struct": {"x": "c@d"}, "user__string": "{e@f}", "mailing": "no"},
        {"mail": None, "mail__double": 2.5, "mail__struct": None, "user__string": None, "mailing": "no"},
    )
    got = mask(columns={"mail": "hash", "user.mail": "redact"}, key=KEY).apply(data)
    assert got.to_pylist() == [
        {
            "mail": hashed("a@b"),
            "mail__double": None,
            "mail__struct": hashed('{"x":"c@d"}'),
            "user__string": "***",
            "mailing": "no",
        },
        {"mail": None, "mail__double": hashed("2.5"), "mail__struct": None, "user__string": None, "mailing": "no"},
    ]


def test_text_where_an_object_should_be_is_masked_whole() -> None:
    data = batch(user=pa.array(["a@b", None]))
    assert mask(columns={"user.mail": "redact"}).apply(data).to_pydict() == {"user": ["***", None]}
    assert mask(columns={"user.mail": "redact"}).apply(batch(user=pa.nulls(1))).to_pydict() == {"user": [None]}


def test_the_same_value_gives_the_same_hash_and_token_in_every_column_and_they_share_no_beginning() -> None:
    data = batch(a=pa.array(["x"]), b=pa.array(["x"]), c=pa.array(["x"]), d=pa.array(["x"]))
    long = {"method": "tokenize", "prefix": "", "bits": 80}
    (row,) = mask(columns={"a": "hash", "b": "hash", "c": long, "d": long}, key=KEY).apply(data).to_pylist()
    assert row["a"] == row["b"]
    assert row["c"] == row["d"]
    assert base64.b32encode(bytes.fromhex(row["a"])).decode().lower()[:16] != row["c"]


def test_without_a_key_a_hash_is_plain_sha256_if_that_is_wanted() -> None:
    got = mask(columns={"s": "hash"}, unkeyed=True).apply(batch(s=pa.array(["x"])))
    assert got.to_pydict() == {"s": [hashlib.sha256(b"x").hexdigest()]}


def test_a_key_longer_than_a_block_is_digested_first() -> None:
    key = "k" * 100
    got = mask(columns={"s": "hash"}, key=key).apply(batch(s=pa.array(["x"])))
    assert got.to_pydict() == {"s": [hmac.digest(key.encode(), b"x", "sha256").hex()]}


@pytest.mark.parametrize("method", ["redact", "hash", "partial", "nullify", "tokenize"])
def test_a_batch_without_rows_gets_the_types_of_one_with_rows(method: str) -> None:
    data = rows({"s": "x", "o": {"s": ["x"]}})
    transform = mask(columns={"s": method, "o.s": method}, key=KEY)
    assert transform.apply(data.slice(0, 0)).schema == transform.apply(data).schema


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"columns": {"s": "hash"}},
            "hash needs a key, such as key: env:MASK_KEY (or unkeyed: true, which hides little)",
        ),
        ({"columns": {"s": "tokenize"}, "unkeyed": True}, "tokenize needs a key, such as key: env:MASK_KEY"),
        ({"columns": {"s": "hash"}, "key": KEY, "unkeyed": True}, "key and unkeyed exclude each other; leave one out"),
        ({"columns": {}}, "should have at least 1 item"),
        ({"columns": {"s": {"method": "partial", "text": "x"}}}, "partial has no option 'text'"),
        ({"columns": {"s": {"method": "tokenize", "bits": 41}}, "key": KEY}, "multiple of 5"),
        ({"columns": {"s": "blur"}}, "'redact', 'hash', 'partial', 'nullify' or 'tokenize'"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_run(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        mask(**options)
    assert message in str(refused.value)
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    ("columns", "data", "message"),
    [
        (
            {"emial": "redact"},
            {"email": "x", "n": 1},
            "mask.columns names a column 'emial' that is not there; did you mean 'email'?",
        ),
        ({"q": "redact"}, {"n": 1}, "mask.columns names a column 'q' that is not there; the columns are n"),
        ({"o.q": "redact"}, {"o": {"a": 1}}, "mask.columns names a column 'o.q' that is not there; the columns are o"),
        (
            {"n": "redact"},
            {"n": 1},
            (
                "mask.columns.n: redact works on text, and the column is of type long; "
                "use hash or tokenize, which make text of it, or nullify"
            ),
        ),
        (
            {"o": "hash"},
            {"o": {"a": 1}},
            (
                "mask.columns.o: hash works on text, and the column is of type struct; "
                "name a field in it (o.field), or nullify it"
            ),
        ),
    ],
)
def test_what_cannot_be_masked_stops_the_run(columns: dict[str, str], data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        mask(columns=columns, key=KEY).apply(rows(data))
    assert str(refused.value) == message


def test_columns_that_only_some_batches_have_may_be_missing_if_that_is_said() -> None:
    transform = mask(columns={"email": "redact"}, on_missing="ignore")
    assert transform.apply(rows({"n": 1})).to_pylist() == [{"n": 1}]
    assert transform.apply(rows({"n": 1, "email": "x"})).to_pylist() == [{"n": 1, "email": "***"}]


async def test_a_key_that_is_missing_or_short_is_found_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match="mask.key: the secret env:NO_MASK_KEY: the variable 'NO_MASK_KEY' is not set"
    ):
        await mask(columns={"s": "hash"}, key="env:NO_MASK_KEY").check()
    monkeypatch.setenv("MASK_KEY", "short")
    with pytest.raises(ConfigError, match="mask.key: env:MASK_KEY has 5 bytes, at least 16 are needed"):
        await mask(columns={"s": "hash"}, key="env:MASK_KEY").check()
    with pytest.raises(ConfigError) as refused:
        await mask(columns={"s": "hash"}, key="tooshort").check()
    assert "tooshort" not in str(refused.value)
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    transform = mask(columns={"s": "hash"}, key=f"file:{path}")
    assert transform.apply(batch(s=pa.array(["x"]))).to_pydict() == {"s": [hashed("x")]}
    assert KEY not in repr(transform.config) + str(transform.__dict__) + repr(transform._changes)


def test_the_key_is_shown_with_no_problem_of_a_definition() -> None:
    assert redacted(MaskTransform.Config, {"columns": {"s": "hash"}, "key": KEY}) == {
        "columns": {"s": "hash"},
        "key": "***",
    }
    text = f"""apiVersion: conveyor.etl/v1
kind: Pipeline
metadata: {{name: p}}
spec:
  source: {{type: file_jsonl, path: x}}
  steps:
    - {{type: mask, columns: {{s: blur}}, key: {KEY}}}
  sink: {{type: stdout_pretty}}
"""
    with pytest.raises(DefinitionError) as refused:
        parse_pipelines({"x.yaml": text.encode()}, registry=installed(), environ={})
    shown = render(refused.value.problems)
    assert "x.yaml:7:" in shown
    assert KEY not in shown


def test_a_wrong_option_of_a_method_is_all_that_is_told() -> None:
    def told(mask_of_id: str) -> list[str]:
        text = f"""apiVersion: conveyor.etl/v1
kind: Pipeline
metadata: {{name: p}}
spec:
  source: {{type: file_jsonl, path: x}}
  steps:
    - {{type: mask, columns: {{id: {mask_of_id}}}, unkeyed: true}}
  sink: {{type: stdout_pretty}}
"""
        with pytest.raises(DefinitionError) as refused:
            parse_pipelines({"x.yaml": text.encode()}, registry=installed(), environ={})
        return [problem.message for problem in refused.value.problems]

    assert told("{method: hash, text: x}") == ["hash has no option 'text'"]
    assert told("{method: partial, keep_last: -1}") == [
        "'keep_last' must be greater than or equal to 0, got -1"
    ]  # fmt: skip
    assert told("blur") == ["'id' must be redact or hash or partial or nullify or tokenize, got the text 'blur'"]
    assert len(told("[hash]")) == 1


def test_in_a_run_rows_are_masked_and_letters_of_later_stages_hold_no_unmasked_row(tmp_path: Path) -> None:
    world = World({"t": numbered(12)})
    stages = (
        source(),
        transform("mask", "mask", columns={"k": "hash", "o.x": "nullify"}, key=KEY),
        transform("brittle", "brittle", poison=[3]),
        sink(),
    )
    outcome = run_now(world, line(*stages), tmp_path)
    assert outcome.failed() == []
    kept = world.kept("default/p", "out").rows
    assert kept == [
        {**row, "k": hashed(row["k"]), "o": {"x": None}} for row in numbered(12) if row["v"] != 3
    ]  # fmt: skip
    (stored,) = outcome.letters_of()
    assert stored.letter.row is not None
    assert hashed("a").encode() in stored.letter.row
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()

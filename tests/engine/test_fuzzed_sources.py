"""Whatever stands in a file or an answer: no crash, no record lost or doubled, and every one accounted for."""

from __future__ import annotations

import gzip
import json
import tempfile
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from conveyord.core.flow.positions import Positions
from conveyord.engine.contracts import OperatorContext, Source
from conveyord.operators.source_file_csv import FileCsvConfig, FileCsvSource
from conveyord.operators.source_file_jsonl import FileJsonlConfig, FileJsonlSource
from conveyord.operators.source_file_parquet import FileParquetConfig, FileParquetSource
from conveyord.operators.source_generate import GenerateConfig, GenerateSource
from conveyord.operators.source_http import HttpSource, HttpSourceConfig
from tests.engine.fuzz_corpus import (
    EDITS,
    JSON_LINES,
    KEYS,
    Edit,
    csv_files,
    csv_records,
    edited,
    is_good_json,
    json_files,
    json_records,
    parquet_files,
    wrapped,
)
from tests.engine.fuzz_rig import Books, Ways, in_every_way, reading
from tests.engine.http_rig import Answer, serving

MIB = 1024 * 1024
HALF = settings(max_examples=settings().max_examples // 2)
SIZES = st.fixed_dictionaries(
    {
        "block_bytes": st.sampled_from([1, 7, 64, 500, 100_000]),
        "batch_rows": st.sampled_from([1, 3, 100]),
        "max_record_bytes": st.just(1_000_000),
    }
)


def ways(suffix: str, content: bytes, make: Callable[[Path, OperatorContext], Source]) -> Ways:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"a{suffix}"
        path.write_bytes(content)

        async def main() -> Ways:
            return await in_every_way(lambda context: make(path, context), Path(name), where=str(path))

        return trio.run(main)


@given(wrapped(json_files()), SIZES)
def test_json_lines(file: tuple[str, bytes, bytes | None], sizes: dict[str, int]) -> None:
    suffix, content, plain = file

    def make(path: Path, context: OperatorContext) -> FileJsonlSource:
        return FileJsonlSource(FileJsonlConfig(path=str(path)).model_copy(update=sizes), context)

    found = ways(suffix, content, make)
    assert found.ends_with({"INVALID_UTF8"}, letters={"TRUNCATED_FILE"})
    if plain is not None and found.skipping.error is None:
        records = json_records(plain)
        assert found.skipping.read == len(records)
        assert len(found.skipping.rows) == sum(map(is_good_json, records)), records


@given(wrapped(csv_files()), SIZES)
def test_csv(file: tuple[str, bytes, bytes | None], sizes: dict[str, int]) -> None:
    suffix, content, plain = file

    def make(path: Path, context: OperatorContext) -> FileCsvSource:
        return FileCsvSource(FileCsvConfig(path=str(path)).model_copy(update=sizes), context)

    found = ways(suffix, content, make)
    headers = {"BAD_HEADER", "INVALID_UTF8", "UNCLOSED_QUOTE", "NUL_BYTE", "MALFORMED_RECORD"}
    assert found.ends_with(headers, letters={"TRUNCATED_FILE"})
    if plain is not None and found.skipping.error is None:
        assert found.skipping.read == max(0, csv_records(plain) - 1)


@given(st.lists(JSON_LINES, max_size=8), st.integers(16, 200), st.sampled_from([16, 100]))
def test_records_beyond_the_limit(lines: list[bytes], record_bytes: int, block_bytes: int) -> None:
    sizes = {"block_bytes": block_bytes, "max_record_bytes": record_bytes}

    def make(path: Path, context: OperatorContext) -> FileJsonlSource:
        return FileJsonlSource(FileJsonlConfig(path=str(path)).model_copy(update=sizes), context)

    found = ways("", b"".join(line + b"\n" for line in lines), make)
    assert found.ends_with({"INVALID_UTF8"}, letters=set())
    if found.skipping.error is None:
        assert found.skipping.read == len([line for line in lines if line.strip(b" \t\r")])


@given(parquet_files(), st.sampled_from([1, 3, 100]))
def test_parquet(file: tuple[bytes, int | None], batch_rows: int) -> None:
    content, rows = file

    def make(path: Path, context: OperatorContext) -> FileParquetSource:
        return FileParquetSource(FileParquetConfig(path=str(path), batch_rows=batch_rows), context)

    found = ways(".parquet", content, make)
    assert found.ends_with({"CONFIG"}, letters={"TRUNCATED_FILE"})
    if rows is not None:
        assert found.skipping.error is None
        assert found.skipping.read == rows


OPTIONS = st.fixed_dictionaries(
    {"type": st.sampled_from(["row_number", "long", "double", "string", "boolean", "timestamp", "date"])},
    optional={
        "min": st.one_of(st.integers(-(2**64), 2**64), st.floats(), st.text(max_size=4), st.just("2024-02-29")),
        "max": st.one_of(st.integers(-(2**64), 2**64), st.floats(), st.just("9999-12-31T23:59:59.999999Z")),
        "distinct": st.integers(0, 2**33),
        "values": st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=3)), max_size=3),
        "null_share": st.sampled_from([0.0, 0.5, 1.0]),
        "digits": st.integers(0, 15),
        "length": st.integers(0, 300),
        "prefix": st.text(max_size=3),
        "every": st.sampled_from(["1us", "1d", 3.0]),
    },
)


@HALF
@given(
    st.dictionaries(KEYS, OPTIONS, max_size=3), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 30),
    st.integers(1, 3), st.sampled_from([1, 4, 100]), st.integers(-(2**70), 2**70),
)  # fmt: skip
def test_generate(
    columns: dict[str, Any], broken_share: float, rows: int, partitions: int, batch_rows: int, seed: int
) -> None:
    options = {"rows": rows, "partitions": partitions, "batch_rows": batch_rows, "broken_share": broken_share}
    try:
        config = GenerateConfig(columns=columns, seed=seed, **options)
    except ValidationError:
        reject()
    assert not GenerateSource.mistakes(config)

    async def main() -> Ways:
        make = partial(GenerateSource, config)
        return await in_every_way(make, Path(), where="in (row", partitions=partitions)

    found = trio.run(main)
    assert found.ends_with(set(), letters=set())
    assert found.skipping.read == rows
    assert found.letters.dead == found.skipping.skipped
    assert not any(is_good_json(letter.place.record.raw or b"") for letter in found.letters.letters.rejected)


@HALF
@given(st.lists(JSON_LINES, max_size=8), EDITS | st.just([]), st.sampled_from([b"%s", b'{"a":{"b":%s}}', b"%s "]))
def test_http(lines: list[bytes], edits: list[Edit], around: bytes) -> None:
    body = edited(around.replace(b"%s", b"[" + b",".join(lines) + b"]"), edits)
    records = "a.b" if b"a" in around else None
    with serving(lambda _: Answer(body=body)) as server, tempfile.TemporaryDirectory() as name:

        def make(context: OperatorContext) -> HttpSource:
            config = HttpSourceConfig(url=server.url("/list"), once=True, records=records, timeout="10s")
            return HttpSource(config, context)

        async def main() -> Ways:
            return await in_every_way(make, Path(name), where="127.0.0.1")

        found = trio.run(main)
    assert found.ends_with({"CONFIG"}, letters=set())
    if found.skipping.error is None:
        try:
            listed = json.loads(body.decode("utf-8", "surrogatepass"), parse_int=str)
        except (ValueError, RecursionError):
            return
        listed = listed["a"]["b"] if records else listed
        assert found.skipping.read == (len(listed) if isinstance(listed, list) else listed is not None)


@pytest.mark.check
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("law", "strategies"),
    [
        (test_json_lines, (wrapped(json_files()), SIZES)),
        (test_csv, (wrapped(csv_files()), SIZES)),
        (test_parquet, (parquet_files(), st.sampled_from([1, 3, 100]))),
    ],
)
def test_hundreds_more_of_each(law: Any, strategies: tuple[Any, ...]) -> None:
    settings(max_examples=400)(given(*strategies)(law.hypothesis.inner_test))()


def test_a_bomb_of_blanks_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """Two hundred megabytes out of some kilobytes: one record without an end, and another that is mostly blank."""
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb") as file:
        for start, filler in ((b'{"a":"', b"x"), (b'\n{"a":1', b" ")):
            file.write(start)
            for _ in range(100):
                file.write(filler * MIB)
        file.write(b'}\n{"a":"last"}\n')
    assert path.stat().st_size < MIB

    async def main() -> Books:
        config = FileJsonlConfig(path=str(path), block_bytes="1MiB", max_record_bytes="4MiB")
        return await reading(partial(FileJsonlSource, config), tmp_path, Positions(), skip_bad=True)

    tracemalloc.start()
    try:
        found = trio.run(main)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (found.rows, found.read, found.skipped, found.error) == ([{"a": "last"}], 3, 2, None)
    assert peak_bytes < 80 * MIB  # some copies of the sample of 16 MiB

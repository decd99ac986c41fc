"""Files as partitions: identity, compression, blocks, and everything a file can have wrong."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import ConfigError, RecordError, Refused
from conveyord.core.flow.positions import Position
from conveyord.storage.files import BlockReader, discover, head_of, line_number, mark_of

LINES = b"".join(b'{"n":%d}\n' % n for n in range(5000))


def line_boundary(buffer: bytearray) -> int:
    return buffer.rfind(b"\n") + 1


def reader(path: Path, position: Position | None = None, **options: object) -> BlockReader:
    settings: dict[str, object] = {"header_bytes": 0, "block_bytes": 1000, "record_bytes_max": 4000, **options}
    return BlockReader(path, position=position, boundary=line_boundary, **settings)  # type: ignore[arg-type]


def write(path: Path, content: bytes, form: str) -> Path:
    """Write `content` plain or compressed, the compressed forms as two members or frames."""
    half = len(content) // 2
    if form == "gz":
        content = gzip.compress(content[:half]) + gzip.compress(content[half:])
    elif form == "zst":
        compressor = zstandard.ZstdCompressor()
        content = compressor.compress(content[:half]) + compressor.compress(content[half:])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("form", ["jsonl", "gz", "zst"])
def test_blocks_tile_the_content_in_whole_lines(tmp_path: Path, form: str) -> None:
    blocks = list(reader(write(tmp_path / f"a.{form}", LINES, form)).blocks())
    assert b"".join(block.data for block in blocks) == LINES
    assert all(block.data.endswith(b"\n") for block in blocks)
    assert [block.first for block in blocks[1:]] == [block.end for block in blocks[:-1]]
    assert blocks[-1].end == len(LINES)


@pytest.mark.parametrize("form", ["jsonl", "gz", "zst"])
def test_reading_goes_on_from_any_block_end(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / f"a.{form}", LINES, form)
    for block in list(reader(path).blocks())[::7]:
        rest = b"".join(b.data for b in reader(path, Position(block.end, reader(path).mark(block.end))).blocks())
        assert rest == LINES[block.end :]


@given(
    lines=st.lists(st.binary(min_size=1, max_size=40).filter(lambda line: b"\n" not in line), max_size=30),
    block_bytes=st.integers(1, 60),
    ends_with_newline=st.booleans(),
    cut_line=st.integers(0, 30),
)
def test_any_content_is_tiled_and_cut_where_asked(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[bytes],
    block_bytes: int,
    ends_with_newline: bool,
    cut_line: int,
) -> None:
    content = b"\n".join(lines) + (b"\n" if lines and ends_with_newline else b"")
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    path.write_bytes(b"#" + content)  # the first byte keeps random content from looking compressed
    content = b"#" + content
    cut = len(b"".join(content.splitlines(keepends=True)[:cut_line]))
    blocks = list(reader(path, block_bytes=block_bytes, record_bytes_max=100, cuts=(cut,)).blocks())
    assert b"".join(block.data for block in blocks) == content
    assert 0 < cut < len(content) or cut in (0, len(content))
    assert cut == 0 or cut in {block.end for block in blocks}


def test_a_header_is_passed_over_but_covered_by_the_first_block(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,name\n1,a\n2,b\n")
    (block,) = reader(path, header_bytes=8).blocks()
    assert (block.first, block.data_first, block.data) == (0, 8, b"1,a\n2,b\n")


@pytest.mark.parametrize("form", ["gz", "zst"])
def test_a_truncated_file_gives_its_whole_records_then_says_where_it_broke(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / f"a.{form}", LINES, form)
    path.write_bytes(path.read_bytes()[:-20])
    got = b""
    with pytest.raises(RecordError, match="restore the file") as caught:
        for block in reader(path).blocks():
            got += block.data
    assert caught.value.code == "TRUNCATED_FILE"
    assert LINES.startswith(got) and got.endswith(b"\n") and len(got) > len(LINES) // 3


@pytest.mark.parametrize("form", ["gz", "zst"])
def test_a_damaged_file_is_not_read_beyond_the_damage(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / f"a.{form}", LINES, form)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 + 40 : len(content) // 2 + 60] = bytes(20)
    path.write_bytes(content)
    got = b""
    with pytest.raises(RecordError):
        for block in reader(path).blocks():
            got += block.data
    assert LINES.startswith(got[: len(LINES) // 2 - 200])


def test_a_name_that_promises_compression_is_held_to_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(LINES)
    with pytest.raises(RecordError, match="content is not of that format"):
        list(reader(path).blocks())


def test_a_zstd_bomb_is_inflated_in_bounded_steps(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(bytes(300_000_000)))
    sizes = [len(block.data) for block in reader(path, block_bytes=2**20, record_bytes_max=2**20).blocks()]
    assert sizes == [0]  # one line of 300 MB: passed over without being held


def test_a_line_beyond_the_limit_is_a_block_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"short\n" + b"x" * 3_000_000 + b"\nafter\n")
    blocks = list(reader(path).blocks())
    assert [(block.data, block.oversize) for block in blocks] == [(b"short\n", False), (b"", True), (b"after\n", False)]
    assert (blocks[1].first, blocks[1].end) == (6, 6 + 3_000_001)


def test_a_line_below_the_limit_may_exceed_the_block(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 3_500 + b"\nafter\n")
    assert b"".join(block.data for block in reader(path).blocks()) == path.read_bytes()


def test_a_replaced_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    position = Position(100, mark_of(head_of(path, 4096), 100))
    path.write_bytes(LINES.replace(b"1", b"7"))
    with pytest.raises(Refused, match="replaced or edited"):
        reader(path, position)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    position = Position(len(LINES), mark_of(head_of(path, 4096), len(LINES)))
    path.write_bytes(LINES[:20_000])
    with pytest.raises(Refused, match="was truncated"):
        list(reader(path, position).blocks())


def test_a_record_may_be_mended_at_the_position(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a":1}\n{broken\n')
    position = Position(8, mark_of(head_of(path, 4096), 8))
    path.write_bytes(b'{"a":1}\n{"a":2}\n')
    assert [block.data for block in reader(path, position).blocks()] == [b'{"a":2}\n']


def test_a_file_that_grew_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"one\n")
    (block,) = reader(path).blocks()
    path.write_bytes(b"one\ntwo\n")
    assert [b.data for b in reader(path, Position(block.end, reader(path).mark(block.end))).blocks()] == [b"two\n"]


def test_an_empty_file_has_no_blocks(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.touch()
    assert list(reader(path).blocks()) == []


def test_discovery_sorts_and_refuses_a_pattern_without_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "c.jsonl").mkdir()
    assert [path.name for path in discover(str(tmp_path / "*.jsonl"))] == ["a.jsonl", "b.jsonl"]
    with pytest.raises(ConfigError, match="matches no file"):
        discover(str(tmp_path / "*.csv"))


def test_line_numbers_count_from_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gz", LINES, "gz")
    assert [line_number(path, offset) for offset in (0, 7, 8, 9)] == [1, 1, 2, 2]


def test_a_small_file_may_grow_between_being_opened_and_being_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"one\n")
    opened = reader(path)
    path.write_bytes(b"one\n" + b"two\n" * 100)
    (block,) = opened.blocks()
    rest = reader(path, Position(block.end, opened.mark(block.end)))
    assert list(rest.blocks()) == []


def test_a_file_is_found_once_by_whatever_way_it_is_reached(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jsonl").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    expected = [tmp_path / "real" / "a.jsonl"]
    assert discover(str(tmp_path / "*" / "a.jsonl")) == expected
    assert discover(str(tmp_path / "real" / ".." / "link" / "a.jsonl")) == expected


def test_a_file_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "\udcff.jsonl").touch()
    with pytest.raises(ConfigError, match="not UTF-8"):
        discover(str(tmp_path / "*.jsonl"))

"""Whether lines are records is said alike by the check and by the decoder."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.engine.json import JsonLinesDecoder
from conveyord.engine.json.check import first_bad
from conveyord.engine.json.pieces import LEAF_BYTES

DECODER = JsonLinesDecoder()
GOOD = st.sampled_from(
    [b'{"a": 1}', b'{"a": 1.5, "b": "x"}', b'{"a": "2024-01-01T00:00:00Z"}', b'{"c": {"d": [1, null]}}', b"{}"]
    + [b'{"a": 1e400}', b'{"big": %d}' % 10**30, b'{"a": "%s"}' % (b"x" * 5_000), '{"ü": "é"}'.encode()]
)
BAD = st.sampled_from(
    [b"{", b"[1]", b"7", b'{"a": 1, "a": 2}', b'{"": 1}', b'{"a": NaN}', b'{"a": "\xff"}', b'{"a": "\\ud800"}']
    + [b"{} {}", b'{"a":' * 150 + b"1" + b"}" * 150, b'{"a": "\x00"}', b'{"a": 01}']
)


@given(st.lists(st.one_of(GOOD, GOOD, GOOD, GOOD, BAD), max_size=12), st.integers(0, 400), st.integers(0, 3))
def test_the_check_finds_what_the_decoder_finds_first(lines: list[bytes], before: int, times: int) -> None:
    """before: good lines on top, so that what follows is read in bulk."""
    block = b"\n".join([b'{"a": %d, "t": "%s"}' % (n, b"x" * 60) for n in range(before)] + lines * times)
    found = first_bad(block)
    for schema in (pa.schema([]), DECODER.infer(block, None)):
        bad = DECODER.decode(block, schema, None).bad
        assert found == (bad[0] if bad else None)


@pytest.mark.parametrize("size", [LEAF_BYTES - 100, LEAF_BYTES + 100, 3 * 1024 * 1024])
def test_one_bad_line_is_found_wherever_it_stands(size: int) -> None:
    good = b'{"a": 1, "b": "text", "c": [1, 2]}\n'
    count = size // len(good)
    for at in (0, count // 2, count - 1):
        found = first_bad(good * at + b'{"a": 1, "b": "text", "c": [1, 2}\n' + good * (count - at - 1))
        assert found is not None
        assert (found.offset, found.row, found.code) == (at * len(good), at, "MALFORMED_RECORD")
    assert first_bad(good * count) is None
    assert first_bad(b"") is None

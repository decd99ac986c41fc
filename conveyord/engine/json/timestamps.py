"""The one grammar of timestamps in JSON strings, for single values and for whole columns.

A timestamp is `YYYY-MM-DD`, `T` or a space, `HH:MM:SS`, up to six fractional digits, and either no
zone or `Z` or `+HH:MM` / `-HH:MM`. Seconds are needed, seven digits or more would lose some, and a
date alone is a string. With a zone the value is an instant; without one it is what the clock showed.
"""

from __future__ import annotations

import re
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_NAIVE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?"
_ZONE = r"(?:Z|[+-][0-9]{2}:[0-9]{2})"
# \A and \z for whole values: `$` would let a trailing line end through.
_COLUMN_PATTERNS = {False: rf"\A{_NAIVE}\z", True: rf"\A{_NAIVE}{_ZONE}\z"}
_VALUE = re.compile(r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?(Z|([+-])(\d\d):(\d\d))?", re.ASCII)
_SECONDS_LENGTH = len("YYYY-MM-DDTHH:MM:SS")
_FRACTION_LENGTHS = (_SECONDS_LENGTH + 2, _SECONDS_LENGTH + 7)
_EPOCH_DAY = date(1970, 1, 1).toordinal()
# A zone can move an instant by a day past year 1, which the two parsers need not treat alike.
_FIRST_MICROS = -62_135_510_400_000_000


def parse_timestamp(text: str) -> tuple[int, bool] | None:
    """Microseconds since the epoch, and whether the text had a zone; None if it is no timestamp."""
    match = _VALUE.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(part) for part in match.group(1, 2, 3, 4, 5, 6))
    if hour > 23 or minute > 59 or second > 59:
        return None
    try:
        days = date(year, month, day).toordinal() - _EPOCH_DAY
    except ValueError:
        return None
    micros = ((days * 24 + hour) * 60 + minute) * 60_000_000 + second * 1_000_000
    micros += int((match.group(7) or "").ljust(6, "0"))
    if match.group(9):
        zone_hours, zone_minutes = int(match.group(10)), int(match.group(11))
        if zone_hours > 23 or zone_minutes > 59:
            return None
        offset_micros = (zone_hours * 60 + zone_minutes) * 60_000_000
        micros -= offset_micros if match.group(9) == "+" else -offset_micros
    if micros < _FIRST_MICROS:
        return None
    return micros, match.group(8) is not None


def parse_column(texts: pa.StringArray, arrow_type: pa.TimestampType) -> pa.TimestampArray | None:
    """`texts` as `arrow_type`, nulls kept; None if any value is no timestamp of that type.

    Agrees with `parse_timestamp` on every value.
    """
    if not _is_uniform(texts, zoned=arrow_type.tz is not None):
        shaped = pc.match_substring_regex(texts, pattern=_COLUMN_PATTERNS[arrow_type.tz is not None])
        if pc.all(shaped).as_py() is False:
            return None
    try:
        parsed = texts.cast(arrow_type)
    except pa.ArrowInvalid:  # right in shape, but no such day or hour
        return None
    first = pc.min(parsed.view(pa.int64())).as_py()
    return None if first is not None and first < _FIRST_MICROS else parsed


def _is_uniform(texts: pa.StringArray, *, zoned: bool) -> bool:
    """Whether all values have the same layout, of the grammar's if Arrow can parse them at all.

    Four times cheaper than the pattern. Arrow also takes times without seconds and zones without a
    colon; a colon before the seconds and `Z` at the end leave only the layouts of the grammar.
    """
    lengths = pc.min_max(pc.binary_length(texts)).as_py()
    length = lengths["min"]
    if length is None or length != lengths["max"]:
        return False
    clock_length = length - 1 if zoned else length
    if clock_length != _SECONDS_LENGTH and not _FRACTION_LENGTHS[0] <= clock_length <= _FRACTION_LENGTHS[1]:
        return False
    offsets = np.frombuffer(texts.buffers()[1], np.int32)
    first, end = offsets[texts.offset], offsets[texts.offset + len(texts)]
    if end - first != (len(texts) - texts.null_count) * length:
        return False  # text behind nulls
    layout = np.frombuffer(texts.buffers()[2], np.uint8)[first:end].reshape(-1, length)
    colons = (layout[:, _SECONDS_LENGTH - 3] == ord(":")).all()
    return bool(colons and (not zoned or (layout[:, -1] == ord("Z")).all()))

"""Dates and times written in a given way, such as `%d.%m.%Y %H:%M`, brought to ISO 8601.

The directives are those of strptime. The text is only taken apart and put together again, by Arrow and for whole
columns; whether there is such a day and such an hour is decided where every ISO text is read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from conveyord.core.errors import ConfigError

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_FULL_MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december"
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FULL_DAYS = "monday|tuesday|wednesday|thursday|friday|saturday|sunday"
_TWO = "[0-9]{1,2}"
_DIRECTIVES = {
    "Y": "(?P<Y>[0-9]{4})",
    "y": "(?P<y>[0-9]{2})",
    "m": f"(?P<m>{_TWO})",
    "b": f"(?P<b>(?i:{'|'.join(_MONTHS)}))",
    "B": f"(?P<B>(?i:{_FULL_MONTHS}))",
    "d": f"(?P<d>{_TWO})",
    "H": f"(?P<H>{_TWO})",
    "I": "(?P<I>1[0-2]|0?[1-9])",
    "p": "(?P<p>(?i:am|pm))",
    "M": f"(?P<M>{_TWO})",
    "S": f"(?P<S>{_TWO})",
    "f": "(?P<f>[0-9]{1,6})",
    "z": "(?P<z>Z|[+-][0-9]{2}:?[0-9]{2})",
    "a": f"(?:(?i:{'|'.join(_DAYS)}))",
    "A": f"(?:(?i:{_FULL_DAYS}))",
    "%": "%",
}
_SHORT = {"%F": "%Y-%m-%d", "%T": "%H:%M:%S"}
_PART = re.compile(r"%(?P<directive>.)|(?P<literal>[^%]+)|(?P<lone>%)", re.DOTALL)
_PIVOT_YEAR = "69"  # as POSIX has it: 69 to 99 are of the last century
_CLOCK = [f"{hour:02}{half}" for half in ("am", "pm") for hour in (12, *range(1, 12))]
_HOURS = [f"{hour:02}" for hour in range(24)]


@dataclass(frozen=True, slots=True)
class TimeFormat:
    """One way to write a date, or a date and a time of day; `zoned` if with an offset from UTC.

    pattern: of the whole text, with a group for each directive.
    """

    pattern: str
    parts: frozenset[str]

    @property
    def zoned(self) -> bool:
        return "z" in self.parts

    @classmethod
    def parse(cls, text: str) -> TimeFormat:
        """Raises ConfigError for an unknown directive, and if no full date would follow from it."""
        expanded = _PART.sub(lambda part: _SHORT.get(part[0], part[0]), text)
        pattern, parts = "", []
        for part in _PART.finditer(expanded):
            directive = part["directive"]
            if part["literal"]:
                pattern += re.escape(part["literal"])
                continue
            if directive not in _DIRECTIVES:
                known = ", ".join(f"%{each}" for each in _DIRECTIVES)
                raise ConfigError(f"{text!r} has {part[0]!r}, which is no directive; known are {known}, %F and %T")
            pattern += _DIRECTIVES[directive]
            if directive not in "%aA":
                parts.append(directive)
        problem = _problem(parts)
        if problem is not None:
            raise ConfigError(f"{text!r} {problem}")
        return cls(rf"\A{pattern}\z", frozenset(parts))

    def iso(self, texts: pa.StringArray) -> pa.StringArray:
        """`texts` as `YYYY-MM-DDTHH:MM:SS.ffffff` and an offset if zoned; null for those not written so.

        What is not written is zero. The day and the hour need not exist.
        """
        found = pc.extract_regex(texts, pattern=self.pattern)
        group = dict(zip((field.name for field in found.type), found.flatten(), strict=True))
        two = {name: pc.utf8_lpad(group[name], 2, "0") for name in "mdHIMS" if name in group}
        year = group["Y"] if "Y" in group else _full_year(group["y"])
        month = two["m"] if "m" in two else _month(group["b" if "b" in group else "B"])
        hour = two.get("H", "00")
        if "I" in two:
            half_day = pc.binary_join_element_wise(two["I"], pc.utf8_lower(group["p"]), "")
            hour = pa.array(_HOURS).take(pc.index_in(half_day, pa.array(_CLOCK)))
        micros = pc.utf8_rpad(group["f"], 6, "0") if "f" in group else "000000"
        zone = ""
        if self.zoned:
            zone = pc.replace_substring_regex(group["z"], pattern=r"^([+-]..):?(..)$", replacement=r"\1:\2")
        day = (year, "-", month, "-", two["d"], "T")
        return pc.binary_join_element_wise(
            *day, hour, ":", two.get("M", "00"), ":", two.get("S", "00"), ".", micros, zone, ""
        )


def _problem(parts: list[str]) -> str | None:
    twice = next((part for place, part in enumerate(parts) if part in parts[:place]), None)
    if twice is not None:
        return f"has %{twice} twice"
    for choices in (("Y", "y"), ("m", "b", "B"), ("d",)):
        if sum(choice in parts for choice in choices) != 1:
            return f"must have {' or '.join(f'%{choice}' for choice in choices)} once, to name one day"
    if ("I" in parts) != ("p" in parts) or ("I" in parts and "H" in parts):
        return "must have either %H, or %I with %p"
    for finer, coarser in (("f", "S"), ("S", "M"), ("M", "HI")):
        if finer in parts and not any(part in parts for part in coarser):
            return f"has %{finer} without %{coarser[0]}"
    return None


def _full_year(years: pa.StringArray) -> pa.StringArray:
    century = pc.if_else(pc.greater_equal(years, _PIVOT_YEAR), "19", "20")
    return pc.binary_join_element_wise(century, years, "")


def _month(names: pa.StringArray) -> pa.StringArray:
    number = pc.index_in(pc.utf8_lower(pc.utf8_slice_codeunits(names, 0, 3)), pa.array(_MONTHS))
    return pa.array([f"{month:02}" for month in range(1, 13)]).take(number)

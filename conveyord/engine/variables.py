"""`${NAME}` and `${NAME:default}` in the values of definitions."""

from __future__ import annotations

import re
from collections.abc import Mapping

_VARIABLE = re.compile(r"(?P<escaped>\$\$\{)|\$\{(?P<inside>[^}]*)(?P<end>\}?)")
_INSIDE = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::(?P<default>.*))?", re.DOTALL)


class Variables:
    """Replaces variables by what `environ` says. `$${` stands for a plain `${`."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def __call__(self, text: str) -> str:
        """`text` with its variables replaced; what is put in is not looked at again.

        Raises ValueError with a sentence at a variable that is unset and has no default, or is no variable.
        """
        return _VARIABLE.sub(self._value, text)

    def _value(self, match: re.Match[str]) -> str:
        if match["escaped"]:
            return "${"
        inside = _INSIDE.fullmatch(match["inside"])
        if inside is None or not match["end"]:
            raise ValueError(
                f"not a variable: {match[0]!r}; write ${{NAME}} or ${{NAME:default}}, and $${{ for the characters ${{"
            )
        value: str | None = self._environ.get(inside["name"], inside["default"])
        if value is None:
            name = inside["name"]
            raise ValueError(
                f"the variable {name} is not set and has no default; set it in the environment or write "
                f"${{{name}:default}}"
            )
        return value

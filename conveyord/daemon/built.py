"""Which roles there are, and which of them can be started."""

from __future__ import annotations

from collections.abc import Collection

from conveyord.core.errors import ConfigError

BUILT = ("router",)
"""In the order of the alphabet."""


def check_roles(roles: Collection[str]) -> None:
    """Raise ConfigError if a role among these is not built yet."""
    missing = sorted(set(roles) - set(BUILT))
    if missing:
        is_one = len(missing) == 1
        raise ConfigError(
            f"the {'role' if is_one else 'roles'} {', '.join(missing)} {'is' if is_one else 'are'} not built yet; "
            f"this version of conveyord has {', '.join(BUILT)}: start it with --roles {','.join(BUILT)}"
        )

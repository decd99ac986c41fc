"""A group of commands that has a verb for command lines that name none."""

from __future__ import annotations

import click


class DefaultVerb(click.Group):
    """`conveyord --roles router` means `conveyord start --roles router`.

    Without any argument it shows its help, wherever it stands: nobody is to found a cluster by a name typed to see
    what it is.
    """

    verb = "start"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the verb before options that are not the group's own."""
        own = {name for parameter in self.get_params(ctx) for name in (*parameter.opts, *parameter.secondary_opts)}
        if args and args[0].startswith("-") and args[0].partition("=")[0] not in own:
            args = [self.verb, *args]
        return super().parse_args(ctx, args)

"""`completion`: what makes a shell complete verbs and options."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete this command's verbs, options and choices.

    \b
    bash: eval "$(conveyorctl completion bash)" in ~/.bashrc (bash 4.4 or newer)
    zsh:  eval "$(conveyorctl completion zsh)" in ~/.zshrc
    fish: conveyorctl completion fish > ~/.config/fish/completions/conveyorctl.fish
    """
    from click.shell_completion import get_completion_class

    root = context.find_root()
    name = root.info_name or "conveyorctl"
    kind = get_completion_class(shell)
    assert kind is not None, shell
    click.echo(kind(root.command, {}, name, f"_{name.upper()}_COMPLETE").source())

"""``trivisor completion SHELL``: print the shell code that completes commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from voter.commands.terminal import CommandError

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the code with which SHELL completes trivisor's commands and options.

    For example, in ~/.bashrc:  eval "$(trivisor completion bash)"
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise CommandError(f"click has no completion for {shell}")
    root = ctx.find_root()
    click.echo(kind(root.command, {}, "trivisor", "_TRIVISOR_COMPLETE").source())

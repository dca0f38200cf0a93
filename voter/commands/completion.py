"""``trivisor completion SHELL``: print the shell code that completes commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the code with which SHELL completes trivisor's commands and options.

    For example, in ~/.bashrc:  eval "$(trivisor completion bash)"
    """
    kind = get_completion_class(shell)
    assert kind is not None, "the argument's choices are the shells that click knows"
    root = ctx.find_root()
    click.echo(kind(root.command, {}, "trivisor", "_TRIVISOR_COMPLETE").source())

"""``trivisor token``: the file of tokens that a voter accepts.

The format is that of ``voter.access``.  A change replaces the file atomically, with its mode and
owner, and a running voter reads it within a second.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import click

from voter.access import NAME, digest_of, read_tokens
from voter.commands.parameters import existing_file, output_file
from voter.commands.terminal import CommandError, ExitCode, print_json, warn
from voter.errors import TokensError

__all__ = ["PREFIX", "token"]

PREFIX = "tvt_"
"""The start of a token, by which a leaked one can be searched for."""
_HEADER = "# Clients' tokens, written by `trivisor token`: NAME SHA-256 DATE\n"


class _Name(click.ParamType[str]):
    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name."""
        if not re.fullmatch(NAME, value):
            self.fail(f"{value!r} is not a name: 1 to 64 letters, digits, '.', '_', '-', '@'")
        return value


@click.group()
def token() -> None:
    """Make, list and revoke the tokens that clients need.

    For example:  trivisor token add billing --tokens tokens > billing.token
    """


@token.command()
@click.argument("name", type=_Name())
@click.option("--tokens", type=output_file(), required=True, help="The file of tokens.")
def add(name: str, tokens: Path) -> None:
    """Make a token for the client NAME, and print it: it is shown only now."""
    secret = PREFIX + secrets.token_urlsafe(32)
    with _changing(tokens) as lines:
        if name in _names(tokens):
            raise CommandError(
                f"{tokens} has a token of {name} already",
                remedy=f"revoke it first: `trivisor token revoke {name} --tokens {tokens}`",
                code=ExitCode.USAGE,
                error_code="TV0975",
            )
        date = time.strftime("%Y-%m-%d", time.gmtime())
        lines.append(f"{name} {digest_of(secret.encode()).hex()} {date}\n")
    click.echo(secret)
    warn(f"added {name}; the token above is stored nowhere: keep it secret")


@token.command(name="list")
@click.option("--tokens", type=existing_file(), required=True, help="The file of tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def list_tokens(tokens: Path, as_json: bool) -> None:
    """Print the names that have a token."""
    names = _names(tokens)
    if as_json:
        print_json({"names": names})
    elif names:
        click.echo("\n".join(names))


@token.command()
@click.argument("name", type=_Name())
@click.option("--tokens", type=existing_file(), required=True, help="The file of tokens.")
def revoke(name: str, tokens: Path) -> None:
    """Revoke the token of NAME: a running voter refuses it within a second."""
    with _changing(tokens) as lines:
        if name not in _names(tokens):
            raise CommandError(
                f"{tokens} has no token of {name}",
                remedy=f"`trivisor token list --tokens {tokens}` shows the names",
                code=ExitCode.USAGE,
                error_code="TV0975",
            )
        lines[:] = [line for line in lines if line.split(maxsplit=1)[:1] != [name]]
    warn(f"revoked {name}")


def _names(path: Path) -> list[str]:
    return sorted(read_tokens(path).values()) if path.exists() else []


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[list[str]]:
    """Give the file's lines, and write them back at the end of the block unless it raises.

    Only one process at a time does that: the directory is locked.  Raises TokensError.
    """
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            lines = [_HEADER]
            status = None
            if path.exists():
                read_tokens(path)  # what is not such a file stays as it is
                lines = [f"{line}\n" for line in path.read_text(encoding="ascii").splitlines()]
                status = path.stat()
            yield lines
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with open(descriptor, "w") as file:
                    if status is not None:
                        os.fchown(descriptor, status.st_uid, status.st_gid)
                        os.fchmod(descriptor, status.st_mode & 0o777)
                    file.writelines(lines)
                    file.flush()
                    os.fsync(descriptor)
                temporary.rename(path)
            except BaseException:
                temporary.unlink()
                raise
        finally:
            os.close(directory)
    except OSError as error:
        raise TokensError(f"cannot change {path}: {error.strerror}") from error

"""``trivisor request METHOD PATH``: send one request through the vote."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING

import click

from guests.function import read_key
from voter.client import Answer, Client
from voter.client.errors import ConnectionFailed, Unauthorized
from voter.commands.parameters import (
    DAY,
    Header,
    Method,
    NativeAddress,
    Number,
    Target,
    existing_file,
    node_directory,
)
from voter.commands.terminal import (
    CommandError,
    ExitCode,
    default_directory,
    native_socket,
    operator_hint,
    print_json,
    warn,
)

if TYPE_CHECKING:
    import ssl

__all__ = ["request"]


def _read_body(text: str) -> bytes:
    """Return the body that ``--data`` names: the text, or after @ a file (@-: standard input)."""
    if not text.startswith("@"):
        return text.encode("utf-8", "surrogateescape")
    try:
        return sys.stdin.buffer.read() if text == "@-" else Path(text[1:]).read_bytes()
    except OSError as error:
        raise click.UsageError(f"--data {text}: {error.strerror}") from error


def _tls(
    address: str, ca: Path | None, certificate: Path | None, key: Path | None
) -> ssl.SSLContext | None:
    """Return the TLS context that the options mean.  Raises ConfigError, click.UsageError."""
    if ca is None:
        if certificate or key:
            raise click.UsageError(
                "--tls-certificate and --tls-key need --tls-ca, the certificates to trust"
            )
        return None
    if key is not None and certificate is None:
        raise click.UsageError("--tls-key needs --tls-certificate")
    from voter.tls import client_context  # noqa: PLC0415

    return client_context(ca, certificate, key) if address.startswith("tcp:") else None


def _read_token(path: Path) -> str:
    """Return the token in a file: its only line.  Raises click.UsageError."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--token-file {path}: {error}") from error
    if not text or len(text.split()) != 1:
        raise click.UsageError(f"--token-file {path}: it must hold one token, and nothing else")
    return text


async def _ask(
    connecting: Coroutine[None, None, Client],
    method: str,
    path: str,
    body: bytes,
    headers: list[tuple[str, str]],
    timeout: float,
) -> tuple[Answer, str, list[str]]:
    async with await connecting as client:
        answer = await client.request(method, path, body, headers, timeout=timeout)
        return answer, client.server.vote, client.dissenters(answer.vote)


@click.command()
@click.argument("method", type=Method(), metavar="METHOD")
@click.argument("path", type=Target(), metavar="PATH")
@click.option("--data", default="", help="The body; @FILE takes it from a file, @- from stdin.")
@click.option(
    "--header", "-H", "headers", type=Header(), multiple=True, help="A header, as 'Name: value'."
)
@click.option("--dir", "directory", type=node_directory(), help="The node's directory.")
@click.option(
    "--to",
    type=NativeAddress(),
    help="A voter's native address instead of --dir: unix:PATH or tcp:HOST:PORT.",
)
@click.option("--key", type=existing_file(), help="Sign the request with the key in this file.")
@click.option(
    "--tls-ca",
    type=existing_file(),
    envvar="TRIVISOR_TLS_CA",
    help="Use TLS, and trust the certificates in this file (PEM).",
)
@click.option(
    "--tls-certificate",
    type=existing_file(),
    envvar="TRIVISOR_TLS_CERTIFICATE",
    help="The client's own certificate (PEM), for a voter that asks for one.",
)
@click.option(
    "--tls-key",
    type=existing_file(),
    envvar="TRIVISOR_TLS_KEY",
    help="Its private key (PEM; default: in the same file).",
)
@click.option(
    "--token-file",
    type=existing_file(),
    envvar="TRIVISOR_TOKEN_FILE",
    help="A file with the client's token, for a voter that asks for one.",
)
@click.option(
    "--timeout",
    type=Number(0, DAY, "seconds", above=True),
    default=30.0,
    show_default=True,
    help="Seconds to wait for the reply.",
)
@click.option("--no-retry", is_flag=True, help="Send it once; report the first failure.")
@click.option("--fail", is_flag=True, help="Exit with 1 if the status is 400 or above.")
@click.option("--include", "-i", is_flag=True, help="Print status, headers and vote to stderr.")
@click.option("--json", "as_json", is_flag=True, help="The reply and its vote as JSON.")
def request(  # noqa: PLR0913 - one for each option
    method: str,
    path: str,
    data: str,
    headers: tuple[tuple[str, str], ...],
    directory: Path | None,
    to: str | None,
    key: Path | None,
    tls_ca: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    token_file: Path | None,
    timeout: float,
    no_retry: bool,
    fail: bool,
    include: bool,
    as_json: bool,
) -> int:
    """Send METHOD PATH through the vote; print the voted reply's body.

    For example:  trivisor request PUT /kv/colour --data blue

    If the voter restarts, has no majority or does not know the outcome, the command retries until
    the timeout; the request is executed once however often it is sent.  For the same guarantee over
    several runs of a client, use HTTP with an Idempotency-Key.

    Exit with 3 if the voter still refuses at the timeout, or does not know the outcome.
    """
    address = to or f"unix:{native_socket((directory or default_directory()).absolute())}"
    if to is not None and directory is not None:
        raise click.UsageError("--to and --dir both name a voter: give one of them")
    if any(name.lower() == "idempotency-key" for name, _ in headers):
        warn(
            "warning TV0318: Idempotency-Key has an effect over HTTP only; "
            "here only the service sees it"
        )
    try:
        answer, policy, dissenters = asyncio.run(
            _ask(
                Client.connect(
                    address,
                    retry=not no_retry,
                    key=read_key(key) if key else b"",
                    tls=_tls(address, tls_ca, tls_certificate, tls_key),
                    token=_read_token(token_file) if token_file else "",
                ),
                method,
                path,
                _read_body(data),
                list(headers),
                timeout,
            )
        )
    except ConnectionFailed as error:
        raise CommandError(
            str(error),
            remedy=f"`trivisor status` shows whether a node runs there{operator_hint()}"
            + ("; if it speaks TLS, give --tls-ca" if address[:4] == "tcp:" and not tls_ca else ""),
            code=ExitCode.NOT_UP,
            error_code=error.error_code,
        ) from error
    except Unauthorized as error:
        raise CommandError(
            str(error),
            remedy="give the token that `trivisor token add` printed, in a file: --token-file",
            code=ExitCode.USAGE,
            error_code=error.error_code,
        ) from error
    except TimeoutError:
        warn(f"error TV0304: no reply within {timeout:g} s; the request may still be executed")
        return ExitCode.NO_MAJORITY
    vote = {
        "policy": policy,
        "seq": answer.vote.seq,
        "agreed": answer.vote.agreed,
        "dissent": dissenters,
    }
    if as_json:
        try:
            body: dict[str, str] = {"body": answer.body.decode()}
        except UnicodeDecodeError:
            body = {"body_hex": answer.body.hex()}
        print_json({"status": answer.status, "headers": answer.headers, "vote": vote} | body)
    else:
        if include:
            lines = [
                f"status {answer.status}",
                *(f"{name}: {value}" for name, value in answer.headers),
            ]
            warn("\n".join([*lines, f"vote {json.dumps(vote, allow_nan=False)}"]))
        sys.stdout.buffer.write(answer.body)
        sys.stdout.buffer.flush()
    return ExitCode.FAILED if fail and answer.status >= 400 else ExitCode.OK

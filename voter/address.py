"""Addresses: ``unix:PATH``, ``tcp:HOST:PORT``, ``exec:COMMAND`` (a replica as a local process)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from voter.errors import AddressError

if TYPE_CHECKING:
    import ssl

__all__ = ["Address", "Connector", "check_unix_path", "connect", "parse_address", "split_host_port"]

_LABEL = r"[\w-]{1,63}"
_HOST_PORT = re.compile(
    rf"(?:\[([\da-fA-F:.]+(?:%[\w.-]+)?)\]|((?:{_LABEL}\.)*{_LABEL}\.?)):(\d{{1,5}})", re.ASCII
)
UNIX_PATH_MAX = 107
"""Longest path of a unix socket in bytes (Linux: sun_path holds 108 with the final zero)."""


class Connector(Protocol):
    """Opens the transport of a link; the simulation has its own."""

    async def __call__(
        self, address: Address, factory: Callable[[], asyncio.Protocol]
    ) -> asyncio.BaseTransport:
        """Connect ``factory()`` to ``address``.  Raises OSError."""


class Address(NamedTuple):
    """A parsed link address: ``kind`` is unix, tcp or exec; ``text`` is what was given."""

    text: str
    kind: str
    path: str = ""
    host: str = ""
    port: int = 0
    command: tuple[str, ...] = ()


def split_host_port(text: str, *, lowest: int = 0) -> tuple[str, int]:
    """Split ``HOST:PORT`` or ``[IPV6]:PORT``; a port below ``lowest`` is an error.

    Whether there is such a host is not checked.  Raises AddressError.
    """
    match = _HOST_PORT.fullmatch(text)
    if not match or not lowest <= int(match[3]) <= 65535:
        raise AddressError(f"{text!r} is not HOST:PORT or [IPV6]:PORT, port {lowest} to 65535")
    return match[1] or match[2], int(match[3])


def check_unix_path(path: str) -> None:
    """Raise AddressError if ``path`` does not fit into a unix socket address."""
    if "\0" in path:
        raise AddressError(f"unix socket path {path!r} contains a null character")
    size = len(os.fsencode(path))
    if size > UNIX_PATH_MAX:
        raise AddressError(
            f"unix socket path {path!r} is {size - UNIX_PATH_MAX} bytes too long "
            f"(at most {UNIX_PATH_MAX}): use a shorter directory"
        )


def parse_address(text: str) -> Address:
    """Read a link address.  Raises AddressError."""
    kind, colon, rest = text.partition(":")
    if not colon or not rest or kind not in ("unix", "tcp", "exec"):
        raise AddressError(f"link {text!r}: write unix:PATH, tcp:HOST:PORT or exec:COMMAND")
    if kind == "unix":
        check_unix_path(rest)
        return Address(text, kind, path=rest)
    if kind == "tcp":
        host, port = split_host_port(rest, lowest=1)
        return Address(text, kind, host=host, port=port)
    try:
        command = tuple(shlex.split(rest))
    except ValueError as error:
        raise AddressError(f"link {text!r}: {error}") from error
    if not command:
        raise AddressError(f"link {text!r}: no command")
    return Address(text, kind, command=command)


async def connect(
    address: Address,
    factory: Callable[[], asyncio.Protocol],
    *,
    tls: ssl.SSLContext | None = None,
) -> asyncio.BaseTransport:
    """Connect to an address with asyncio; with ``tls``, encrypted on TCP.  Raises OSError."""
    loop = asyncio.get_running_loop()
    if address.kind == "unix":
        return (await loop.create_unix_connection(factory, address.path))[0]
    if address.kind == "tcp":
        transport, _ = await loop.create_connection(factory, address.host, address.port, ssl=tls)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return transport
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            # Blocks until exec has succeeded or failed: milliseconds, when a replica starts.
            process = subprocess.Popen(  # noqa: ASYNC220
                address.command, stdin=theirs.fileno(), stdout=theirs.fileno(), process_group=0
            )
        except OSError:
            ours.close()
            raise
    ours.setblocking(False)
    made = loop.create_connection(lambda: _ProcessProtocol(factory(), process), sock=ours)
    return (await made)[0]


class _ProcessProtocol(asyncio.Protocol):
    """Forwards everything; kills the process and its children when the connection ends."""

    def __init__(self, inner: asyncio.Protocol, process: subprocess.Popen[bytes]) -> None:
        self._inner = inner
        self._process = process
        self.connection_made = inner.connection_made  # type: ignore[method-assign]
        self.data_received = inner.data_received  # type: ignore[method-assign]
        self.pause_writing = inner.pause_writing  # type: ignore[method-assign]
        self.resume_writing = inner.resume_writing  # type: ignore[method-assign]

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: kill the process, reap it in a thread, and notify the inner protocol."""
        # Not reaped yet, so the id of its group cannot be reused.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        asyncio.get_running_loop().run_in_executor(None, self._process.wait)
        self._inner.connection_lost(exc)

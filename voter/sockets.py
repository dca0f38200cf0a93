"""Listening sockets: inherited (the LISTEN_FDS convention) or made here."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Mapping

from voter.address import check_unix_path, split_host_port
from voter.config import Listen
from voter.errors import AddressError

__all__ = ["BACKLOG", "FIRST_FD", "inherited", "listen_tcp", "listen_unix", "listening"]

FIRST_FD = 3
"""Number of the first descriptor that LISTEN_FDS hands over (sd_listen_fds(3))."""
BACKLOG = 4096
"""Connections that may wait to be accepted; the kernel rejects more."""


def inherited(environment: Mapping[str, str]) -> dict[str, socket.socket]:
    """Return the sockets passed to this process, by their LISTEN_FDNAMES name.

    Empty if there are none, or if LISTEN_PID names another process.  Raises AddressError if
    LISTEN_FDS is not a number.
    """
    if environment.get("LISTEN_PID", str(os.getpid())) != str(os.getpid()):
        return {}
    count = environment.get("LISTEN_FDS", "0")
    if not count.isdecimal():
        raise AddressError(f"LISTEN_FDS is {count!r}, which is not a number of sockets")
    number = int(count)
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    return {
        name: socket.socket(fileno=FIRST_FD + at)
        for at, name in zip(range(number), names, strict=False)
    }


def listen_tcp(address: str) -> socket.socket:
    """Listen on HOST:PORT.  Raises AddressError."""
    host, port = split_host_port(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise AddressError(
            f"cannot listen on {address}: {error.strerror or error}; choose another port"
        ) from error
    sock.setblocking(False)
    return sock


def listen_unix(path: str) -> socket.socket:
    """Listen on a unix socket that only its owner can open (mode 0600).

    A socket file without a listener is removed first.  Raises AddressError.
    """
    check_unix_path(path)
    try:
        _remove_dead(path)
    except OSError as error:
        raise AddressError(f"cannot listen on {path}: {error.strerror or error}") from error
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise AddressError(f"cannot listen on {path}: {error.strerror or error}") from error
    finally:
        os.umask(before)
    sock.setblocking(False)
    return sock


def _remove_dead(path: str) -> None:
    """Remove a socket file without a listener.  Raises AddressError, OSError."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise AddressError(f"{path} is there and is not a socket: move it away")
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(path) == 0:
                raise AddressError(f"somebody already listens on {path}")
        os.unlink(path)


def listening(listen: Listen, environment: Mapping[str, str]) -> dict[str, socket.socket]:
    """Return all listening sockets by name (http, native, native-unix, control).

    An inherited socket takes precedence over the configuration.  Raises AddressError.
    """
    sockets = inherited(environment)
    try:
        for name, address, listen_on in (
            ("http", listen.http, listen_tcp),
            ("native", listen.native, listen_tcp),
            ("native-unix", listen.native_unix, listen_unix),
            ("control", listen.control, listen_unix),
        ):
            if address and name not in sockets:
                sockets[name] = listen_on(address)
    except AddressError:
        for sock in sockets.values():
            sock.close()
        raise
    return sockets

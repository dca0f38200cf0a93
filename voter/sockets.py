"""Listening sockets: inherited (the LISTEN_FDS convention) or made here."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from voter.address import check_unix_path, split_host_port
from voter.config import Listen
from voter.errors import AddressError, InheritedError, ListenError

__all__ = [
    "BACKLOG",
    "FIRST_FD",
    "KINDS",
    "Listening",
    "Peer",
    "Trusted",
    "inherited",
    "listen_tcp",
    "listen_unix",
    "listening",
    "origin_of",
    "peer_of",
]

FIRST_FD = 3
"""Number of the first descriptor that LISTEN_FDS hands over (sd_listen_fds(3))."""
BACKLOG = 4096
"""Connections that may wait to be accepted; the kernel rejects more."""
_STREAMS = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
KINDS: dict[str, tuple[socket.AddressFamily, ...]] = {
    "http": _STREAMS, "native": _STREAMS,
    "native-unix": (socket.AF_UNIX,), "control": (socket.AF_UNIX,),
}  # fmt: skip
"""Kinds of socket by name.  The control socket trusts whoever can open it: never from a network."""


def inherited(environment: Mapping[str, str]) -> list[tuple[str, socket.socket]]:
    """Return the sockets passed to this process, each with its name of LISTEN_FDNAMES.

    Empty if there are none, or if LISTEN_PID names another process.  Several may have one name.
    Raises AddressError if the variables do not fit together, or a descriptor is not a socket.
    """
    pid = _number("LISTEN_PID", environment.get("LISTEN_PID", str(os.getpid())))
    if pid != os.getpid():
        return []
    number = _number("LISTEN_FDS", environment.get("LISTEN_FDS", "0"))
    names = environment.get("LISTEN_FDNAMES", "").split(":") if number else []
    if len(names) != number or "" in names:
        raise InheritedError(
            f"LISTEN_FDNAMES is {':'.join(names)!r}, which does not name {number} sockets: "
            "write one name for each, with : between them"
        )
    sockets = []
    for fd, name in enumerate(names, FIRST_FD):
        try:
            sockets.append((name, socket.socket(fileno=fd)))
        except OSError as error:
            _close(sockets)
            text = f"inherited descriptor {fd} ({name!r}) is not a socket: {error.strerror}"
            raise InheritedError(text) from error
    return sockets


def _number(variable: str, value: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", value):
        raise InheritedError(f"{variable} is {value!r}, which is not a number")
    return int(value)


def _close(sockets: Iterable[tuple[str, socket.socket]]) -> None:
    for _, sock in sockets:
        sock.close()


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
        raise ListenError(
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
        raise ListenError(f"cannot listen on {path}: {error.strerror or error}") from error
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenError(f"cannot listen on {path}: {error.strerror or error}") from error
    finally:
        os.umask(before)
    sock.setblocking(False)
    return sock


def _remove_dead(path: str) -> None:
    """Remove a socket file without a listener.  Raises AddressError, OSError."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise AddressError(
                f"{path} is there and is not a socket: move it away", error_code="TV0204"
            )
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(path) == 0:
                raise ListenError(f"somebody already listens on {path}")
        os.unlink(path)


def _check(name: str, sock: socket.socket) -> None:
    """Raise AddressError if the voter cannot serve an inherited socket."""
    families = KINDS.get(name)
    if families is None:
        known = ", ".join(KINDS)
        raise InheritedError(f"inherited socket {name!r}: the voter serves only {known}")
    stream = sock.type == socket.SOCK_STREAM
    if not stream or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise InheritedError(f"inherited socket {name!r} is not a stream socket that listens")
    if sock.family not in families:
        kinds = " or ".join(family.name for family in families)
        raise InheritedError(
            f"inherited socket {name!r} is {sock.family.name}, and must be {kinds}"
        )


class Peer(NamedTuple):
    """The process that connected to a unix socket, as the kernel reported it at that moment."""

    pid: int
    uid: int
    groups: frozenset[int]


def peer_of(sock: socket.socket) -> Peer:
    """Return the process at the other end of a unix socket.  Raises OSError."""
    size = _CREDENTIALS.size
    pid, uid, gid = _CREDENTIALS.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )
    groups = b""
    with contextlib.suppress(OSError):  # a user with more groups has only the first
        groups = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUP.size * MOST_GROUPS)
    return Peer(pid, uid, frozenset([gid, *(each for (each,) in _GROUP.iter_unpack(groups))]))


_CREDENTIALS = struct.Struct("3i")
_GROUP = struct.Struct("I")
_SO_PEERGROUPS = 59
"""Linux 4.13; Python has no name for it."""
MOST_GROUPS = 256
"""Groups of a user that are read: Python's limit on such an option is 1,024 bytes."""


class Trusted(NamedTuple):
    """Who may use a control socket: root, this process's user, the owner of the socket's file, and
    the file's group if it could connect when the socket was made.

    The kernel checks the file's mode.  This is a second lock, for a file that somebody opens up.
    """

    uids: frozenset[int]
    group: int | None

    @classmethod
    def of(cls, sock: socket.socket) -> Trusted:
        """Return who may use a listening socket; root and this user only if its file is gone."""
        found = None
        with contextlib.suppress(OSError, ValueError):
            found = os.stat(sock.getsockname())
        uids = {0, os.geteuid()} | ({found.st_uid} if found is not None else set())
        shared = found is not None and found.st_mode & stat.S_IWGRP
        return cls(frozenset(uids), found.st_gid if found is not None and shared else None)

    def admits(self, peer: Peer) -> bool:
        """Return whether a process may use it."""
        return peer.uid in self.uids or self.group in peer.groups

    def __str__(self) -> str:
        """Return who may use it, for a message."""
        users = ", ".join(f"uid {uid}" for uid in sorted(self.uids - {0}))
        return f"root{', ' * bool(users)}{users}" + (
            f" and the group with gid {self.group}" if self.group is not None else ""
        )


def origin_of(sock: socket.socket) -> str:
    """Return who connected, for limits on clients: ``uid:N``, an IPv4 address or an IPv6 network.

    One client usually has all 2**64 addresses of an IPv6 network.
    """
    if sock.family == socket.AF_UNIX:
        return f"uid:{peer_of(sock).uid}"
    host: str = sock.getpeername()[0]
    if sock.family != socket.AF_INET6:
        return host
    return socket.inet_ntop(
        socket.AF_INET6, socket.inet_pton(socket.AF_INET6, host.partition("%")[0])[:8] + bytes(8)
    )


class Listening(NamedTuple):
    """All listening sockets, each with its name, and the files of the unix sockets made here."""

    sockets: list[tuple[str, socket.socket]]
    made: list[tuple[str, os.stat_result]]

    def remove_files(self) -> None:
        """Remove the files, unless another process has made a socket at the path since."""
        for path, before in self.made:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), before):
                    os.unlink(path)


def listening(listen: Listen, environment: Mapping[str, str]) -> Listening:
    """Return all listening sockets (http, native, native-unix, control).

    An inherited socket takes precedence over the configuration.  Raises AddressError.
    """
    sockets = inherited(environment)
    result = Listening(sockets, [])
    try:
        for name, sock in sockets:
            _check(name, sock)
        names = {name for name, _ in sockets}
        for name, address, listen_on in (
            ("http", listen.http, listen_tcp),
            ("native", listen.native, listen_tcp),
            ("native-unix", listen.native_unix, listen_unix),
            ("control", listen.control, listen_unix),
        ):
            if address and name not in names:
                sockets.append((name, listen_on(address)))
                if listen_on is listen_unix:
                    result.made.append((address, os.stat(address)))
    except AddressError:
        _close(sockets)
        result.remove_files()
        raise
    return result

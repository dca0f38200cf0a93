"""Run commands inside a guest that allows faults.

Each node has its own two key pairs.  One identifies its guests: the client compares the host key
and talks to no other host.  The other authenticates the node's owner.  A guest's SSH server is
reached through one port of the host's loopback.  The guest has no other network, and can reach
nothing through this one.

A connection does not survive a `loadvm`: call `GuestShell.disconnect`, and the next command
connects again.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import logging
import random
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from deploy.errors import CannotRunHere, DeployError
from deploy.host.install import require_libraries
from guests.image import Access

if TYPE_CHECKING:
    from paramiko import Channel, Transport

__all__ = [
    "CommandResult",
    "GuestShell",
    "NodeKeys",
    "ShellFailed",
    "free_ports",
    "make_keys",
    "require_ssh",
]

TIMEOUT = 10.0
"""Seconds for a connection or a command; 0.2 and 0.05 are usual under TCG."""

_LARGEST = 1 << 20
"""Bytes of output that a command may print; more is an error."""

_KIND = "ssh-ed25519"

# Below the ports that the kernel assigns automatically (32768 and up): no other program's outgoing
# connection can have a guest's port when its QEMU is restarted.
_PORTS = range(20_000, 32_000)


class ShellFailed(DeployError):
    """The connection to a guest failed, its host key was wrong, or it did not answer in time."""

    error_code = "TV0115"


class NodeKeys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node's keys.

    `client` is the private key that its guests accept (OpenSSH's format), `host` the guests' public
    host key, `access` the keys that go into their image.
    """

    client: str
    host: str
    access: Access


class CommandResult(NamedTuple):
    """A command's exit status and its output, stdout and stderr together."""

    status: int
    out: str


def require_ssh() -> None:
    """Raise CannotRunHere without paramiko; called before guests are started."""
    require_libraries("paramiko", purpose="faults inside guests")


def make_keys() -> NodeKeys:
    """Return new keys for a node.  Raises CannotRunHere without paramiko."""
    require_ssh()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415 - slow to load
        Ed25519PrivateKey,
    )
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415 - slow to load
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    client, host = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    public = host.public_key().public_bytes_raw()
    return NodeKeys(
        client=client.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode(),
        host=host.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(),
        access=Access(
            # Dropbear's format: the key type, then private and public key as one string.
            host=_field(_KIND.encode()) + _field(host.private_bytes_raw() + public),
            client=client.public_key()
            .public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
            .decode(),
        ),
    )


def free_ports(count: int) -> tuple[int, ...]:
    """Return `count` free TCP ports of the loopback.  Raises CannotRunHere.

    They are random, so that two nodes that start at the same time hardly ever choose the same.
    """
    found: list[int] = []
    with contextlib.ExitStack() as sockets:
        for port in random.sample(_PORTS, len(_PORTS)):
            if len(found) == count:
                break
            listener = sockets.enter_context(socket.socket())
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue  # in use
            found.append(port)
    if len(found) < count:
        raise CannotRunHere(
            f"no {count} free TCP ports from {_PORTS.start} to {_PORTS.stop - 1} on the loopback",
            remedy="list the listening programs: `ss -ltn`",
            error_code="TV0116",
        )
    return tuple(found)


class GuestShell:
    """Runs commands in one guest, as root.  Connects at the first command."""

    def __init__(self, name: str, *, port: int, keys: NodeKeys) -> None:
        self.name = name
        self._port = port
        self._keys = keys
        self._transport: Transport | None = None
        self._connecting = asyncio.Lock()
        self._closing: set[asyncio.Future[None]] = set()

    async def run(
        self, command: str, *, stdin: bytes = b"", timeout: float = TIMEOUT
    ) -> CommandResult:
        """Run a command with the guest's `sh` and wait for its end.  Raises ShellFailed.

        The command starts at most once.  If the connection breaks before the command was sent, a
        new one is made.  If it breaks later, the command may or may not have run.
        """
        deadline = time.monotonic() + timeout
        channel = await self._channel(deadline)
        work = asyncio.ensure_future(asyncio.to_thread(_execute, channel, command, stdin, deadline))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            channel.close()  # ends the thread's wait
            await asyncio.wait([work])
            work.exception()
            raise
        except (_Broken, TimeoutError) as error:
            self.disconnect()
            late = isinstance(error, TimeoutError)
            why = f"not finished after {timeout:g} s" if late else f"the connection broke: {error}"
            raise ShellFailed(f"guest {self.name}, `{command[:80]}`: {why}") from error

    def disconnect(self) -> None:
        """Close the connection without waiting: a restored guest no longer knows it."""
        transport, self._transport = self._transport, None
        if transport is not None:
            self._end(transport)

    async def close(self) -> None:
        """Close the connection; `run` makes another."""
        self.disconnect()
        if self._closing:
            await asyncio.wait(set(self._closing))

    async def _channel(self, deadline: float) -> Channel:
        """Return a new channel, through a new connection if the current one is dead."""
        while True:
            fresh = self._transport is None
            transport = await self._connected(deadline - time.monotonic())
            left = max(deadline - time.monotonic(), 0.001)
            try:
                # A restored guest answers an old connection with a reset at once.
                return await asyncio.to_thread(_open_channel, transport, left)
            except _Broken as error:
                if self._transport is transport:
                    self.disconnect()
                if fresh or time.monotonic() > deadline:
                    raise ShellFailed(
                        f"guest {self.name} accepts no command by SSH: {error}"
                    ) from error

    async def _connected(self, timeout: float) -> Transport:
        async with self._connecting:
            if self._transport is not None and not self._transport.is_active():
                self.disconnect()
            if self._transport is None:
                work = asyncio.ensure_future(
                    asyncio.to_thread(_connect, self._port, self._keys, timeout)
                )
                try:
                    self._transport = await asyncio.shield(work)
                except asyncio.CancelledError:
                    work.add_done_callback(self._end_unused)
                    raise
                except _Broken as error:
                    raise ShellFailed(
                        f"no SSH connection to guest {self.name} at port {self._port}: {error}",
                        remedy="check that it runs and that its node was started with faults "
                        "allowed inside",
                    ) from error
            return self._transport

    def _end_unused(self, work: asyncio.Future[Transport]) -> None:
        """Close a connection that was made after its caller was cancelled."""
        if not work.cancelled() and work.exception() is None:
            self._end(work.result())

    def _end(self, transport: Transport) -> None:
        # In a thread, because it waits for another one: 0.1 s.
        ending = asyncio.get_running_loop().run_in_executor(None, transport.close)
        self._closing.add(ending)
        ending.add_done_callback(self._closing.discard)


# ---- paramiko, in threads


class _Broken(Exception):
    """Any error of paramiko and the sockets: the connection does not work, and why."""


def _connect(port: int, keys: NodeKeys, timeout: float) -> Transport:
    """Connect, compare the guest's host key with the pinned one, authenticate."""
    import paramiko  # noqa: PLC0415 - slow to load

    # Its threads log broken connections as tracebacks; the caller gets an error anyway.
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    deadline = time.monotonic() + timeout
    pinned = base64.b64decode(keys.host.split()[1])
    try:
        with contextlib.ExitStack() as undo:
            plain = socket.create_connection(("127.0.0.1", port), timeout=timeout)
            undo.callback(plain.close)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            transport = paramiko.Transport(plain)
            undo.callback(transport.close)
            transport.get_security_options().key_types = (_KIND,)
            left = max(deadline - time.monotonic(), 0.001)
            transport.banner_timeout = left
            transport.handshake_timeout = left
            transport.auth_timeout = left
            transport.start_client(timeout=left)
            if transport.get_remote_server_key().asbytes() != pinned:
                raise _Broken("it is not this node's guest: its host key differs")
            transport.auth_publickey(
                "root", paramiko.Ed25519Key.from_private_key(io.StringIO(keys.client))
            )
            undo.pop_all()
            return transport
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise _Broken(str(error) or type(error).__name__) from error


def _open_channel(transport: Transport, timeout: float) -> Channel:
    import paramiko  # noqa: PLC0415 - slow to load

    try:
        return transport.open_session(timeout=timeout)
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise _Broken(str(error) or type(error).__name__) from error


def _execute(channel: Channel, command: str, stdin: bytes, deadline: float) -> CommandResult:
    """Run the command and read all its output.  Raises TimeoutError, _Broken."""
    import paramiko  # noqa: PLC0415 - slow to load

    output = bytearray()
    try:
        with contextlib.closing(channel):
            channel.settimeout(max(deadline - time.monotonic(), 0.001))
            channel.set_combine_stderr(True)
            channel.exec_command(command)
            if stdin:
                channel.sendall(stdin)
            channel.shutdown_write()
            while True:
                channel.settimeout(max(deadline - time.monotonic(), 0.001))
                more = channel.recv(1 << 16)
                if not more:
                    break
                output += more
                if len(output) > _LARGEST:
                    raise _Broken(f"it prints more than {_LARGEST} bytes")
            # The status may arrive after the end of the output.
            if not channel.status_event.wait(max(deadline - time.monotonic(), 0.001)):
                raise TimeoutError
            status = channel.recv_exit_status()
    except TimeoutError:
        raise
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise _Broken(str(error) or type(error).__name__) from error
    if status < 0 and not output:
        raise _Broken("it ended without a status")
    return CommandResult(status, output.decode(errors="replace"))


def _field(body: bytes) -> bytes:
    """Return a string in SSH's encoding."""
    return len(body).to_bytes(4, "big") + body

"""Commands run inside a guest that allows faults: the one module that imports paramiko.

Each node has keys of its own, made when it is made: one pair by which its guests are known (the
host's side compares it, and speaks to nobody else), one by which its owner is let in. A guest's SSH
server is reached by one port of the host's loopback; the guest has no other network, and reaches
nothing by this one.

A connection does not outlive a `loadvm`: tell the shell by `drop`, and it connects again.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import logging
import os
import random
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from deploy.errors import CannotRunHere, DeployError
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
    "read_keys",
    "require_ssh",
    "write_keys",
]

TIMEOUT = 10.0
"""Seconds for a connection or a command; 0.2 and 0.05 are usual under TCG."""

_LARGEST = 1 << 20
"""Bytes that a command may say."""

_KIND = "ssh-ed25519"

# Below those that the kernel gives out by itself (32768 and up), so that no other program's
# outgoing connection has a guest's port when its QEMU is started anew.
_PORTS = range(20_000, 32_000)


class ShellFailed(DeployError):
    """A guest could not be connected to, is not who it should be, or did not answer in time."""


class NodeKeys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node's keys. `client` is the private key that its guests let in (OpenSSH's format), `host`
    the public key by which they are known, `access` what goes into their image.
    """

    client: str
    host: str
    access: Access


class CommandResult(NamedTuple):
    """What a command ended with (0: well), and what it said on both its outputs."""

    status: int
    out: str


def require_ssh() -> None:
    """Raise CannotRunHere where there is no paramiko: before guests are started, not after."""
    try:
        import paramiko  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise CannotRunHere(
            "faults inside guests need paramiko", remedy="pip install 'trivisor[ssh]'"
        ) from error


def make_keys() -> NodeKeys:
    """Make new keys for a node. Raises CannotRunHere without the extra `ssh`."""
    require_ssh()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415 - an extra
        Ed25519PrivateKey,
    )
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415 - an extra
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
            # Dropbear's own format: the kind, then the private key and the public one as one.
            host=_field(_KIND.encode()) + _field(host.private_bytes_raw() + public),
            client=client.public_key()
            .public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
            .decode(),
        ),
    )


def write_keys(keys: NodeKeys, path: Path) -> None:
    """Write a node's keys where only its owner may read them. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(keys))


def read_keys(path: Path) -> NodeKeys:
    """Return what `write_keys` wrote. Raises OSError, or DeployError if it is something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=NodeKeys)
    except msgspec.MsgspecError as error:
        raise DeployError(
            f"{path} does not hold a node's keys: {error}", remedy="start the node anew"
        ) from error


def free_ports(count: int) -> tuple[int, ...]:
    """Return as many ports of the loopback that nobody listens on now. Raises CannotRunHere.

    They are drawn at random, so that two nodes started at one moment hardly draw the same.
    """
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for port in random.sample(_PORTS, len(_PORTS)):
            if len(found) == count:
                break
            listener = held.enter_context(socket.socket())
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue  # somebody's
            found.append(port)
    if len(found) < count:
        raise CannotRunHere(
            f"no {count} free TCP ports from {_PORTS.start} to {_PORTS.stop - 1} on the loopback",
            remedy="see who listens there: `ss -ltn`",
        )
    return tuple(found)


class GuestShell:
    """A way to run commands in one guest, as root. It connects when it is first needed."""

    def __init__(self, name: str, *, port: int, keys: NodeKeys) -> None:
        self.name = name
        self._port = port
        self._keys = keys
        self._transport: Transport | None = None
        self._connecting = asyncio.Lock()
        self._closing: set[asyncio.Future[None]] = set()

    async def open(self, *, timeout: float = TIMEOUT) -> float:
        """Have a connection, and return the seconds that took. Raises ShellFailed."""
        begin = time.monotonic()
        await self._connected(timeout)
        return time.monotonic() - begin

    async def run(
        self, command: str, *, stdin: bytes = b"", timeout: float = TIMEOUT
    ) -> CommandResult:
        """Run a command by the guest's `sh`, to its end. Raises ShellFailed.

        It is begun once at most: where the connection breaks before it is handed over, another is
        made; where it breaks later, nobody can tell what became of it.
        """
        give_up = time.monotonic() + timeout
        channel = await self._channel(give_up)
        work = asyncio.ensure_future(
            asyncio.to_thread(_carry_out, channel, command, stdin, give_up)
        )
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            channel.close()  # which ends the thread's waiting
            await asyncio.wait([work])
            work.exception()
            raise
        except (_Broken, TimeoutError) as error:
            self.drop()
            late = isinstance(error, TimeoutError)
            why = f"not done after {timeout:g} s" if late else f"the connection broke: {error}"
            raise ShellFailed(f"guest {self.name}, `{command[:80]}`: {why}") from error

    def drop(self) -> None:
        """Forget the connection: the guest was put back, and knows it no more."""
        transport, self._transport = self._transport, None
        if transport is not None:
            self._end(transport)

    async def close(self) -> None:
        """Close the connection; `open` and `run` make another."""
        self.drop()
        if self._closing:
            await asyncio.wait(set(self._closing))

    async def _channel(self, give_up: float) -> Channel:
        """Return a new channel, by a new connection if the one there is turns out to be dead."""
        while True:
            fresh = self._transport is None
            transport = await self._connected(give_up - time.monotonic())
            left = max(give_up - time.monotonic(), 0.001)
            try:
                # A guest that was put back answers an old connection at once, by a reset.
                return await asyncio.to_thread(_open_channel, transport, left)
            except _Broken as error:
                if self._transport is transport:
                    self.drop()
                if fresh or time.monotonic() > give_up:
                    raise ShellFailed(
                        f"guest {self.name} took no command by SSH: {error}"
                    ) from error

    async def _connected(self, timeout: float) -> Transport:
        async with self._connecting:
            if self._transport is not None and not self._transport.is_active():
                self.drop()
            if self._transport is None:
                work = asyncio.ensure_future(
                    asyncio.to_thread(_connect, self._port, self._keys, timeout)
                )
                try:
                    self._transport = await asyncio.shield(work)
                except asyncio.CancelledError:
                    work.add_done_callback(self._unwanted)
                    raise
                except _Broken as error:
                    raise ShellFailed(
                        f"no SSH connection to guest {self.name} by port {self._port}: {error}",
                        remedy="see that it runs, and that its node was started with faults "
                        "allowed inside",
                    ) from error
            return self._transport

    def _unwanted(self, work: asyncio.Future[Transport]) -> None:
        """End a connection that came up after its caller had given up."""
        if not work.cancelled() and work.exception() is None:
            self._end(work.result())

    def _end(self, transport: Transport) -> None:
        # It waits for its thread, 0.1 s.
        ending = asyncio.get_running_loop().run_in_executor(None, transport.close)
        self._closing.add(ending)
        ending.add_done_callback(self._closing.discard)


# ---- paramiko's side, in threads -----------------------------------------------------------------


class _Broken(Exception):
    """What paramiko and the sockets call by many names: it does not work, and why."""


def _connect(port: int, keys: NodeKeys, timeout: float) -> Transport:
    """Connect, compare the guest's key with the one pinned, log in."""
    import paramiko  # noqa: PLC0415 - an extra

    # Its threads tell of broken connections by tracebacks; who used the connection is told anyway.
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    give_up = time.monotonic() + timeout
    pinned = base64.b64decode(keys.host.split()[1])
    try:
        with contextlib.ExitStack() as undo:
            plain = socket.create_connection(("127.0.0.1", port), timeout=timeout)
            undo.callback(plain.close)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            transport = paramiko.Transport(plain)
            undo.callback(transport.close)
            transport.get_security_options().key_types = (_KIND,)
            left = max(give_up - time.monotonic(), 0.001)
            transport.banner_timeout = left
            transport.handshake_timeout = left
            transport.auth_timeout = left
            transport.start_client(timeout=left)
            if transport.get_remote_server_key().asbytes() != pinned:
                raise _Broken("it is not this node's guest: its host key is another")
            transport.auth_publickey(
                "root", paramiko.Ed25519Key.from_private_key(io.StringIO(keys.client))
            )
            undo.pop_all()
            return transport
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise _Broken(_words(error)) from error


def _open_channel(transport: Transport, timeout: float) -> Channel:
    import paramiko  # noqa: PLC0415 - an extra

    try:
        return transport.open_session(timeout=timeout)
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise _Broken(_words(error)) from error


def _carry_out(channel: Channel, command: str, stdin: bytes, give_up: float) -> CommandResult:
    """Run the command and read all it says. Raises TimeoutError, _Broken."""
    import paramiko  # noqa: PLC0415 - an extra

    said = bytearray()
    try:
        with contextlib.closing(channel):
            channel.settimeout(max(give_up - time.monotonic(), 0.001))
            channel.set_combine_stderr(True)
            channel.exec_command(command)
            if stdin:
                channel.sendall(stdin)
            channel.shutdown_write()
            while True:
                channel.settimeout(max(give_up - time.monotonic(), 0.001))
                more = channel.recv(1 << 16)
                if not more:
                    break
                said += more
                if len(said) > _LARGEST:
                    raise _Broken(f"it says more than {_LARGEST} bytes")
            # The status may come after the end of what is said.
            if not channel.status_event.wait(max(give_up - time.monotonic(), 0.001)):
                raise TimeoutError
            status = channel.recv_exit_status()
    except TimeoutError:
        raise
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise _Broken(_words(error)) from error
    if status < 0 and not said:
        raise _Broken("it ended without a status")
    return CommandResult(status, said.decode(errors="replace"))


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _field(body: bytes) -> bytes:
    """A string as SSH writes it."""
    return len(body).to_bytes(4, "big") + body

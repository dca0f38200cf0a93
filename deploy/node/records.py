"""A node's directory: what is in it, whose it is, and what is written down of the node.

``node.json`` tells what was asked for, and marks the directory as ours; ``running.json`` which
processes belong to it; ``supervisor.lock`` is held by the supervisor for as long as it lives.
Whatever is not provably ours is left alone.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from deploy.errors import AlreadyUp, DeployError, ForeignState
from deploy.host.atomic_file import write_json
from deploy.host.identity import ProcessIdentity
from deploy.node.durability import Durability
from voter.commands.terminal import NATIVE_SOCKET

__all__ = [
    "SCHEMA",
    "FaultRecord",
    "Layout",
    "Lock",
    "NodeRecord",
    "RunningRecord",
    "Settings",
    "already_up",
    "cache_directory",
]

SCHEMA = 1
"""Version of node.json and running.json."""

T = TypeVar("T", bound=msgspec.Struct)


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what is stored: frozen, and strict about its keys."""


class Settings(_Record, frozen=True, kw_only=True):
    """What `up` was asked for.  Paths are absolute."""

    guests: int = 3
    vote: str = "2/3"
    service: str = "kv"  # a shipped service's name, or the path of a Python file
    content: str | None = None  # directory of static content
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    connect: str = "qemu:///embed"
    http: str = "127.0.0.1:8080"  # port 0: any free one
    native: str | None = None  # HOST:PORT
    memory_mib: int = 128
    allow_faults: bool = False
    repair: Literal["auto", "off"] = "auto"
    boot_deadline: float = 60.0  # seconds, from a guest's start to its being ready
    durability: Durability = "fsync"
    function: str | None = None  # "guest": in each guest; unix:PATH: where F listens on this host
    key: str | None = None  # a file: what the function in each guest checks with


class NodeRecord(_Record, frozen=True, kw_only=True):
    """node.json: the settings, the node's ids and the image its guests run."""

    schema: int = SCHEMA
    uuids: tuple[str, ...]  # the node's, then one for each guest
    settings: Settings
    kernel: str
    initrd: str
    image: str  # SHA-256
    accel: Literal["kvm", "tcg"]
    accel_reason: str
    manifest: str


class FaultRecord(_Record, frozen=True, kw_only=True):
    """A fault that holds: times in seconds since 1970; ``until`` None: until healed."""

    kind: str
    since: float
    until: float | None
    proof: str


class RunningRecord(_Record, frozen=True, kw_only=True):
    """running.json: what a supervisor that takes over must know."""

    schema: int = SCHEMA
    processes: dict[str, ProcessIdentity] = {}  # supervisor, nanny, voter, proxy
    http: str | None = None  # the address bound, with its port
    native: str | None = None
    faults: dict[str, FaultRecord] = {}  # by guest


def cache_directory() -> Path:
    """Return what outlives nodes: ``$TRIVISOR_CACHE``, else below ``$XDG_CACHE_HOME``."""
    given = os.environ.get("TRIVISOR_CACHE")
    if given:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "trivisor"


class Layout:
    """The names in a node's directory.  Raises ForeignState where the directory is not ours."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.node = directory / "node.json"
        self.running = directory / "running.json"
        self.lock = directory / "supervisor.lock"
        self.supervisor_socket = directory / "supervisor.sock"
        self.supervisor_log = directory / "supervisor.log"
        self.voter_config = directory / "voter.toml"
        self.voter_control = directory / "control.sock"
        self.voter_log = directory / "voter.log"
        self.journal = directory / "journal"
        self.native_socket = directory / NATIVE_SOCKET
        self.proxy_control = directory / "proxy.sock"
        self.proxy_log = directory / "proxy.log"

    def proxy_link(self, guest: str) -> Path:
        """The socket where the voter finds a guest whose link goes through the proxy."""
        return self.directory / f"{guest}.lie"

    @property
    def sockets(self) -> list[str]:
        """The unix sockets of ours, for a check of their paths' lengths."""
        names = (self.supervisor_socket, self.voter_control, self.native_socket, self.proxy_control)
        return [str(path) for path in names]

    def own_sockets(self) -> list[Path]:
        """The sockets that may be left behind by processes that were killed; those that are
        there.
        """
        fixed = [self.supervisor_socket, self.voter_control, self.native_socket, self.proxy_control]
        return [path for path in (*fixed, *self.directory.glob("g*.lie")) if path.exists()]

    def prepare(self) -> None:
        """Make the directory ours, or see that it is.

        Raises ForeignState if something else is in it, DeployError if it cannot be made.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            names = os.listdir(self.directory)
        except OSError as error:
            raise self._unusable(error) from error
        if self.node.name in names:
            self.read_node()
            self.read_running()
        elif names and self.lock.name not in names:
            raise ForeignState(
                f"{self.directory} is not empty, and no node's directory",
                remedy="give an empty or a new directory with --dir; nothing in it was touched",
            )
        try:
            self.lock.touch(
                mode=0o600
            )  # from here on the directory is ours, also if we are cut short
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> DeployError:
        return ForeignState(
            f"the directory {self.directory} cannot be used: {error.strerror}",
            remedy="give a directory of your own with --dir",
        )

    @property
    def known(self) -> bool:
        """Whether a node was ever started here."""
        return self.node.exists()

    def read_node(self) -> NodeRecord:
        """Return node.json.  Raises ForeignState unless it is there and can be read."""
        return self._read(self.node, NodeRecord)

    def read_running(self) -> RunningRecord:
        """Return running.json; empty if nothing ran here yet.  Raises ForeignState."""
        if not self.running.exists():
            return RunningRecord()
        return self._read(self.running, RunningRecord)

    def _read(self, path: Path, kind: type[T]) -> T:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ForeignState(
                f"{path} cannot be read: {error.strerror}",
                remedy="see that the directory is yours; nothing in it was touched",
            ) from error
        remedy = (
            "it is of another version of trivisor, or was altered; if you are sure that nothing "
            f"of it runs, remove {self.directory}; nothing was touched"
        )
        try:
            schema = msgspec.json.decode(data, type=_Schema).schema
            if schema != SCHEMA:
                raise ForeignState(f"{path} has schema {schema}, not {SCHEMA}", remedy=remedy)
            return msgspec.json.decode(data, type=kind)
        except msgspec.MsgspecError as error:
            raise ForeignState(f"{path} is no record of a node: {error}", remedy=remedy) from error

    def write(self, record: NodeRecord | RunningRecord) -> None:
        """Write a record in place of the old one, in one step and onto the disk.

        Raises OSError.
        """
        path = self.node if isinstance(record, NodeRecord) else self.running
        write_json(path, record, mode=0o600)


class _Schema(msgspec.Struct):
    schema: int


class Lock:
    """The supervisor's hold on a directory; the kernel lets it go when the process ends."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._fd = -1

    def take(self) -> None:
        """Take the lock.

        Raises AlreadyUp if another process has it, ForeignState if nobody can.
        """
        try:
            fd = os.open(self._layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ForeignState(
                f"{self._layout.lock} cannot be opened: {error.strerror}",
                remedy="give a directory of your own with --dir",
            ) from error
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise already_up(self._layout, self.holder() or 0) from error
        self._fd = fd

    def release(self) -> None:
        """Let the lock go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def holder(self) -> int | None:
        """Return the pid of the other process that holds the lock, or None if nobody does.

        Not to be called by the process that holds it: closing the file would let the lock go.
        """
        try:
            fd = os.open(self._layout.lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
        finally:
            os.close(fd)
        return None if kind == fcntl.F_UNLCK else pid


_FLOCK = struct.Struct("@hhqqi4x")
"""The kernel's struct flock (fcntl(2)), with 64-bit offsets."""


def already_up(layout: Layout, pid: int) -> AlreadyUp:
    """Return the error that says who runs the node of this directory."""
    return AlreadyUp(
        f"a node runs in {layout.directory} already: its supervisor is process {pid}",
        remedy=f"`trivisor status --dir {layout.directory}` shows it, `trivisor down` ends it",
    )

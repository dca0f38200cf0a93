"""A node's directory: its files' names, its records and its lock.

``node.json`` holds the settings and marks the directory as a node's.  ``running.json`` lists the
processes that belong to it.  The supervisor locks ``supervisor.lock`` for as long as it lives.
Anything that is not provably the node's is left alone.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import struct
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from deploy.errors import AlreadyUp, DeployError, ForeignState
from deploy.host.files import write_json
from deploy.host.identity import ProcessIdentity
from voter.commands.terminal import (
    SYSTEM_DIRECTORY,
    SYSTEM_SOCKETS,
    CommandError,
    native_socket,
    operator_hint,
    user_directory,
)

__all__ = [
    "DEFAULT_DASHBOARD",
    "DURABILITY_GUARANTEES",
    "SCHEMA",
    "Durability",
    "FaultRecord",
    "Layout",
    "Lock",
    "NodeRecord",
    "RunningRecord",
    "Settings",
    "already_up",
    "cache_directory",
]

_SYSTEM_JOURNAL = Path("/var/lib/trivisor-voter")

SCHEMA = 1
"""Version of node.json and running.json."""

DEFAULT_DASHBOARD = "127.0.0.1:8023"
"""Where a dashboard listens unless told otherwise; if the port is taken, on any free one."""

Durability = Literal["fsync", "os", "none"]

DURABILITY_GUARANTEES: dict[str, str] = {
    "fsync": "a reply is released once its request and all before it are on disk: acknowledged "
    "requests survive a power failure",
    "os": "a request is handed to the operating system before any guest receives it: acknowledged "
    "requests survive the death of every process; a power failure loses the last seconds",
    "none": "nothing is written: if the voter dies, all acknowledged requests are lost",
}
"""What a node guarantees at each durability."""

T = TypeVar("T", bound=msgspec.Struct)


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the records: immutable, and without unknown keys."""


class Settings(_Record, frozen=True, kw_only=True):
    """The options of `trivisor up`.  Paths are absolute.  Reading checks the ranges."""

    guests: Annotated[int, msgspec.Meta(ge=1, le=9)] = 3
    vote: str = "2/3"
    service: str = "kv"  # a shipped service's name, or the path of a Python file
    content: str | None = None  # the directory that the service `static` serves
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    connect: str = "qemu:///embed"
    http: str = "127.0.0.1:8080"  # port 0: any free one
    native: str | None = None  # HOST:PORT
    dashboard: str | None = None  # HOST:PORT, or "off"; None: the default one, or any free port
    memory_mib: Annotated[int, msgspec.Meta(ge=64, le=65_536)] = 128
    allow_faults: bool = False
    repair: Literal["auto", "off"] = "auto"
    boot_deadline: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = (
        60.0  # seconds that a booting guest may make no progress
    )
    durability: Durability = "fsync"
    keep_history: Annotated[int, msgspec.Meta(ge=64, le=1 << 24)] | None = None  # MiB, for replay
    follow: Literal["auto", "on", "off"] = "auto"  # which guests get their orders in batches
    function: str | None = None  # "guest": in each guest; unix:PATH: F's socket on this host
    key: str | None = None  # the file with the key of the function in each guest
    tls_certificate: str | None = None  # files for clients on TCP: see voter.config.Security
    tls_key: str | None = None
    tls_client_ca: str | None = None
    tokens: str | None = None
    rejuvenate_every: Annotated[float, msgspec.Meta(ge=1, le=31_536_000)] | None = (
        None  # seconds in which each guest is replaced once; None: never
    )
    rejuvenate_by: Literal["clone", "boot", "in-place"] = "clone"
    boot_share: Annotated[int, msgspec.Meta(ge=0, le=100)] = 50  # percent of one processor
    client_rate: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None  # requests a second
    client_in_flight: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] | None = None
    client_connections: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] | None = None

    @property
    def scheme(self) -> str:
        """How a URL of its HTTP front end begins: http or https."""
        return "http" if self.tls_certificate is None else "https"

    @property
    def slowness(self) -> float:
        """The factor of other time limits on guests, where `boot_deadline` is above its default."""
        return max(1.0, self.boot_deadline / 60.0)


class NodeRecord(_Record, frozen=True, kw_only=True):
    """node.json: the settings, the node's uuids and the image of its guests."""

    schema: int = SCHEMA
    uuids: Annotated[
        tuple[str, ...], msgspec.Meta(min_length=2, max_length=11)
    ]  # the node's, then one for each slot: the guests, and a spare one in nodes of this version
    settings: Settings
    kernel: str
    initrd: str
    image: str  # SHA-256
    accel: Literal["kvm", "tcg"]
    accel_reason: str
    manifest: str
    service: str = ""  # identifies what replays the journal in the guests; "": not known
    packages: tuple[str, ...] = ()  # Debian packages that a patch has added to the image
    pinned: bool = False  # a patch made this image: the same service starts from it again
    managed: bool = False  # systemd runs the supervisor and the voter


class FaultRecord(_Record, frozen=True, kw_only=True):
    """An active fault.  Times are in seconds since 1970; ``until`` None means until healed."""

    kind: str
    since: float
    until: float | None
    proof: str


class RunningRecord(_Record, frozen=True, kw_only=True):
    """running.json: what the next supervisor needs in order to take over."""

    schema: int = SCHEMA
    processes: dict[str, ProcessIdentity] = {}  # supervisor, watchdog, voter, proxy
    http: str | None = None  # the bound address, with its port
    native: str | None = None
    dashboard: str | None = None
    faults: dict[str, FaultRecord] = {}  # by guest


def cache_directory() -> Path:
    """Return the cache, shared by all nodes: ``$TRIVISOR_CACHE``, else in ``$XDG_CACHE_HOME``."""
    given = os.environ.get("TRIVISOR_CACHE")
    if given:
        return Path(given).absolute()
    return user_directory("XDG_CACHE_HOME", ".cache") / "trivisor"


class Layout:
    """The names of a node's files.  Methods raise ForeignState if the directory is not a node's.

    The node that systemd runs has its sockets and its journal elsewhere: other users than the
    directory's own need them.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.system = directory == SYSTEM_DIRECTORY
        sockets = SYSTEM_SOCKETS if self.system else directory
        self.node = directory / "node.json"
        self.running = directory / "running.json"
        self.halted = directory / "halted.json"  # the monitor stopped the node (deploy.node.halt)
        self.revert = directory / "revert.json"  # a revert under way (deploy.supervisor.reverting)
        self.blocked = directory / "blocked.json"  # clients that the monitor has blocked
        self.monitor_socket = directory / "monitor.sock"  # where it decides inline
        self.lock = directory / "supervisor.lock"
        self.supervisor_socket = sockets / "supervisor.sock"
        self.supervisor_log = directory / "supervisor.log"
        self.voter_config = directory / "voter.toml"
        self.voter_control = sockets / "control.sock"
        self.voter_log = directory / "voter.log"
        self.journal = _SYSTEM_JOURNAL if self.system else directory / "journal"
        self.membership = directory / "membership.json"  # roles, and an operation under way
        self.last_run = directory / "last-run.json"  # events and consoles of the node that ended
        self.patch = directory / "patch.json"  # the node's last patch
        self.differences = directory / "patch-differences.jsonl"  # what its copy answered otherwise
        self.patched_images = directory / "images"  # a directory for each patched image
        self.native_socket = native_socket(directory)
        self.proxy_control = directory / "proxy.sock"
        self.proxy_log = directory / "proxy.log"
        self.logs = {
            "voter": self.voter_log, "supervisor": self.supervisor_log, "proxy": self.proxy_log
        }  # fmt: skip

    def disk(self, guest: str) -> Path:
        """Return the file that holds a guest's snapshot."""
        return self.directory / f"{guest}.qcow2"

    def proxy_link(self, guest: str) -> Path:
        """Return the proxy's socket for a guest, to which the voter connects."""
        return self.directory / f"{guest}.lie"

    @property
    def sockets(self) -> list[Path]:
        """The unix sockets of supervisor, voter and proxy, except the proxy's links."""
        return [self.supervisor_socket, self.voter_control, self.native_socket, self.proxy_control]

    def stale_sockets(self) -> list[Path]:
        """Return the existing sockets, which killed processes may have left."""
        ours = [self.supervisor_socket, self.proxy_control] if self.system else self.sockets
        return [p for p in (*ours, *self.directory.glob("g*.lie")) if p.exists()]

    def command(self, words: str) -> str:
        """Return the command line of ``trivisor`` that means this node, for a shell."""
        return f"trivisor {words} --dir {shlex.quote(str(self.directory))}"

    @property
    def start_hint(self) -> str:
        """How to start the node, as the remedy of an error."""
        if self.system:
            return "`systemctl start trivisor` starts it, `journalctl -u 'trivisor*'` is its log"
        return f"start one with `{self.command('up')}`, or use another --dir{operator_hint()}"

    def option(self, name: str, value: str = "") -> str:
        """Return how a remedy names an option of the node; no value: the option is a flag."""
        if not self.system:
            return f"--{name} {value}".rstrip()
        written = value if value.isdigit() else f'"{value}"' if value else "true"
        return f"`{name} = {written}` (/etc/trivisor/node.toml)"

    @property
    def faults_hint(self) -> str:
        """How to allow faults, as the remedy of an error."""
        if self.system:
            return f"use {self.option('allow-faults')}, then `systemctl restart trivisor`"
        return "start it with `trivisor up --allow-faults`"

    @property
    def empty_hint(self) -> str:
        """How to start without the journal, as part of a remedy."""
        if self.system:
            return f"move {self.journal} away to start empty"
        return "use another directory (--dir) to start empty"

    def refuse_system(self, instead: str) -> None:
        """Raise CommandError if systemd runs this node; ``instead`` is the command to use."""
        if self.system:
            raise CommandError(
                f"systemd runs the node in {self.directory}",
                remedy=f"use `{instead}`",
                error_code="TV0711",
            )

    def prepare(self) -> None:
        """Make the directory and mark it as a node's, or check that it is one.

        Raises ForeignState if it contains something else, DeployError if it cannot be made.
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
                f"{self.directory} is not empty and not a node's directory",
                remedy="choose an empty or new directory (--dir); nothing in this one was changed",
                error_code="TV0705",
            )
        try:
            self.lock.touch(mode=0o600)  # marks the directory as a node's from here on
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> DeployError:
        return ForeignState(
            f"the directory {self.directory} cannot be used: {error.strerror}",
            remedy="choose a directory of your own (--dir)",
            error_code="TV0704",
        )

    @property
    def closed(self) -> bool:
        """Whether it is the system's node, and this user may use its sockets, not its files."""
        return self.system and self.directory.exists() and not os.access(self.directory, os.X_OK)

    @property
    def known(self) -> bool:
        """Whether a node was ever started in this directory."""
        return self.node.exists()

    def read_node(self) -> NodeRecord:
        """Return node.json.  Raises ForeignState if it cannot be read."""
        return self._read(self.node, NodeRecord)

    def problem(self) -> ForeignState | None:
        """Return why the node's records cannot be read, or None."""
        try:
            if self.known:
                self.read_node()
                self.read_running()
        except ForeignState as error:
            return error
        return None

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
                remedy="check that the directory is yours; nothing in it was changed",
                error_code="TV0706",
            ) from error
        # The directory may hold a journal: no remedy ever deletes more than this file.
        remedy = (
            "another version of trivisor wrote it, or it was damaged: put it back from a copy, or "
            f"run `{self.command('down')}`, then "
            f"`mv {shlex.quote(str(path))} {shlex.quote(f'{path}.damaged')}`, and "
            "start the node with its options: its journal stays; nothing was changed"
        )
        try:
            schema = msgspec.json.decode(data, type=_Schema).schema
            if schema != SCHEMA:
                raise ForeignState(
                    f"{path} has schema {schema}, not {SCHEMA}", remedy=remedy, error_code="TV0706"
                )
            return msgspec.json.decode(data, type=kind)
        except msgspec.MsgspecError as error:
            raise ForeignState(
                f"{path} is not a node's record: {error}", remedy=remedy, error_code="TV0706"
            ) from error

    def write(self, record: NodeRecord | RunningRecord) -> None:
        """Replace the record atomically and durably.  Raises OSError."""
        path = self.node if isinstance(record, NodeRecord) else self.running
        write_json(path, record, mode=0o600)


class _Schema(msgspec.Struct):
    schema: int


class Lock:
    """The supervisor's lock on a directory; the kernel releases it when the process ends."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._fd = -1

    def take(self) -> None:
        """Lock.  Raises AlreadyUp if another process has it, ForeignState without a file."""
        try:
            fd = os.open(self._layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ForeignState(
                f"{self._layout.lock} cannot be opened: {error.strerror}",
                remedy="choose a directory of your own (--dir)",
                error_code="TV0704",
            ) from error
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise already_up(self._layout, self.holder() or 0) from error
        self._fd = fd

    def release(self) -> None:
        """Unlock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def holder(self) -> int | None:
        """Return the pid of the other process that holds the lock, or None if none does.

        The holder itself must not call this: closing the file would release the lock.
        """
        try:
            fd = os.open(self._layout.lock, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            query = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, query))
        finally:
            os.close(fd)
        return None if kind == fcntl.F_UNLCK else pid


_FLOCK = struct.Struct("@hhqqi4x")
"""The kernel's struct flock (fcntl(2)), with 64-bit offsets."""


def already_up(layout: Layout, pid: int) -> AlreadyUp:
    """Return the error that names the supervisor of this directory's node."""
    return AlreadyUp(
        f"a node already runs in {layout.directory}: its supervisor is process {pid}",
        remedy=f"`{layout.command('status')}` shows it, `{layout.command('down')}` ends it",
        error_code="TV0707",
    )

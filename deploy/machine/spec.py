"""Guests and nodes as plain data: what they are to be, and the states a guest passes through.

Pure: paths are strings, nothing here reads from the host.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Literal

import msgspec

__all__ = [
    "EMBED",
    "READY_LINE",
    "TRANSITIONS",
    "AcceleratorName",
    "GuestArrival",
    "GuestEvent",
    "GuestSpec",
    "GuestState",
    "NodeSpec",
    "OnReset",
    "Progress",
    "RestoreMethod",
    "StartMethod",
    "plan_node",
    "socket_paths",
]

AcceleratorName = Literal["kvm", "tcg"]

OnReset = Literal["end", "restart"]
"""What a reset does to a guest: its QEMU ends, or it continues and the guest boots again."""

StartMethod = Literal["clone", "boot"]
"""How a VM starts in an empty slot: from a template, or cold."""

EMBED = "qemu:///embed"
"""The URI of libvirt without a daemon; its root is a directory of the node."""

READY_LINE = "trivisor: ready"
"""The start of the line that the agent prints on the console once it accepts connections."""

Progress = Callable[[str], None]
"""Called with a short text for each step that takes time."""

_EMULATOR = "/usr/bin/qemu-system-x86_64"


class GuestSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One VM.  `name` is its name in the node (g1, g2, ...), `domain` its name in libvirt.

    `disk` is a qcow2 file that holds QEMU's snapshots; the guest never uses it.  A snapshot takes
    time in proportion to the memory in use.  With `ram_file` the guest's memory is a shared file
    that a fault injector can map (`qemu.ram_file` finds it).  `nice` (0 to 19) is the nice value of
    all of QEMU's threads, so that the voter has priority.  `translation_mib` limits TCG's cache of
    translated code.

    `ssh_port` and `on_reset` are for fault injection.  `ssh_port` is a TCP port of the host's
    loopback, 1024 to 65535, that leads to the guest's SSH server; with None the guest has no
    network card.  With `on_reset` "restart" a reset leaves QEMU running.
    """

    name: str
    domain: str
    uuid: str
    kernel: str
    initrd: str
    cmdline: str
    disk: str
    link_socket: str
    console_socket: str
    accel: AcceleratorName
    memory_mib: int = 128
    vcpus: int = 1
    ram_file: bool = False
    nice: int = 5
    translation_mib: int = 128
    ssh_port: int | None = None
    on_reset: OnReset = "end"
    emulator: str = _EMULATOR

    @property
    def directory(self) -> str:
        """The node's directory."""
        return self.disk.rpartition("/")[0]

    @property
    def bound_link(self) -> str:
        """Where QEMU binds the link's socket.  It is renamed after the clean snapshot was taken.

        Otherwise a voter that waits for the link would connect before the snapshot.
        """
        return f"{self.link_socket}~"

    @property
    def files(self) -> tuple[str, ...]:
        """The files that its VM makes."""
        return self.link_socket, self.bound_link, self.console_socket, self.disk

    @property
    def qemu_log(self) -> str:
        """What its QEMU prints, if libvirt is embedded."""
        return f"{self.directory}/r/log/qemu/{self.domain}.log"

    def __post_init__(self) -> None:
        if not self.name or not self.name.isalnum() or len(self.name) > 8:
            raise ValueError(f"a guest's name has 1 to 8 letters and digits, not {self.name!r}")
        for word, value, low, high in (
            ("memory_mib", self.memory_mib, 64, 65536),
            ("vcpus", self.vcpus, 1, 64),
            ("nice", self.nice, 0, 19),
            ("translation_mib", self.translation_mib, 32, 2048),
        ):
            if not low <= value <= high:
                raise ValueError(f"{word} must be {low} to {high}, not {value}")
        if self.ssh_port is not None and not 1024 <= self.ssh_port <= 65535:
            raise ValueError(f"ssh_port must be 1024 to 65535, not {self.ssh_port}")


class NodeSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node: its guests, its own directory and libvirt's URI.

    `guests` has all slots: a slot is a name, with its sockets and its disk, in which a VM may run.
    The last `spares` of them are empty when a new node starts.  `boot_deadline` is the longest time
    in seconds that a booting guest may make no progress.
    """

    uuid: str
    directory: str
    uri: str
    guests: tuple[GuestSpec, ...]
    spares: int = 0
    boot_deadline: float = 60.0

    def __post_init__(self) -> None:
        if not self.guests:
            raise ValueError("a node needs at least one guest")
        if not 0 <= self.spares < len(self.guests):
            raise ValueError(f"spares must be 0 to {len(self.guests) - 1}, not {self.spares}")
        names = [guest.name for guest in self.guests]
        if len(set(names)) != len(names):
            raise ValueError(f"two guests of a node have the same name: {', '.join(names)}")
        ports = [guest.ssh_port for guest in self.guests if guest.ssh_port is not None]
        if len(set(ports)) != len(ports):
            raise ValueError(f"two guests of a node have the same ssh_port: {ports}")
        if not self.directory.startswith("/"):
            raise ValueError(f"a node's directory must be an absolute path, not {self.directory!r}")

    @property
    def embedded(self) -> bool:
        """Whether libvirt runs in the node's own process, without a daemon."""
        return self.uri == EMBED

    @property
    def spare_names(self) -> frozenset[str]:
        """The slots in which no VM runs when a new node starts."""
        return frozenset(guest.name for guest in self.guests[len(self.guests) - self.spares :])

    def with_guest(self, guest: GuestSpec) -> NodeSpec:
        """Return this spec with another guest in the slot of that name."""
        guests = tuple(guest if each.name == guest.name else each for each in self.guests)
        return msgspec.structs.replace(self, guests=guests)

    def is_same_node(self, other: NodeSpec) -> bool:
        """Return whether these are equal but for the images of their guests."""
        first, second = (
            msgspec.structs.replace(
                spec,
                guests=tuple(
                    msgspec.structs.replace(guest, kernel="", initrd="") for guest in spec.guests
                ),
            )
            for spec in (self, other)
        )
        return first == second

    @property
    def root(self) -> str:
        """The embedded libvirt's directory."""
        return f"{self.directory}/r"


def plan_node(  # noqa: PLR0913 - all by keyword, each a plain fact of the node
    *,
    directory: str,
    uuids: tuple[str, ...],
    kernel: str,
    initrd: str,
    cmdline: str,
    accel: AcceleratorName,
    uri: str = EMBED,
    memory_mib: int = 128,
    ram_file: bool = False,
    nice: int = 5,
    boot_deadline: float = 60.0,
    spares: int = 0,
    ssh_ports: tuple[int, ...] = (),
    on_reset: OnReset = "end",
) -> NodeSpec:
    """Return the spec of a node of equal guests g1, g2, ..., the last `spares` of them spare slots.

    `uuids` are new random ones: the node's, then one for each slot.  `directory` is absolute and
    short: `socket_paths` returns the paths below it.  `ssh_ports` are one for each slot, or none.
    Raises ValueError for an invalid value.
    """
    node, *guests = uuids
    if ssh_ports and len(ssh_ports) != len(guests):
        raise ValueError(f"{len(guests)} guests need one ssh port each, or none: not {ssh_ports}")
    ports: tuple[int | None, ...] = ssh_ports or (None,) * len(guests)
    embedded = uri == EMBED
    return NodeSpec(
        uuid=node,
        directory=directory,
        uri=uri,
        boot_deadline=boot_deadline,
        spares=spares,
        guests=tuple(
            GuestSpec(
                name=f"g{number}",
                # A shared libvirt lists the domains of many nodes: the name must be unique.
                # Libvirt truncates names to 20 bytes in paths.
                domain=f"g{number}" if embedded else f"trivisor-{node[:8]}-g{number}",
                uuid=guest,
                kernel=kernel,
                initrd=initrd,
                cmdline=cmdline,
                disk=f"{directory}/g{number}.qcow2",
                link_socket=f"{directory}/g{number}.link",
                console_socket=f"{directory}/g{number}.con",
                accel=accel,
                memory_mib=memory_mib,
                ram_file=ram_file,
                nice=nice,
                ssh_port=port,
                on_reset=on_reset,
            )
            for number, (guest, port) in enumerate(zip(guests, ports, strict=True), start=1)
        ),
    )


def socket_paths(node: NodeSpec) -> list[str]:
    """Return the path of every unix socket of the guests.  Libvirt's own are below `node.root`."""
    return [path for guest in node.guests for path in (guest.bound_link, guest.console_socket)]


# ---- states


class GuestState(enum.StrEnum):
    """The state of a guest's VM.  Whether its service is correct is known to the voter only."""

    ABSENT = "absent"  # never started, or ended for good
    BOOTING = "booting"  # started cold, not ready yet
    READY = "ready"  # it reported that it is ready, or was restored to that moment
    PAUSED = "paused"  # QEMU runs, its CPU is stopped
    RESTORING = "restoring"  # being restored to its clean snapshot
    DEAD = "dead"  # its QEMU has ended


_S = GuestState

TRANSITIONS: dict[GuestState, frozenset[GuestState]] = {
    _S.ABSENT: frozenset({_S.BOOTING, _S.READY, _S.PAUSED, _S.RESTORING, _S.DEAD}),
    _S.BOOTING: frozenset({_S.READY, _S.DEAD}),
    _S.READY: frozenset({_S.PAUSED, _S.RESTORING, _S.DEAD}),
    _S.PAUSED: frozenset({_S.READY, _S.RESTORING, _S.DEAD}),
    _S.RESTORING: frozenset({_S.READY, _S.DEAD}),
    _S.DEAD: frozenset({_S.BOOTING, _S.RESTORING, _S.ABSENT}),
}
"""The legal changes.  ABSENT to READY, PAUSED or DEAD is adoption of what a former owner left."""


class GuestEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change of a guest's state.  `why` is for people; `pid` is its QEMU's, if it has one."""

    guest: str
    before: GuestState
    after: GuestState
    why: str
    pid: int | None


class GuestArrival(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a guest became ready with its clean snapshot, and in how many seconds.

    `adopted`: it ran already.  `restarted`: its QEMU had ended, and its snapshot was restored.
    `dead`: its QEMU had ended, and it was left so.  `cloned`: started from a template.  `empty`: no
    VM runs in this slot.  `bounded`: how its boot was bounded to a share of a processor.
    """

    how: Literal["booted", "adopted", "restarted", "dead", "cloned", "empty"]
    seconds: float
    bounded: str = "none"


class RestoreMethod(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a guest was restored, and the seconds until it ran again."""

    path: Literal["loadvm", "start", "boot"]
    seconds: float

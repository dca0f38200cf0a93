"""What a guest and a node are, as plain data.

Pure: paths are strings, nothing here looks at the host.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = [
    "DOMAIN_ID_DIGITS",
    "EMBED",
    "AcceleratorName",
    "GuestSpec",
    "NodeSpec",
    "OnReset",
    "plan_node",
    "socket_paths",
]

AcceleratorName = Literal["kvm", "tcg"]

OnReset = Literal["end", "restart"]
"""What becomes of a guest that is reset: its QEMU ends, or lives on and boots again."""

EMBED = "qemu:///embed"
"""The URI of libvirt without a daemon; its root is a directory of the node's own."""

DOMAIN_ID_DIGITS = 5
"""Digits left for libvirt's number of a domain in a path: it counts the starts of one owner's
life.
"""

_EMULATOR = "/usr/bin/qemu-system-x86_64"


class GuestSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One VM. `name` is the node's word for it (g1, g2, ...), `domain` is libvirt's.

    `disk` is a qcow2 file that the guest never uses: QEMU keeps snapshots in it. `memory_mib` is
    in MiB; a snapshot takes time with the memory in use, so small is quick. With `ram_file` the
    guest's memory is a shared file that a fault injector can map (process.ram_file finds it).
    `nice` is added to the priority value of all of QEMU's threads, 0 to 19: the voter goes first.
    `translation_mib` bounds the code that TCG keeps translated, in MiB.

    `ssh_port` is for faults inside the guest: a TCP port of the host's loopback, 1024 to 65535, by
    which its SSH server is reached. None, as for every guest that allows no faults: it has no
    network card. `on_reset` "restart" is for faults too: a reset then leaves QEMU alive.
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
    def bound_link(self) -> str:
        """Where QEMU binds the link's socket; it gets its real name when the guest is clean.

        A voter that is waiting for the link would otherwise greet the guest before its clean
        snapshot is taken.
        """
        return f"{self.link_socket}~"

    def __post_init__(self) -> None:
        if not self.name or not self.name.isalnum() or len(self.name) > 8:
            raise ValueError(f"a guest's name is 1 to 8 letters and digits, not {self.name!r}")
        for word, value, low, high in (
            ("memory_mib", self.memory_mib, 64, 65536),
            ("vcpus", self.vcpus, 1, 64),
            ("nice", self.nice, 0, 19),
            ("translation_mib", self.translation_mib, 32, 2048),
        ):
            if not low <= value <= high:
                raise ValueError(f"{word} is {low} to {high}, not {value}")
        if self.ssh_port is not None and not 1024 <= self.ssh_port <= 65535:
            raise ValueError(f"ssh_port is 1024 to 65535, not {self.ssh_port}")


class NodeSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node: its guests, its directory (which is the node's alone) and how libvirt is reached.

    `boot_deadline` is in seconds, from a guest's start to its line that it is ready.
    """

    uuid: str
    directory: str
    uri: str
    guests: tuple[GuestSpec, ...]
    boot_deadline: float = 60.0

    def __post_init__(self) -> None:
        if not self.guests:
            raise ValueError("a node has at least one guest")
        names = [guest.name for guest in self.guests]
        if len(set(names)) != len(names):
            raise ValueError(f"two guests of a node have one name: {', '.join(names)}")
        ports = [guest.ssh_port for guest in self.guests if guest.ssh_port is not None]
        if len(set(ports)) != len(ports):
            raise ValueError(f"two guests of a node have one ssh_port: {ports}")
        if not self.directory.startswith("/"):
            raise ValueError(f"a node's directory is an absolute path, not {self.directory!r}")

    @property
    def embedded(self) -> bool:
        """Whether the node has a libvirt of its own, in its own process."""
        return self.uri == EMBED

    @property
    def root(self) -> str:
        """The embedded libvirt's directory."""
        return f"{self.directory}/r"


def plan_node(  # noqa: PLR0913  all by keyword, each a plain fact of the node
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
    ssh_ports: tuple[int, ...] = (),
    on_reset: OnReset = "end",
) -> NodeSpec:
    """Return the spec of a node of equal guests g1, g2, ...

    `uuids` are fresh random ones: first the node's, then one for each guest. `directory` is
    absolute and short (socket_paths tells which paths follow from it). `ssh_ports` are for guests
    that allow faults inside: one each, or none at all. Raises ValueError for what cannot be.
    """
    node, *guests = uuids
    if ssh_ports and len(ssh_ports) != len(guests):
        raise ValueError(f"{len(guests)} guests have one ssh port each, or none: not {ssh_ports}")
    ports: tuple[int | None, ...] = ssh_ports or (None,) * len(guests)
    embedded = uri == EMBED
    return NodeSpec(
        uuid=node,
        directory=directory,
        uri=uri,
        boot_deadline=boot_deadline,
        guests=tuple(
            GuestSpec(
                name=f"g{number}",
                # A shared libvirt lists the domains of many: the name says whose this is. Libvirt
                # cuts names at 20 bytes where it makes paths of them.
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
    """Return every unix socket that the node will have, libvirt's monitor sockets among them."""
    paths = []
    for guest in node.guests:
        paths += [guest.bound_link, guest.console_socket]
        if node.embedded:
            number = "9" * DOMAIN_ID_DIGITS
            paths.append(f"{node.root}/lib/qemu/domain-{number}-{guest.domain[:20]}/monitor.sock")
    return paths

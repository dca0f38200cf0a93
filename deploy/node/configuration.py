"""What follows from a node's record: the spec of its machines and the voter's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from deploy.host.files import check_path, check_socket_paths
from deploy.machine.spec import NodeSpec, plan_node, socket_paths
from deploy.node.records import Layout, NodeRecord, Settings, cache_directory
from guests.image import COMMAND_LINE, Image
from voter.core.limits import Limits

if TYPE_CHECKING:
    from deploy.machine.node_machines import NodeMachines

__all__ = [
    "SPARES",
    "check_paths",
    "image_of",
    "make_machines",
    "node_spec",
    "toml_value",
    "voter_config",
]

SPARES = 1
"""Slots of a new node without a guest: one guest at a time is replaced by another."""


def check_paths(layout: Layout, settings: Settings) -> None:
    """Raise PathUnusable if a node with these settings cannot run in this directory."""
    check_path(layout.directory)
    planned = plan_node(
        directory=str(layout.directory), uuids=("",) * (settings.guests + 1 + SPARES),
        kernel="", initrd="", cmdline="", accel="tcg", uri=settings.connect, spares=SPARES,
    )  # fmt: skip
    proxied = [layout.proxy_link(guest.name) for guest in planned.guests]
    check_socket_paths([*map(str, (*layout.sockets, *proxied)), *socket_paths(planned)])


def node_spec(layout: Layout, record: NodeRecord) -> NodeSpec:
    """Return the spec of a node's machines."""
    settings = record.settings
    return plan_node(
        directory=str(layout.directory),
        uuids=record.uuids,
        kernel=record.kernel,
        initrd=record.initrd,
        cmdline=COMMAND_LINE,
        accel=record.accel,
        uri=settings.connect,
        memory_mib=settings.memory_mib,
        ram_file=settings.allow_faults,
        boot_deadline=settings.boot_deadline,
        spares=len(record.uuids) - 1 - settings.guests,
    )


def image_of(record: NodeRecord) -> Image:
    """Return the image of a node's guests."""
    return Image(
        kernel=Path(record.kernel),
        initrd=Path(record.initrd),
        sha256=record.image,
        manifest=Path(record.manifest),
    )


def make_machines(layout: Layout, record: NodeRecord) -> NodeMachines:
    """Return the machines of a node; nothing is started yet."""
    from deploy.machine.node_machines import NodeMachines  # noqa: PLC0415 - needs libvirt

    return NodeMachines(
        node_spec(layout, record),
        capabilities=cache_directory() / "capabilities",
        image=image_of(record),
    )


def voter_config(layout: Layout, settings: Settings, node: str, links: dict[str, str]) -> str:
    """Return the text of voter.toml.

    ``node`` is the node's id: the voter rejects another node's journal.  ``links`` are the
    addresses of all slots, in order: those after the guests are spare, and their replicas retired.
    """
    lines = [
        "# Written by `trivisor up` or `prepare`, which overwrite changes.",
        f"vote = {toml_value(settings.vote)}",
        f"durability = {toml_value(settings.durability)}",
        f"follow = {toml_value(settings.follow)}",
    ]
    if settings.function is not None and settings.function != "guest":
        lines.append(f"function = {toml_value(settings.function)}")
    if not settings.service.endswith(".py"):
        lines.append(f"service = {toml_value(settings.service)}")
    if settings.durability != "none":
        inside = layout.journal.is_relative_to(layout.directory)
        journal = layout.journal.name if inside else str(layout.journal)
        lines += ["", "[journal]", f"directory = {toml_value(journal)}"]
        lines.append(f"node = {toml_value(node)}")
        if settings.keep_history is not None:
            lines.append(f"history = {settings.keep_history << 20}")
    for section, values in (
        (
            "security",
            {
                "certificate": settings.tls_certificate,
                "key": settings.tls_key,
                "client_ca": settings.tls_client_ca,
                "tokens": settings.tokens,
            },
        ),
        (
            "clients",
            {
                "rate": settings.client_rate,
                "in_flight": settings.client_in_flight,
                "connections": settings.client_connections,
            },
        ),
    ):
        given = [f"{key} = {toml_value(each)}" for key, each in values.items() if each is not None]
        lines += ["", f"[{section}]", *given] if given else []
    if settings.slowness > 1:
        lines += ["", "[limits]", f"hang = {Limits().hang * settings.slowness}"]
    for number, (name, link) in enumerate(links.items()):
        lines += ["", "[[replica]]", f"name = {toml_value(name)}", f"link = {toml_value(link)}"]
        if number >= settings.guests:
            lines.append('role = "retired"')
    return "\n".join(lines) + "\n"


def toml_value(value: object) -> str:
    """Return a value in TOML: JSON's texts, numbers, booleans and lists of them, with U+007F, which
    JSON allows in a string and TOML does not, escaped.
    """
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")

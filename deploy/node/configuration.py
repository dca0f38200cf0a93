"""What follows from a node's record: the spec of its machines and the voter's configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.machine.spec import NodeSpec, plan_node
from deploy.node.records import Layout, NodeRecord, Settings, cache_directory
from guests.image import COMMAND_LINE, Image

if TYPE_CHECKING:
    from deploy.machine.node_machines import NodeMachines

__all__ = ["make_machines", "node_spec", "voter_config"]


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
    )


def make_machines(layout: Layout, record: NodeRecord) -> NodeMachines:
    """Return the machines of a node; nothing is started yet."""
    from deploy.machine.node_machines import NodeMachines  # noqa: PLC0415 - needs libvirt

    image = Image(
        kernel=Path(record.kernel),
        initrd=Path(record.initrd),
        sha256=record.image,
        manifest=Path(record.manifest),
    )
    return NodeMachines(
        node_spec(layout, record), capabilities=cache_directory() / "capabilities", image=image
    )


def voter_config(layout: Layout, settings: Settings, node: str, links: dict[str, str]) -> str:
    """Return the text of voter.toml.

    ``node`` is the node's id: the voter rejects another node's journal.  ``links`` are the
    replicas' addresses.
    """
    lines = [
        "# Written by `trivisor up`, which overwrites changes.",
        f"vote = {_quote(settings.vote)}",
        f"durability = {_quote(settings.durability)}",
    ]
    if settings.function is not None and settings.function != "guest":
        lines.append(f"function = {_quote(settings.function)}")
    if not settings.service.endswith(".py"):
        lines.append(f"service = {_quote(settings.service)}")
    if settings.durability != "none":
        lines += ["", "[journal]", f"directory = {_quote(layout.journal.name)}"]
        lines.append(f"node = {_quote(node)}")
    for name, link in links.items():
        lines += ["", "[[replica]]", f"name = {_quote(name)}", f"link = {_quote(link)}"]
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    """Return a TOML basic string (JSON's escapes are a subset of TOML's)."""
    return json.dumps(text, allow_nan=False)

"""The text of a node's voter.toml.  Pure."""

from __future__ import annotations

import json

from deploy.node.records import Layout, Settings

__all__ = ["voter_config"]


def voter_config(layout: Layout, settings: Settings, node: str, links: dict[str, str]) -> str:
    """Return the text of voter.toml.

    ``node`` is the node's id: a journal of another node is not taken.  ``links`` gives each
    replica's address.
    """
    lines = [
        "# Written by `trivisor up`; the next one writes it anew.",
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
    """Return a TOML basic string (JSON's escapes are among TOML's)."""
    return json.dumps(text)

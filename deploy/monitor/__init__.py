"""The fail-safe monitor: rules over requests, consoles, resources, votes and memory of guests."""

from __future__ import annotations

__all__: list[str] = []

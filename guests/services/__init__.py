"""The shipped services: ``kv`` (a key-value store) and ``static`` (static content)."""

from __future__ import annotations

__all__: list[str] = []

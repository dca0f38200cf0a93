"""Replay: the requests of a journal, executed again in a guest apart from the live ones."""

from __future__ import annotations

__all__: list[str] = []

"""The pure engine: events in, effects out; no clock, no socket, no randomness of its own."""

from __future__ import annotations

from voter.core.engine import Engine, Limits
from voter.core.vote import Policy

__all__ = ["Engine", "Limits", "Policy"]

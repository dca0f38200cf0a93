"""The pure engine: events in, effects out.  It has no clock, no socket and no randomness."""

from __future__ import annotations

from voter.core.engine import Engine
from voter.core.limits import Limits
from voter.core.vote import Policy

__all__ = ["Engine", "Limits", "Policy"]

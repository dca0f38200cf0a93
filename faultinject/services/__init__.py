"""Services and functions with planted bugs; they run in guests, as a user's own code does."""

from __future__ import annotations

from pathlib import Path

__all__ = ["FRAIL", "PLANTED"]

PLANTED: dict[str, Path] = {"poisoned": Path(__file__).with_name("poisoned.py")}
"""By name, the file to put into guests.  The correct replies are those of the service kv."""

FRAIL = Path(__file__).with_name("frail.py")
"""The function f (or F) with a planted switch."""

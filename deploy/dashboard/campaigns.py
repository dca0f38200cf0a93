"""The campaign that a dashboard shows: figures that `trivisor campaign` posts while it runs.

The supervisor measures nothing of a campaign.  It checks what was posted, shows it, and drops it
when no newer figures come.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec

__all__ = ["STALE", "CampaignBoard", "CampaignFigures", "Curve", "Estimate"]

STALE = 300.0
"""Seconds after which figures that were not renewed are dropped."""

_Text = Annotated[str, msgspec.Meta(max_length=200)]
_Number = Annotated[float, msgspec.Meta(ge=-10, le=10)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class _Posted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what is posted: immutable, and without unknown keys."""


class Estimate(_Posted, frozen=True, kw_only=True):
    """A measured point of the figure with its interval; ``x_low`` and ``x_high`` if x has one."""

    x: _Number
    y: _Number
    low: _Number
    high: _Number
    x_low: _Number | None = None
    x_high: _Number | None = None
    label: _Text = ""


class Curve(_Posted, frozen=True, kw_only=True):
    """A line of the figure; ``kind``: the paper's formula, or what was measured, with its band."""

    kind: Literal["paper", "measured"]
    label: _Text
    points: Annotated[tuple[Estimate, ...], msgspec.Meta(max_length=200)]


class CampaignFigures(_Posted, frozen=True, kw_only=True):
    """The figures of a campaign so far.

    ``rate``: missions a second; ``left``: seconds left; None if not known.  ``state``: running, or
    why the run ended.
    """

    title: _Text
    directory: _Text
    state: _Text
    done: _Count
    total: _Count
    excluded: _Count = 0
    wrong: _Count = 0
    rate: Annotated[float, msgspec.Meta(ge=0, le=1e6)] | None = None
    left: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None
    texts: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=20)] = ()
    x_label: _Text = "R_M"
    y_label: _Text = "R_sys"
    points: Annotated[tuple[Estimate, ...], msgspec.Meta(max_length=100)] = ()
    curves: Annotated[tuple[Curve, ...], msgspec.Meta(max_length=6)] = ()


class CampaignBoard:
    """The figures that were posted last."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._shown: Any = None
        self._at = 0.0

    def post(self, body: bytes) -> None:
        """Show new figures.  Raises msgspec.MsgspecError."""
        figures = msgspec.json.decode(body, type=CampaignFigures)
        self._shown, self._at = msgspec.to_builtins(figures), self._clock()

    def current(self) -> dict[str, Any] | None:
        """Return the figures with their age in seconds; None if there are none, or stale ones."""
        age = self._clock() - self._at
        if self._shown is None or age > STALE:
            self._shown = None
            return None
        return {**self._shown, "age": round(age, 1)}

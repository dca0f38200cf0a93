"""The part of the voter that speaks to a terminal: ``trivisor request``, ``trivisor voter``.

``terminal`` is shared with the commands of the packages above.  The voter's own process never
imports any of this.
"""

from __future__ import annotations

__all__: list[str] = []

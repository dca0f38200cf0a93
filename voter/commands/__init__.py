"""The commands of the voter package: ``trivisor request``, ``voter``, ``service``, ``completion``.

``terminal`` is shared with the commands of the packages above.  The voter's own process never
imports any of this.
"""

from __future__ import annotations

__all__: list[str] = []

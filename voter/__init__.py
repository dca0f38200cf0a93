"""The voter: one order for all replicas, a majority for every reply.

``voter.core`` is pure and decides; the rest of the package moves bytes.  Neither knows how the
replicas were made.
"""

from __future__ import annotations

__all__: list[str] = []

"""Fault injection: what breaks guests on purpose, how that is proved, and how it is undone.

``faults`` is the catalogue, as data; ``lies`` changes a link's bytes (pure) and ``proxy`` is the
process that does so to a live link; ``inject`` carries out a fault on a node.
"""

from __future__ import annotations

__all__: list[str] = []

"""Fault injection: what breaks guests on purpose, how that is proved, and how it is undone.

``faults`` is the catalogue, as data, and the acts that carry it out; ``lies`` changes the bytes of
a link (pure) and ``proxy`` does so to a live one; ``inject`` applies the same acts to a running
node (``node_site``); ``services`` have planted bugs; ``campaign`` runs missions with faults and
counts.
"""

from __future__ import annotations

__all__: list[str] = []

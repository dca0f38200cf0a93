"""The key-value store with room for a large state: what the guests of a transfer run."""

from __future__ import annotations

from guests.services import kv

__all__ = ["RoomyKeyValue"]


class RoomyKeyValue(kv.KeyValue):
    """The shipped store, with another capacity (bytes)."""

    capacity = 192 << 20

"""Corrupt state: a canary's value is found in a guest's memory, and a bit of each copy flipped."""

from __future__ import annotations

import asyncio

from faultinject.faults.canary import Canary, flip_copies
from faultinject.faults.site import Applied, ClientSite, NotApplied, Site

__all__ = ["corrupt_state"]

_TRIES = 20
_PAUSE = 0.1
"""Seconds between looks for the canary in the guest's memory."""


async def corrupt_state(name: str, site: Site) -> Applied:
    """Write a canary and flip a bit of each copy that a guest holds of it (service kv only)."""
    if not isinstance(site, ClientSite):
        raise NotApplied("the canary cannot be written: this site has no client")
    ram = await asyncio.to_thread(site.machine(name).ram_file)
    canary = Canary.fresh()
    status, _ = await site.send("PUT", f"/kv/{canary.key}", canary.value)
    if not 200 <= status < 300:
        raise NotApplied(f"the canary cannot be written: status {status}")
    # The guest may be the one that answers last: it has the value once it has applied the write.
    for _ in range(_TRIES):
        try:
            flips = await asyncio.to_thread(flip_copies, ram, canary.value)
            break
        except LookupError:
            await asyncio.sleep(_PAUSE)  # memory gives no event for what is written to it
    else:
        raise NotApplied(f"the canary did not come to be in {name}'s memory")
    places = ", ".join(f"{flip.offset:#x}" for flip in flips[:4])
    return Applied(
        f"key {canary.key}: one bit of {len(flips)} copies flipped and read back "
        f"(at {places}{', ...' if len(flips) > 4 else ''})"
    )

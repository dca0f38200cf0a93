"""Causes that replicas share: their host, one pattern of flips, a request that meets a bug."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from faultinject.faults.machines import crash, flip_ram
from faultinject.faults.site import Applied, ClientSite, FaultTarget, NotApplied, Site
from faultinject.faults.voters import kill_voter
from faultinject.services.poisoned import CRASHES, LIES, SIGN

__all__ = ["crash_host", "flip_all", "poison", "poison_request"]


async def crash_host(site: Site) -> Applied:
    """End all guests' QEMUs and the voter, at once."""
    acts = [crash(site.machine(name)) for name in site.names]
    pid = site.voter_pid()
    if pid is not None:
        acts.insert(0, kill_voter(pid))
    return _joined(await asyncio.gather(*acts, return_exceptions=True))


async def flip_all(machines: Sequence[FaultTarget], seed: int, dose: int) -> Applied:
    """Flip the same bits in the memory of every guest."""
    acts = [flip_ram(machine, seed, dose) for machine in machines]
    applied = _joined(await asyncio.gather(*acts, return_exceptions=True))
    return Applied(f"in each of {len(machines)} guests: {applied.proof}")


def _joined(results: Sequence[Applied | BaseException]) -> Applied:
    """Return the parts as one.  Raises the first error among them."""
    proofs = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        proofs.append(result.proof)
    return Applied("; ".join(proofs), used=True)


def poison_request(kind: str, seed: int) -> tuple[str, str, bytes]:
    """Return method, target and body of the request that meets the bug."""
    word = CRASHES if kind == "poison-crash" else LIES
    return "PUT", f"/kv/poison-{seed:016x}", word


async def poison(kind: str, seed: int, site: Site) -> Applied:
    """Send the request that meets the bug of the service ``poisoned``, and see that it has."""
    if not isinstance(site, ClientSite):
        raise NotApplied(f"{kind} is a request, and this site has no client to send it")
    method, target, body = poison_request(kind, seed)
    status, reply = await site.send(method, target, body)
    if kind == "poison-crash":
        if status == 201:
            raise NotApplied(f"{method} {target} was answered: the service has no such bug")
        return Applied(f"{method} {target} got no reply of the service ({status})", used=True)
    if SIGN.encode() not in reply:
        raise NotApplied(f"{method} {target} was answered rightly: the service has no such bug")
    return Applied(f"{method} {target} was answered wrongly ({status})", used=True)

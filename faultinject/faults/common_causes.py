"""Common causes: the host, one pattern of flips in all guests, a request that triggers a bug."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from deploy.node.interfaces import GuestPort
from faultinject.faults import processes
from faultinject.faults.machines import crash
from faultinject.faults.memory import flip_ram
from faultinject.faults.site import ActiveFault, NotApplied, Site
from faultinject.services.poisoned import CRASHES, LIES, SIGN

__all__ = ["crash_host", "flip_all", "poison", "poison_request"]


async def crash_host(site: Site) -> ActiveFault:
    """Kill all guests' QEMUs and the voter at once."""
    actions = [crash(site.machine(name)) for name in site.names]
    pid = site.voter_pid()
    if pid is not None:
        actions.insert(0, processes.kill(pid, "the voter"))
    return _joined(await asyncio.gather(*actions, return_exceptions=True))


async def flip_all(machines: Sequence[GuestPort], seed: int, dose: int) -> ActiveFault:
    """Flip the same bits in the memory of every guest."""
    actions = [flip_ram(machine, seed, dose) for machine in machines]
    active = _joined(await asyncio.gather(*actions, return_exceptions=True))
    return ActiveFault(f"in each of {len(machines)} guests: {active.proof}")


def _joined(results: Sequence[ActiveFault | BaseException]) -> ActiveFault:
    """Return all parts as one fault.  Raises the first error among them."""
    proofs = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        proofs.append(result.proof)
    return ActiveFault("; ".join(proofs), activated=True)


def poison_request(kind: str, seed: int) -> tuple[str, str, bytes]:
    """Return method, target and body of the request that triggers the bug."""
    body = CRASHES if kind == "poison-crash" else LIES
    return "PUT", f"/kv/poison-{seed:016x}", body


async def poison(kind: str, seed: int, site: Site) -> ActiveFault:
    """Send the request that triggers the bug of the service ``poisoned``; prove that it did."""
    method, target, body = poison_request(kind, seed)
    status, reply = await site.send(method, target, body)
    if kind == "poison-crash":
        if status == 201:
            raise NotApplied(f"{method} {target} was answered: the service has no such bug")
        return ActiveFault(
            f"{method} {target} got no reply of the service ({status})", activated=True
        )
    if SIGN.encode() not in reply:
        raise NotApplied(f"{method} {target} was answered correctly: the service has no such bug")
    return ActiveFault(f"{method} {target} was answered wrongly ({status})", activated=True)

"""Acts: each kind of the catalogue carried out on a site, proved, and undone.

applied = await apply(hit, site)      raises NotApplied(reason): no fault, and so no trial
...                                   applied.proof tells in words what was read back
await applied.used(); await applied.undo()
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from deploy.errors import DeployError
from faultinject.faults import Injection, functions, inside, machines, regions, shared, voters
from faultinject.faults.catalogue import CATALOGUE, FaultLayer, find
from faultinject.faults.site import Applied, ClientSite, FaultTarget, Liar, NotApplied, Site
from faultinject.faults.state import corrupt_state

__all__ = ["Applied", "ClientSite", "Liar", "FaultTarget", "NotApplied", "Site", "apply"]

Act = Callable[[Injection, Site], Awaitable[Applied]]


async def apply(hit: Injection, site: Site) -> Applied:
    """Carry out one fault.  Raises NotApplied; the fault may then act in part."""
    try:
        fault = find(hit.kind)
    except ValueError as error:
        raise NotApplied(str(error)) from error
    if "guest" not in fault.targets:
        if hit.target not in fault.targets:
            raise NotApplied(f"{hit.kind} hits the {fault.targets[0]}, not {hit.target}")
    elif hit.target not in site.names:
        raise NotApplied(f"no guest {hit.target}: give one of {', '.join(site.names)}")
    try:
        if fault.layer is FaultLayer.LINK:
            return _lie(site.link(hit.target), hit)
        return await _ACTS[hit.kind](hit, site)
    except (DeployError, OSError) as error:
        raise NotApplied(f"{hit.kind} of {hit.target}: {error}") from error


def _lie(link: Liar, hit: Injection) -> Applied:
    # Of a link's own seed, so that two with one seed lie alike.
    link.tell(hit.kind, hit.seed.to_bytes(8))
    lie = link.lie
    if link.kind != hit.kind or lie is None:
        raise NotApplied(f"the proxy in {hit.target}'s link does not hold {hit.kind}")

    async def undo() -> None:
        if link.lie is lie:
            link.tell(None)

    proof = f"the proxy in {hit.target}'s link holds it (seed {hit.seed:016x})"
    return Applied(proof, used=lambda: lie.count > 0, undo=undo)


def _on_machine(act: Callable[[FaultTarget], Awaitable[Applied]]) -> Act:
    return lambda hit, site: act(site.machine(hit.target))


def _of_function(kind: str) -> Act:
    return lambda hit, site: functions.break_function(kind, site.machine(hit.target))


def _of_moved(kind: str) -> Act:
    return lambda hit, site: functions.break_moved(kind, site)


def _with_dose(act: Callable[[FaultTarget, int, int], Awaitable[Applied]]) -> Act:
    return lambda hit, site: act(site.machine(hit.target), hit.seed, hit.dose)


def _in_region(kind: str) -> Act:
    return lambda hit, site: regions.flip_region(
        kind, site.machine(hit.target), site.shell(hit.target), hit.seed, hit.dose
    )


def _in_shell(act: Callable[[inside.Shell, int, int], Awaitable[Applied]]) -> Act:
    return lambda hit, site: act(site.shell(hit.target), hit.seed, hit.dose)


_ACTS: dict[str, Act] = {
    "crash": _on_machine(machines.crash),
    "hang": _on_machine(machines.hang),
    "slow": _on_machine(machines.slow_down),
    "reset": _on_machine(machines.reset),
    "nmi": _on_machine(machines.nmi),
    "flip-ram": _with_dose(machines.flip_ram),
    "flip-register": _with_dose(machines.flip_register),
    **{kind: _in_region(kind) for kind in regions.REGIONS},
    "corrupt-state": lambda hit, site: corrupt_state(hit.target, site),
    **{kind: _in_shell(act) for kind, act in inside.ACTS.items()},
    **{
        kind: _of_function(kind)
        for kind, fault in CATALOGUE.items()
        if fault.layer is FaultLayer.FUNCTION
    },
    **{
        kind: _of_moved(kind)
        for kind, fault in CATALOGUE.items()
        if fault.layer is FaultLayer.MOVED
    },
    "voter-kill": lambda hit, site: voters.kill_voter(site.voter_pid()),
    "voter-hang": lambda hit, site: voters.hang_voter(site.voter_pid()),
    "voter-flip": lambda hit, site: voters.flip_voter(site.voter_pid(), hit.seed, hit.dose),
    "host-crash": lambda hit, site: shared.crash_host(site),
    "flip-all": lambda hit, site: shared.flip_all(
        [site.machine(name) for name in site.names], hit.seed, hit.dose
    ),
    "poison": lambda hit, site: shared.poison(hit.kind, hit.seed, site),
    "poison-crash": lambda hit, site: shared.poison(hit.kind, hit.seed, site),
}

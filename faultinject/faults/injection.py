"""Injection of one fault into a site: carry it out, prove it by reading it back, undo it.

active = await inject(injection, site)     raises NotApplied: nothing was proved, so no trial
...                                        active.proof describes what was read back
await active.activated(); await active.undo()
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from deploy.errors import DeployError
from deploy.node.interfaces import GuestPort
from faultinject.faults import common_causes, functions, inside, machines, memory, processes
from faultinject.faults.catalogue import CATALOGUE, FaultLayer, Injection, find
from faultinject.faults.site import ActiveFault, NotApplied, Site

__all__ = ["inject"]

_Action = Callable[[Injection, Site], Awaitable[ActiveFault]]


async def inject(injection: Injection, site: Site) -> ActiveFault:
    """Inject one fault.  Raises NotApplied; the fault may then be partly active."""
    kind, target = injection.kind, injection.target
    try:
        fault = find(kind)
    except ValueError as error:
        raise NotApplied(str(error), error_code="TV0503") from error
    if "guest" not in fault.targets:
        if target not in fault.targets:
            raise NotApplied(
                f"{kind} is for the {fault.targets[0]}, not {target}", error_code="TV0507"
            )
    elif target not in site.names:
        raise NotApplied(
            f"no guest {target}: give one of {', '.join(site.names)}", error_code="TV0507"
        )
    try:
        return await _ACTIONS[kind](injection, site)
    except (DeployError, OSError) as error:
        raise NotApplied(f"{kind} of {target}: {error}") from error


async def _lie(injection: Injection, site: Site) -> ActiveFault:
    link, kind = site.link(injection.target), injection.kind
    link.set_lie(kind, injection.seed.to_bytes(8))
    lie = link.lie
    if link.kind != kind or lie is None:
        raise NotApplied(f"the proxy in {injection.target}'s link does not report {kind}")

    async def undo() -> None:
        if link.lie is lie:
            link.set_lie(None)

    proof = f"the proxy in {injection.target}'s link reports it (seed {injection.seed:016x})"
    return ActiveFault(proof, activated=lambda: lie.count > 0, undo=undo)


def _machine(action: Callable[[GuestPort], Awaitable[ActiveFault]]) -> _Action:
    return lambda each, site: action(site.machine(each.target))


def _dosed(action: Callable[[GuestPort, int, int], Awaitable[ActiveFault]]) -> _Action:
    return lambda each, site: action(site.machine(each.target), each.seed, each.dose)


def _shell(action: Callable[[inside.Shell, int, int], Awaitable[ActiveFault]]) -> _Action:
    return lambda each, site: action(site.shell(each.target), each.seed, each.dose)


def _region(each: Injection, site: Site) -> Awaitable[ActiveFault]:
    machine, shell = site.machine(each.target), site.shell(each.target)
    return memory.flip_region(each.kind, machine, shell, each.seed, each.dose)


def _function(each: Injection, site: Site) -> Awaitable[ActiveFault]:
    return functions.break_guest_function(each.kind, site.machine(each.target))


def _of_layer(layer: FaultLayer, action: _Action) -> dict[str, _Action]:
    return {kind: action for kind, fault in CATALOGUE.items() if fault.layer is layer}


def _poison(each: Injection, site: Site) -> Awaitable[ActiveFault]:
    return common_causes.poison(each.kind, each.seed, site)


_ACTIONS: dict[str, _Action] = {
    "crash": _machine(machines.crash),
    "hang": _machine(machines.hang),
    "slow": _machine(machines.slow_down),
    "reset": _machine(machines.reset),
    "nmi": _machine(machines.nmi),
    "flip-register": _dosed(machines.flip_register),
    "flip-ram": _dosed(memory.flip_ram),
    **dict.fromkeys(memory.REGIONS, _region),
    "corrupt-state": lambda each, site: memory.corrupt_state(each.target, site),
    **{kind: _shell(action) for kind, action in inside.ACTIONS.items()},
    **_of_layer(FaultLayer.LINK, _lie),
    **_of_layer(FaultLayer.GUEST_FUNCTION, _function),
    **_of_layer(
        FaultLayer.HOST_FUNCTION,
        lambda each, site: functions.break_host_function(each.kind, site),
    ),
    "voter-kill": lambda each, site: processes.kill(site.voter_pid(), "the voter"),
    "voter-hang": lambda each, site: processes.hang(site.voter_pid(), "the voter"),
    "voter-flip": lambda each, site: processes.flip_voter(site.voter_pid(), each.seed, each.dose),
    "host-crash": lambda each, site: common_causes.crash_host(site),
    "flip-all": lambda each, site: common_causes.flip_all(
        [site.machine(name) for name in site.names], each.seed, each.dose
    ),
    **_of_layer(FaultLayer.REQUEST, _poison),
}

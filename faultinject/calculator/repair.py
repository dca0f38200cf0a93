"""``trivisor model repairable``: guests with repair.  Beyond the paper, which has no time."""

from __future__ import annotations

import math

import msgspec

from faultinject.calculator.designs import parse_design
from faultinject.calculator.values import Number, digits, number, plain
from faultinject.model.paired import ModelError
from faultinject.model.repairable import (
    Repairable,
    mean_time_to_failure,
    mission_reliability,
    plain_availability,
    plain_reliability,
    steady_state,
    voter_availability_needed,
    voter_rate_allowed,
)

__all__ = ["BEYOND", "RepairAnswer", "Times", "answer_repair"]

BEYOND = "beyond the paper: section 4 is combinatorial, without time or repair"


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """Mean times in a unit of the user's choice; None: it never happens."""

    mttf: float
    mttr: float
    voter_mttf: float | None = None
    voter_mttr: float | None = None


class RepairAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The node, and one guest without a voter.  Times in the user's unit; None: infinite.

    ``voter_mttf_needed``: the voter's mean time to failure above which the mission is more reliable
    than on the plain node (None: no mission was given, or no value is enough).
    """

    design: str
    repairers: int
    scope: str
    availability: Number
    guests_availability: Number
    plain_availability: Number
    voter_availability_needed: Number
    mean_up: float | None
    mean_down: float | None
    mttf: float | None
    plain_mttf: float
    mission: float | None = None
    reliability: Number | None = None
    plain_reliability: Number | None = None
    voter_mttf_needed: float | None = None
    notes: tuple[str, ...] = ()


def _rate(name: str, mean: float | None) -> float:
    if mean is None:
        return 0.0
    if not 0.0 < mean < math.inf:
        raise ModelError(f"{name} is {mean:g}: a mean time is positive and finite")
    return 1.0 / mean


def answer_repair(
    design: str, n: int | None, times: Times, repairers: int, mission: float | None
) -> RepairAnswer:
    """Compute steady state, mean time to failure and, with ``mission``, its reliability.

    ``repairers`` 0: one for each guest.  Raises ModelError.
    """
    named = parse_design(design, n)
    if named.plain:
        raise ModelError(
            "NV is compared with every design: give a voted one, or 1ofn with --n",
            error_code="TV0602",
        )
    m, size = named.sized()
    model = Repairable(
        m=m,
        n=size,
        fail=_rate("the VMs' mean time to failure", times.mttf),
        repair=_rate("the VMs' mean time to repair", times.mttr),
        repairers=repairers or size,
        voter_fail=_rate("the voter's mean time to failure", times.voter_mttf),
        voter_repair=_rate("the voter's mean time to repair", times.voter_mttr),
    )
    state, base = steady_state(model), plain_availability(model)
    needed = voter_availability_needed(model)
    notes = [
        f"in the long run better than one VM if the voter's availability is above {digits(needed)}"
        if needed.down > 0.0
        else "in the long run no better than one VM for any voter"
    ]
    if times.voter_mttf is not None and times.voter_mttr is None:
        notes.append("the voter is never repaired: in the long run it is down (give --voter-mttr)")
    answer = RepairAnswer(
        design=named.name,
        repairers=model.repairers,
        scope=BEYOND,
        availability=number(state.node),
        guests_availability=number(state.guests),
        plain_availability=number(base),
        voter_availability_needed=number(needed),
        mean_up=_finite(state.mean_up),
        mean_down=_finite(state.mean_down),
        mttf=_finite(mean_time_to_failure(model)),
        plain_mttf=times.mttf,
        notes=tuple(notes),
    )
    if mission is None:
        return answer
    allowed = voter_rate_allowed(model, mission)
    notes.append(
        f"in a mission of {plain(mission)} better than one VM if the voter's mean time to failure "
        f"is above {plain(1 / allowed)}"
        if allowed > 0.0
        else f"in a mission of {plain(mission)} no better than one VM for any voter"
    )
    return msgspec.structs.replace(
        answer,
        mission=mission,
        reliability=number(mission_reliability(model, mission)),
        plain_reliability=number(plain_reliability(model, mission)),
        voter_mttf_needed=1 / allowed if allowed > 0.0 else None,
        notes=tuple(notes),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

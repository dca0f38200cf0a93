"""``trivisor model advise``: the recommended design, its gain, and its conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from faultinject.calculator.values import Number, digits, number, plain
from faultinject.model.bounds import guests_needed, guests_to_beat_plain, rm_range
from faultinject.model.designs import WITHIN, Design, RankedDesign, best_design, evaluate, rank
from faultinject.model.inversions import breakeven_with, guests_for_majority
from faultinject.model.outcomes import FailureMode, guest_outcomes
from faultinject.model.paired import ModelError, Paired
from faultinject.model.reliability import nv, series

__all__ = ["Advice", "Candidate", "answer_advice"]

MOST_ADVISED = 30


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A design with its node reliability, and its probability of releasing a wrong reply.

    ``failures_left``: U_sys/U_NV, None where NV cannot fail.
    """

    design: str
    guests: int
    node: Number
    silent: float
    failures_left: float | None


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """The recommended design, the reasons, and the conditions under which it is best."""

    recommended: str
    guests: int
    candidates: tuple[Candidate, ...]
    reasons: tuple[str, ...]
    conditions: tuple[str, ...]
    target: tuple[str, ...] = ()


class _Case(msgspec.Struct, frozen=True, kw_only=True):
    rm: Paired
    rv: Paired
    rh: Paired
    most: int
    how: FailureMode


def answer_advice(
    rm: Paired, rv: Paired, rh: Paired, most: int, how: FailureMode, r: Paired | None = None
) -> Advice:
    """Recommend a design for guests R_M on a layer R_V, up to ``most`` (1 to 30) of them.

    ``r``: a required node reliability.  Raises ModelError.
    """
    if not 1 <= most <= MOST_ADVISED:
        raise ModelError(f"n is {most}: advice is given for 1 to {MOST_ADVISED} VMs")
    case = _Case(rm=rm, rv=rv, rh=rh, most=most, how=how)
    chosen = best_design(rm, rv, most, rh, how)
    take = chosen.take
    return Advice(
        recommended=take.design.name,
        guests=take.design.n,
        candidates=tuple(_shown(case, take)),
        reasons=tuple(_reasons(case, take, chosen.best)),
        conditions=tuple(_missing(case) if take.design.plain else _conditions(case, take)),
        target=() if r is None else tuple(_target(case, take, r)),
    )


def _shown(case: _Case, take: RankedDesign) -> Iterator[Candidate]:
    """Yield the recommended design, NV, the fail-safe pair, and the best 1-of-n and majority."""
    wanted = {take.design, Design(n=1, m=1, plain=True), Design(n=2, m=2), Design(n=3, m=2)}
    ranked = rank(case.rm, case.rv, case.most, case.rh, case.how)
    for family in ("first", "majority"):
        for each in ranked:
            design = each.design
            if not design.plain and (design.m == 1) == (family == "first"):
                wanted.add(design)
                break
    base = nv(case.rh, case.rm)
    for each in ranked:
        if each.design in wanted:
            yield Candidate(
                design=each.design.name,
                guests=each.design.n,
                node=number(each.outcomes.correct),
                silent=each.outcomes.silent,
                failures_left=each.outcomes.correct.down / base.down if base.down else None,
            )


def _reasons(case: _Case, take: RankedDesign, best: RankedDesign) -> Iterator[str]:
    base = nv(case.rh, case.rm)
    if take.design.plain:
        yield (
            f"no design of up to {case.most} VMs is more reliable than one machine without a voter"
        )
        return
    correct = take.outcomes.correct
    yield (
        f"the node fails in {plain(correct.down)} of missions, one machine without a voter in "
        f"{plain(base.down)}: {plain(base.down / correct.down) if correct.down else 'infinitely'} "
        "times as often"
    )
    if best.design != take.design:
        yield (
            f"{best.design.name} is the most reliable (R_sys = {digits(best.outcomes.correct)}), "
            f"but {take.design.name} has at least {1 - WITHIN:.0%} of its gain, with fewer VMs"
        )
    lost = take.outcomes.lost
    if lost > 0.5 * correct.down:
        yield (
            f"{lost / correct.down:.0%} of the remaining failures are of the layer under the VMs: "
            "a higher R_V helps, more VMs hardly do"
        )
    if take.design.m == 1:
        yield "1-of-n compares nothing: it tolerates VMs that stop, not VMs that lie"
    elif take.outcomes.silent > 0.0:
        yield f"wrong replies are released in {plain(take.outcomes.silent)} of missions"


def _bound(case: _Case, design: Design) -> Paired:
    part = guest_outcomes(case.rm, design.m, design.n, case.how).correct
    return breakeven_with(case.rm, part)


def _conditions(case: _Case, take: RankedDesign) -> Iterator[str]:
    design = take.design
    bound = _bound(case, design)
    name = {1: "Inequality 1"}.get(design.m, "Inequality 4" if design.n == 3 else "as Inequality 4")
    yield f"R_V > {digits(bound)} at this R_M ({name}); it is {digits(case.rv)}"
    if case.how == FailureMode() or (design.m > 1 and not case.how.beta):
        found = rm_range(case.rv, design.m, design.n)
        if found is not None:
            yield f"R_M between {digits(found[0])} and {digits(found[1])} at this R_V"

    def worse(how: FailureMode) -> bool:
        return evaluate(design, case.rm, case.rv, case.rh, how).gain <= 0.0

    if design.m == 1:
        limit = _threshold(
            lambda x: worse(msgspec.structs.replace(case.how, lying=x)), case.how.lying
        )
        if limit is not None:
            yield f"fewer than {limit:.4%} of the VMs' failures are wrong replies"
    limit = _threshold(lambda x: worse(msgspec.structs.replace(case.how, beta=x)), case.how.beta)
    if limit is not None:
        yield f"fewer than {limit:.4%} of the VMs' failures affect all VMs at once (beta)"


def _threshold(worse: Callable[[float], bool], start: float) -> float | None:
    """Return the share from ``start`` to 1 above which it is worse; None: nowhere."""
    if not worse(1.0):
        return None
    low, high = start, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if worse(middle) else (middle, high)
    return high


def _missing(case: _Case) -> Iterator[str]:
    """Yield the conditions under which another design would be better than NV."""
    if case.rm.down == 0.0 or case.rm == 0.0:
        yield "R_M strictly between 0 and 1: at R_M = 0 or 1 there is nothing to gain"
        return
    for design in (Design(n=3, m=2), Design(n=case.most, m=1)):
        if design.n > case.most or (design.m == 1 and design.n < 2):
            continue
        bound = _bound(case, design)
        if bound.down > 0.0:
            yield f"for {design.name}: R_V > {digits(bound)} at this R_M (it is {digits(case.rv)})"
        else:
            yield f"for {design.name}: no R_V < 1 is enough at this R_M, as these VMs fail"
    if not case.how.lying and not case.how.beta and case.rv > case.rm:
        try:
            guests = guests_to_beat_plain(case.rm, case.rv).guests
        except ModelError as error:
            yield f"1-of-n: {error}"
        else:
            yield f"1-of-n with n = {guests} would be better (Inequality 1), for VMs that stop"
    elif case.rv <= case.rm:
        yield "the hypervisor has to be more reliable than the individual VM (Inequality 1)"


def _target(case: _Case, take: RankedDesign, r: Paired) -> Iterator[str]:
    got = take.outcomes.correct
    if got.down < r.down:
        yield f"R = {digits(r)} is reached: {take.design.name} has {digits(got)}"
        return
    yield f"R = {digits(r)} is not reached: {take.design.name} has {digits(got)}"
    layer = series(case.rh, case.rv)
    if r.down <= layer.down:
        yield f"no design reaches it: R_H R_V = {digits(layer)} (Inequality 2 requires R < R_V)"
        return
    if case.how != FailureMode():
        yield "the number of VMs needed is computed only without --lying and --beta"
        return
    for name, solve in (("1-of-n", guests_needed), ("a majority", guests_for_majority)):
        try:
            needed = solve(r, case.rv, case.rm, case.rh)
        except ModelError as error:
            yield f"{name}: {error}"
        else:
            yield f"{name} reaches it with {needed.guests} VMs, if their failures are independent"

"""``trivisor model bound``: what is given decides which inequality is solved, and for what."""

from __future__ import annotations

import msgspec

from faultinject.calculator.designs import NamedDesign, policy
from faultinject.calculator.values import Number, digits, number
from faultinject.model.bounds import (
    breakeven_rf,
    breakeven_rv,
    guests_needed,
    guests_to_beat_plain,
    rm_range,
)
from faultinject.model.causes import beta_factor
from faultinject.model.inversions import (
    breakeven_with,
    guests_for_majority,
    guests_when_moved,
    rf_when_moved,
    rm_needed,
    rm_when_moved,
    rv_needed,
)
from faultinject.model.paired import ModelError, Paired
from faultinject.model.reliability import m_of_n

__all__ = ["BoundAnswer", "Given", "answer_bound"]


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What the user knows; None is what the user asks for, or does not care about."""

    design: str
    n: int | None = None
    r: Paired | None = None
    rh: Paired = Paired(1.0)
    rv: Paired | None = None
    rm: Paired | None = None
    rf: Paired | None = None
    r_moved: Paired | None = None
    beta: Paired = Paired(0.0)


class BoundAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``unknown`` ``relation`` ``value`` (and ``high``, of a range; ``guests``, of n).

    ``possible``: False where no R < 1, or no R_M at all, would do.  ``met``: with all given,
    whether the inequality holds.
    """

    design: str
    source: str
    unknown: str
    relation: str
    value: Number | None = None
    high: Number | None = None
    guests: int | None = None
    possible: bool = True
    met: bool | None = None
    says: tuple[str, ...] = ()


def answer_bound(given: Given) -> BoundAnswer:
    """Solve for what is missing.  Raises ModelError, which says why, or what else to give."""
    if given.design.strip().lower() in {"moved", "c1", "c2"}:
        return _moved(given)
    if given.rf is not None or given.r_moved is not None:
        raise ModelError("R_f and R_F belong to a function that is moved: --design moved")
    asked = policy(given.design, given.n)
    if asked.plain:
        raise ModelError("NV is what the others are compared with: there is no bound on it")
    return _compare(asked, given) if given.r is None else _target(asked, given, given.r)


def _source(asked: NamedDesign) -> str:
    if (asked.m, asked.n) == (2, 3):
        return "Inequality 4"
    return "Inequality 1" if asked.m == 1 else "Inequality 4, for m-of-n"


# --------------------------------------------------------- better than the plain node


def _compare(asked: NamedDesign, given: Given) -> BoundAnswer:
    if given.rm is not None and asked.n is not None:
        return _rv_bound(asked, given, given.rm)
    if given.beta:
        raise ModelError("with --beta give --rm and --n: it is the bound on R_V that is known then")
    if given.rv is not None and given.rm is not None and asked.m == 1:
        needed = guests_to_beat_plain(given.rm, given.rv)
        return BoundAnswer(
            design=asked.name,
            source="Inequality 1",
            unknown="n",
            relation=">",
            value=number(needed.bound),
            guests=needed.guests,
            says=(f"fewer than {needed.guests} VMs would only lower the node's reliability",),
        )
    if given.rv is not None and asked.n is not None:
        return _rm_bound(asked, given.rv)
    raise ModelError(
        f"{asked.name}: give --rm and --n (which R_V?), --rv and --n (which R_M?), for 1ofn also "
        "--rm and --rv (how many VMs?); for a node reliability R of its own give --r and two of "
        "--rv, --rm, --n"
    )


def _rv_bound(asked: NamedDesign, given: Given, rm: Paired) -> BoundAnswer:
    m, n = asked.sized()
    if rm.down == 0.0:
        raise ModelError(f"R_M = 1: what never fails cannot be made better ({_source(asked)})")
    bound = (
        breakeven_with(rm, beta_factor(rm, float(given.beta), m, n))
        if given.beta
        else breakeven_rv(rm, m, n)
    )
    possible = bound.down > 0.0
    says = [] if possible else [_hopeless(asked, given.beta)]
    met = None
    if given.rv is not None:
        met = possible and given.rv.down < bound.down
        says.append(
            f"R_V = {digits(given.rv)} is {'above' if met else 'not above'} it: {asked.name} is "
            f"{'better' if met else 'no better'} than one VM on the bare node"
        )
    return BoundAnswer(
        design=asked.name,
        source=_source(asked) + (", with a beta factor" if given.beta else ""),
        unknown="R_V",
        relation=">",
        value=number(bound),
        possible=possible,
        met=met,
        says=tuple(says),
    )


def _hopeless(asked: NamedDesign, beta: Paired) -> str:
    m, n = asked.sized()
    if n == 1:
        return "no R_V < 1 will do: with n = 1 the layer V is only one more thing that fails"
    if m == n:
        return (
            f"no R_V < 1 will do: {asked.name} works only if all do (it is there to be fail-safe)"
        )
    if (m, n) == (2, 3) and not beta:
        return "no R_V < 1 will do: at R_M <= .5 the vote only makes it worse, by Inequality 4"
    return f"no R_V < 1 will do: at this R_M {asked.name} is no better than one VM"


def _rm_bound(asked: NamedDesign, rv: Paired) -> BoundAnswer:
    m, n = asked.sized()
    found = rm_range(rv, m, n)
    if found is None:
        why = (
            "the bound is lowest, 8/9, at R_M = .75"
            if (m, n) == (2, 3)
            else f"it works only if all {n} do"
            if m == n
            else "the bound on R_V is above this everywhere"
        )
        return BoundAnswer(
            design=asked.name,
            source=_source(asked),
            unknown="R_M",
            relation="in",
            possible=False,
            says=(f"at no R_M is {asked.name} better with R_V = {digits(rv)}: {why}",),
        )
    return BoundAnswer(
        design=asked.name,
        source=_source(asked),
        unknown="R_M",
        relation="in",
        value=number(found[0]),
        high=number(found[1]),
        says=("outside of this open range one VM on the bare node is as good, or better",),
    )


# --------------------------------------------------------- a given node reliability R


def _target(asked: NamedDesign, given: Given, r: Paired) -> BoundAnswer:
    if given.beta:
        raise ModelError("--beta is for the comparison with the plain node: give it without --r")
    if given.rm is not None and asked.n is not None:
        bound = rv_needed(r, m_of_n(1.0, 1.0, given.rm, *asked.sized()), given.rh)
        possible = bound.down > 0.0
        says = [] if possible else ["no R_V < 1 will do: the guests alone do not reach R"]
        met = None
        if given.rv is not None:
            met = possible and given.rv.down < bound.down
            says.append(
                f"R_V = {digits(given.rv)} is {'above' if met else 'not above'} it: {asked.name} "
                f"is {'' if met else 'not '}more reliable than R = {digits(r)}"
            )
        return _reaches(asked, "R_V", bound, possible, tuple(says), met)
    if given.rv is not None and given.rm is None and asked.n is not None:
        return _reaches(asked, "R_M", rm_needed(r, given.rv, *asked.sized(), given.rh), True, ())
    if given.rv is not None and given.rm is not None and asked.n is None:
        if asked.m not in {None, 1}:
            raise ModelError(f"{asked.name}: n is found for 1ofn and majority")
        solve = guests_needed if asked.m == 1 else guests_for_majority
        needed = solve(r, given.rv, given.rm, given.rh)
        return BoundAnswer(
            design=asked.name,
            source="Inequality 2" if asked.m == 1 else "section 4, for m-of-n",
            unknown="n",
            relation=">",
            value=number(needed.bound),
            guests=needed.guests,
        )
    raise ModelError(f"{asked.name}: with --r give two of --rv, --rm and --n; the third is found")


def _reaches(
    asked: NamedDesign,
    unknown: str,
    bound: Paired,
    possible: bool,
    says: tuple[str, ...],
    met: bool | None = None,
) -> BoundAnswer:
    return BoundAnswer(
        design=asked.name,
        source="Inequality 2" if asked.m == 1 else "section 4, for m-of-n",
        unknown=unknown,
        relation=">",
        value=number(bound),
        possible=possible,
        met=met,
        says=says,
    )


# --------------------------------------------------------- a function moved into the VMM


def _moved(given: Given) -> BoundAnswer:
    if given.r is not None or given.beta or given.rv is not None or given.rh.down:
        raise ModelError("Inequality 3 compares C2 with C1: R_H, R_V, --r and --beta are not in it")
    rf, rm, moved, n = given.rf, given.rm, given.r_moved, given.n
    if rf is not None and rm is not None and n is not None:
        return _rf_bound(breakeven_rf(rf, rm, n), n, moved)
    if rf is not None and rm is not None and moved is not None:
        most = guests_when_moved(moved, rf, rm)
        return _third("n", None, most, "at more VMs than that f is better kept inside each VM")
    if rm is not None and moved is not None and n is not None:
        found = rf_when_moved(moved, rm, n)
        return _third("R_f", found, None, "an f that is more reliable is better kept inside")
    if rf is not None and moved is not None and n is not None:
        found = rm_when_moved(moved, rf, n)
        return _third("R_M'", found, None, "with VMs that are better otherwise f is better inside")
    raise ModelError(
        "moved: give three of --rf (R_f), --rm (R_M', the rest of a VM), --n and --r-moved (R_F); "
        "the fourth is found"
    )


def _rf_bound(bound: Paired, n: int, moved: Paired | None) -> BoundAnswer:
    met, says = None, []
    if n == 1:
        says.append("with a single VM it does not matter where the function is: R_F >= R_f")
    if moved is not None:
        met = moved.down <= bound.down if bound > 0.5 else float(moved) >= float(bound)
        says.append(
            f"R_F = {digits(moved)}: moving the function "
            + ("is no loss" if met else "makes the node less reliable")
        )
    return BoundAnswer(
        design="moved",
        source="Inequality 3",
        unknown="R_F",
        relation=">=",
        value=number(bound),
        possible=bound.down > 0.0,
        met=met,
        says=tuple(says),
    )


def _third(unknown: str, value: Paired | None, guests: int | None, words: str) -> BoundAnswer:
    if unknown == "n" and guests is None:
        words = "F is good enough at any number of VMs up to 10,000"
    return BoundAnswer(
        design="moved",
        source="Inequality 3",
        unknown=unknown,
        relation="<=",
        value=None if value is None else number(value),
        guests=guests,
        says=(words,),
    )

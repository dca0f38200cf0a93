"""``trivisor model bound``: Inequalities (1) to (4), solved for the quantity that is not given."""

from __future__ import annotations

import msgspec

from faultinject.calculator.designs import NamedDesign, parse_design
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
    """What the user gives; None: to be found, or not needed."""

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

    ``possible``: False where no R < 1, or no R_M at all, is enough.  ``met``: with all quantities
    given, whether the inequality holds.
    """

    design: str
    source: str
    unknown: str
    relation: str = ">"
    value: Number | None = None
    high: Number | None = None
    guests: int | None = None
    possible: bool = True
    met: bool | None = None
    notes: tuple[str, ...] = ()


def answer_bound(given: Given) -> BoundAnswer:
    """Solve for the missing quantity.  Raises ModelError that says why not, or what to add."""
    if given.design.strip().lower() in {"moved", "c1", "c2"}:
        return _moved(given)
    if given.rf is not None or given.r_moved is not None:
        raise ModelError(
            "R_f and R_F belong to a function that is moved: --design moved", error_code="TV0602"
        )
    named = parse_design(given.design, given.n)
    if named.plain:
        raise ModelError(
            "NV is the reference of the comparison: it has no bound", error_code="TV0602"
        )
    return _better_than_plain(named, given) if given.r is None else _reaches(named, given, given.r)


def _better_than_plain(named: NamedDesign, given: Given) -> BoundAnswer:
    if given.rm is not None and named.n is not None:
        return _rv_bound(named, given, given.rm)
    if given.beta:
        raise ModelError(
            "with --beta give --rm and --n: only the bound on R_V is known then",
            error_code="TV0602",
        )
    if given.rv is not None and given.rm is not None and named.m == 1:
        needed = guests_to_beat_plain(given.rm, given.rv)
        return BoundAnswer(
            design=named.name, source="Inequality 1", unknown="n", value=number(needed.bound),
            guests=needed.guests,
            notes=(f"fewer than {needed.guests} VMs lower the node's reliability",),
        )  # fmt: skip
    if given.rv is not None and named.n is not None:
        return _rm_bound(named, given.rv)
    raise ModelError(
        f"{named.name}: give --rm and --n (to find R_V), --rv and --n (to find R_M), for 1ofn also "
        "--rm and --rv (to find n); for a required node reliability give --r and two of --rv, "
        "--rm, --n"
    )


def _source(named: NamedDesign) -> str:
    if (named.m, named.n) == (2, 3):
        return "Inequality 4"
    return "Inequality 1" if named.m == 1 else "Inequality 4, for m-of-n"


def _rv_bound(named: NamedDesign, given: Given, rm: Paired) -> BoundAnswer:
    m, n = named.sized()
    source = _source(named)
    if rm.down == 0.0:
        raise ModelError(
            f"R_M = 1: a VM that never fails cannot be improved ({source})", error_code="TV0603"
        )
    if given.beta:
        source += ", with a beta factor"
        bound = breakeven_with(rm, beta_factor(rm, float(given.beta), m, n))
    else:
        bound = breakeven_rv(rm, m, n)
    met, notes = _compare_rv(
        named, given.rv, bound, _no_rv(m, n, given.beta), "better than one VM on the bare node",
        "no better than one VM on the bare node",
    )  # fmt: skip
    return BoundAnswer(
        design=named.name, source=source, unknown="R_V", value=number(bound),
        possible=bound.down > 0.0, met=met, notes=notes,
    )  # fmt: skip


def _compare_rv(
    named: NamedDesign, rv: Paired | None, bound: Paired, impossible: str, yes: str, no: str
) -> tuple[bool | None, tuple[str, ...]]:
    """Whether the given R_V is above the bound, with notes."""
    notes = [] if bound.down > 0.0 else [f"no R_V < 1 is enough: {impossible}"]
    if rv is None:
        return None, tuple(notes)
    met = bound.down > 0.0 and rv.down < bound.down
    side = "above the bound" if met else "not above the bound"
    notes.append(f"R_V = {digits(rv)} is {side}: {named.name} is {yes if met else no}")
    return met, tuple(notes)


def _no_rv(m: int, n: int, beta: Paired) -> str:
    if n == 1:
        return "with n = 1 the layer V is only one more thing that fails"
    if m == n:
        return f"{m}-of-{n} works only if all VMs do (it is a fail-safe design)"
    if (m, n) == (2, 3) and not beta:
        return "at R_M <= .5 voting lowers the reliability, by Inequality 4"
    return f"at this R_M {m}-of-{n} is no better than one VM"


def _rm_bound(named: NamedDesign, rv: Paired) -> BoundAnswer:
    m, n = named.sized()
    found = rm_range(rv, m, n)
    if found is None:
        why = (
            "the bound is lowest, 8/9, at R_M = .75" if (m, n) == (2, 3)
            else f"it works only if all {n} VMs do" if m == n
            else "the bound on R_V is above this value everywhere"
        )  # fmt: skip
        note = f"{named.name} with R_V = {digits(rv)} is better at no R_M: {why}"
    else:
        note = "outside this open range one VM on the bare node is as good, or better"
    return BoundAnswer(
        design=named.name, source=_source(named), unknown="R_M", relation="in",
        value=number(found[0]) if found else None, high=number(found[1]) if found else None,
        possible=found is not None, notes=(note,),
    )  # fmt: skip


def _reaches(named: NamedDesign, given: Given, r: Paired) -> BoundAnswer:
    """A required node reliability R."""
    if given.beta:
        raise ModelError(
            "--beta is for the comparison with the plain node: give it without --r",
            error_code="TV0602",
        )
    source = "Inequality 2" if named.m == 1 else "section 4, for m-of-n"
    if given.rm is not None and named.n is not None:
        bound = rv_needed(r, m_of_n(1.0, 1.0, given.rm, *named.sized()), given.rh)
        met, notes = _compare_rv(
            named, given.rv, bound, "the guests alone do not reach R",
            f"more reliable than R = {digits(r)}", f"not more reliable than R = {digits(r)}",
        )  # fmt: skip
        return BoundAnswer(
            design=named.name, source=source, unknown="R_V", value=number(bound),
            possible=bound.down > 0.0, met=met, notes=notes,
        )  # fmt: skip
    if given.rv is not None and given.rm is None and named.n is not None:
        bound = rm_needed(r, given.rv, *named.sized(), given.rh)
        return BoundAnswer(design=named.name, source=source, unknown="R_M", value=number(bound))
    if given.rv is not None and given.rm is not None and named.n is None:
        if named.m not in {None, 1}:
            raise ModelError(
                f"{named.name}: n can be found for 1ofn and majority", error_code="TV0602"
            )
        solve = guests_needed if named.m == 1 else guests_for_majority
        needed = solve(r, given.rv, given.rm, given.rh)
        return BoundAnswer(
            design=named.name, source=source, unknown="n", value=number(needed.bound),
            guests=needed.guests,
        )  # fmt: skip
    raise ModelError(f"{named.name}: with --r give two of --rv, --rm and --n; the third is found")


def _moved(given: Given) -> BoundAnswer:
    """Inequality (3): a function moved from the VMs to the VMM."""
    if given.r is not None or given.beta or given.rv is not None or given.rh.down:
        raise ModelError(
            "Inequality 3 compares C2 with C1: it does not contain R_H, R_V, --r and --beta",
            error_code="TV0602",
        )
    rf, rm, moved, n = given.rf, given.rm, given.r_moved, given.n
    unknown, found, most, notes = "n", None, None, []
    if rf is not None and rm is not None and n is not None:
        return _rf_bound(breakeven_rf(rf, rm, n), n, moved)
    if rf is not None and rm is not None and moved is not None:
        most = guests_when_moved(moved, rf, rm)
        notes = ["with more VMs f is better kept in each VM"]
        if most is None:
            notes = ["F is reliable enough for any number of VMs up to 10,000"]
    elif rm is not None and moved is not None and n is not None:
        unknown, found = "R_f", rf_when_moved(moved, rm, n)
        notes = ["a more reliable f is better kept in each VM"]
    elif rf is not None and moved is not None and n is not None:
        unknown, found = "R_M'", rm_when_moved(moved, rf, n)
        notes = ["with more reliable VMs f is better kept in each VM"]
    else:
        raise ModelError(
            "moved: give three of --rf (R_f), --rm (R_M', the rest of a VM), --n and --r-moved "
            "(R_F); the fourth is found"
        )
    return BoundAnswer(
        design="moved", source="Inequality 3", unknown=unknown, relation="<=",
        value=None if found is None else number(found), guests=most, notes=tuple(notes),
    )  # fmt: skip


def _rf_bound(bound: Paired, n: int, moved: Paired | None) -> BoundAnswer:
    met, notes = None, []
    if n == 1:
        notes.append("with one VM the place of the function does not matter: R_F >= R_f")
    if moved is not None:
        met = moved.down <= bound.down if bound > 0.5 else float(moved) >= float(bound)
        effect = "is no loss" if met else "lowers the node's reliability"
        notes.append(f"R_F = {digits(moved)}: moving the function {effect}")
    return BoundAnswer(
        design="moved", source="Inequality 3", unknown="R_F", relation=">=", value=number(bound),
        possible=bound.down > 0.0, met=met, notes=tuple(notes),
    )  # fmt: skip

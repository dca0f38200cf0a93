"""The claims of section 4 of the paper in its order, each with its evidence."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import SupportsFloat

from faultinject.claims.evidence import (
    CAPACITY,
    NEAR,
    RELOCATION,
    Claim,
    Computed,
    DesignPoints,
    Evidence,
    Expected,
    MissionCounts,
    Results,
    above,
    below,
    format_count,
    format_interval,
    higher,
    near,
)
from faultinject.claims.independence import consequences_coupled, formula_holds
from faultinject.claims.relocation import (
    figure6_shape,
    figure6_values,
    inequality3,
    one_guest,
    retained,
)
from faultinject.estimate.counts import Counts
from faultinject.estimate.equivalence import Choice
from faultinject.estimate.intervals import Interval
from faultinject.estimate.ranges import BetterRange, better_range
from faultinject.estimate.strata import Band, Strata, band
from faultinject.model.bounds import breakeven_rv_2of3, guests_needed, rm_range_2of3
from faultinject.model.causes import beta_factor, shared_draw
from faultinject.model.inversions import rm_needed
from faultinject.model.reliability import one_of_n, two_of_three
from faultinject.results.findings import DesignPoint, Findings, Proportion, StratumFinding

__all__ = ["CLAIMS"]

BELOW_HALF = [i / 1000 for i in range(1, 500)]
"""The grid of R_M below .5 on which R_V = 1 is evaluated."""
MIB, GIB = 1 << 20, 1 << 30


def _point(found: Findings, vote: str, rm: float, rv: float) -> DesignPoint:
    for design in found.designs:
        for point in design.points:
            if (design.vote, point.rm, point.rv) == (vote, rm, rv) and not design.repair:
                return point
    raise LookupError(f"{found.campaign.title}: no point R_M = {rm}, R_V = {rv} with vote {vote}")


def _strata(found: Findings) -> dict[str, StratumFinding]:
    return {each.name: each for each in found.strata if each.alike is None}


# -------------------------------------------------------------- the plain node, 1 of n


def _plain(results: Results) -> Iterator[tuple[str, Proportion, Expected]]:
    strata = _strata(results["inequality4"])
    yield "with nothing hit", strata["nv0"].failed, "none"
    yield "with its guest hit", strata["nv1"].failed, "by construction"


def _alone(results: Results) -> Evidence:
    found = DesignPoints(
        campaign="oneofn", where=lambda d, _: (d.m, d.n, d.repair) == (1, 1, False),
        compared_with="plain", supports="less reliable than the plain node", contradicts="more",
        example=True,
    ).evaluate(results)  # fmt: skip
    repaired = [
        p for d in results["oneofn"].designs if d.repair and (d.m, d.n) == (1, 1) for p in d.points
    ]
    if not repaired:
        return found
    better = sum(p.recombined.low > p.plain for p in repaired)
    worse = sum(p.recombined.high < p.plain for p in repaired)
    text = (
        f"{found.text}; with repair of voter and guest: more reliable than a plain node that is "
        f"never restarted at {better} of {len(repaired)}, less at {worse}"
    )
    return Evidence(text=text, sides=found.sides, basis=found.basis)


def _figure3_example(results: Results) -> Evidence:
    three, four = (_point(results["oneofn"], f"1/{n}", 0.1, 0.3).recombined for n in (3, 4))
    exact = [float(one_of_n(1.0, 0.3, 0.1, n)) for n in (3, 4)]
    return Evidence(
        text=f"plain .1; n = 3: {format_interval(three)}, computed {exact[0]:.5f}; n = 4: "
        f"{format_interval(four)}, computed {exact[1]:.5f}",
        sides=(below(three, 0.1), above(four, 0.1)),
        basis=("recombined", "computed"),
    )


def _fewer_guests(results: Results) -> Evidence:
    """Compare the break-even R_V of adjacent measured n, at one R_M each."""
    by_rm: dict[float, dict[int, Interval]] = {}
    for design in results["oneofn"].designs:
        for point in design.points if design.m == 1 and not design.repair else ():
            if point.breakeven is not None:
                by_rm.setdefault(point.rm, {})[design.n] = point.breakeven
    sides = tuple(
        higher(bounds[n], bounds[more])
        for bounds in by_rm.values() for n, more in pairwise(sorted(bounds))
    )  # fmt: skip
    shown = by_rm.get(0.1, {})
    values = ", ".join(f"{n}: {shown[n].value:.3g}" for n in sorted(shown))
    return Evidence(
        text=f"the break-even R_V falls with n in {sides.count(True)} of {len(sides)} steps, rises "
        f"in {sides.count(False)}, undecided in {sides.count(None)}; at R_M = .1, by n: {values}",
        sides=sides,
        basis=("recombined",),
    )


def _approaches_rv(results: Results) -> Evidence:
    texts, sides = [], []
    for rm in (0.5, 0.7):
        one, nine = (_point(results["oneofn"], f"1/{n}", rm, 0.9).recombined for n in (1, 9))
        texts.append(f"R_M = {rm:g}: from {format_interval(one)} to {format_interval(nine)}")
        sides += [higher(nine, one), near(nine, 0.9)]
    text = f"R_V = .9, n from 1 to 9: {'; '.join(texts)}"
    return Evidence(text=text, sides=tuple(sides), basis=("recombined",))


def _guests_needed(results: Results) -> Evidence:
    """Compare the nodes just below and at the bound with the required R."""
    texts: list[str] = []
    sides: list[bool | None] = []
    for rm in (0.7, 0.9):
        for wanted in (0.98, 0.998):
            needed = guests_needed(wanted, 0.999, rm).guests
            texts.append(f"R_M = {rm:g}, R = {wanted:g}: n = {needed} computed")
            for n, enough in ((needed - 1, False), (needed, True)):
                if 1 <= n <= 9:
                    side = above(_point(results["oneofn"], f"1/{n}", rm, 0.999).recombined, wanted)
                    sides.append(None if side is None else side == enough)
    decided = sum(side is not None for side in sides)
    nine = [f"{float(rm_needed(r, 0.999, 1, 9)):.3f} (R = {r:g})" for r in (0.98, 0.998)]
    return Evidence(
        text=f"{'; '.join(texts)}; {decided} of {len(sides)} nodes just below and at the bound are "
        f"decided. Nine guests are enough from R_M = {' and '.join(nine)} (R_V = .999, computed)",
        sides=tuple(sides),
        basis=("recombined", "computed"),
    )


def _resources(results: Results) -> Evidence:
    found = results.capacity
    assert found is not None  # what the claim needs
    crowds = sorted(found.crowds, key=lambda each: each.guests)
    least, most = crowds[0], crowds[-1]
    taken = [each.memory.pss for each in crowds]
    more = tuple(low < high for low, high in pairwise(taken))
    reached = most.guests >= found.fit
    return Evidence(
        text=f"{most.guests} guests of {found.plan.memory} MiB ran together on {found.host.cores} "
        f"processors and {found.total / GIB:.3g} GiB ({found.host.accel}). Each further guest took "
        f"more memory in {more.count(True)} of {len(more)} steps, {found.each / MIB:.0f} MiB on "
        f"average, so {found.fit} would fit (computed): the limit was "
        f"{'reached' if reached else 'not reached'}. All {most.guests} are ready after "
        f"{most.seconds:.0f} s, one alone after {least.seconds:.0f} s",
        sides=(*more, reached or None),
        basis=("measured", "computed"),
    )


def _lies(results: Results) -> Iterator[tuple[str, Proportion, Expected]]:
    designs = {each.vote: each for each in results["liars"].designs}
    yield "1 of 3:", designs["1/3"].silent[1], "some"
    yield "2 of 3:", designs["2/3"].silent[1], "none"


def _poison(results: Results) -> Evidence:
    causes = sorted(results["poison"].common_causes, key=lambda each: len(each.failed))
    counts = ", ".join(f"{len(each.failed) - 1}: {format_count(each.voted)}" for each in causes)
    return Evidence(
        text="by construction: a request that triggers a bug planted in every guest. Missions that "
        f"failed, by n: {counts}",
        sides=tuple(
            above(
                Interval(
                    value=each.failed[-1].value or 0.0,
                    low=each.failed[-1].low,
                    high=each.failed[-1].high,
                ),
                0.5,
            )
            for each in causes
        ),
        basis=("by construction",),
        planted=True,
    )


# -------------------------------------------------------------- 2 of 3


def _tolerates_one(results: Results) -> Evidence:
    found = results["inequality4"]
    strata = _strata(found)
    counts = ", ".join(f"{k}: {format_count(strata[f'f{k}'].failed)}" for k in range(4))
    verdict = next(v for v in found.verdicts if v.about == "voter")
    side = {"good": True, "bad": False}.get(verdict.tone)
    return Evidence(
        text=f"missions that failed, by number of guests hit: {counts}. {verdict.answer}",
        sides=(side,),
        basis=("measured",),
    )


def _arbitrary(results: Results) -> Iterator[tuple[str, Proportion, Expected]]:
    liars = next(each for each in results["liars"].designs if each.vote == "2/3")
    yield "lying: failed", liars.failed[1], "none"
    if "inequality4" in results:
        mixed = _strata(results["inequality4"])["f1"]
        yield "crashed, hung, reset, stopped, lying or flooding: failed", mixed.failed, "none"
    for name in ("liars", "inequality4"):
        if name in results:
            released = results[name].wrong_replies.covered
            yield f"wrong replies that the vote should mask ({name})", released, "none"


def _operating_points(results: Results) -> Evidence:
    found = [p for p in results["inequality4"].points if not p.repair]
    sides = tuple(None if p.choice is Choice.UNDECIDED else p.choice is p.paper for p in found)
    nearest = min(abs(p.rv - float(breakeven_rv_2of3(p.rm))) for p in found)
    strata = [
        each for each in _strata(results["inequality4"]).values()
        if each.design == "voted" and not each.repair and each.failed.of
    ]  # fmt: skip
    return Evidence(
        text=f"{sides.count(True)} of {len(found)} operating points, all recombined from the same "
        f"{len(strata)} strata, agree with (4), {sides.count(False)} contradict it, "
        f"{sides.count(None)} are undecided (the nearest is {nearest:.2g} from the bound in R_V)",
        sides=sides,
        basis=("recombined",),
    )


def _band_2of3(found: Findings) -> Band:
    """The band of 2-of-3, repair off, voter not hit."""
    failed = [_strata(found)[f"f{k}"].failed for k in range(4)]
    guests = tuple(Counts(trials=each.of, failures=each.count) for each in failed)
    return band(Strata(guests=guests), alpha=1.0 - found.campaign.confidence)


def _poor_guests(results: Results) -> Evidence:
    box = _band_2of3(results["inequality4"])
    gains = [box.gain(rm, 1.0, 1.0) for rm in BELOW_HALF]
    sides = [below(gain, 0.0) for gain in gains]
    worse = [rm for rm, side in zip(BELOW_HALF, sides, strict=True) if side]
    text = (
        f"even with R_V = 1, less reliable than plain at {len(worse)} of {len(sides)} grid points "
        f"of R_M below .5" + (f" (from {worse[0]:g} to {worse[-1]:g})" if worse else "")
    )
    points = [
        p for d in (results["mofn"].designs if "mofn" in results else ())
        if d.vote == "2/3" and not d.repair for p in d.points if p.rm < 0.5
    ]  # fmt: skip
    if points:
        count = sum(below(p.recombined, p.plain) is True for p in points)
        text += f"; in campaign mofn, at {count} of {len(points)} operating points"
    return Evidence(text=text, sides=tuple(sides), basis=("recombined",))


def _ranges(results: Results) -> Evidence:
    box = _band_2of3(results["inequality4"])
    wide, narrow = (better_range(box, rv) for rv in (0.98, 0.9))
    texts = [
        f"R_V = {found.rv:g}: R_M {_ends(found.estimated)}, for the whole band "
        f"{_ends(found.certain)}; computed {_ends(rm_range_2of3(found.rv))}"
        for found in (wide, narrow)
    ]
    return Evidence(
        text=". ".join(texts), sides=(_wider(wide, narrow),), basis=("recombined", "computed")
    )


def _wider(wide: BetterRange, narrow: BetterRange) -> bool | None:
    def width(ends: tuple[float, float] | None) -> float:
        return 0.0 if ends is None else ends[1] - ends[0]

    if wide.certain is not None and width(wide.certain) > width(narrow.possible):
        return True
    return False if narrow.certain and width(narrow.certain) > width(wide.possible) else None


def _ends(ends: tuple[SupportsFloat, SupportsFloat] | None) -> str:
    return "nowhere" if ends is None else f"from {float(ends[0]):.4f} to {float(ends[1]):.4f}"


# -------------------------------------------------------------- independence


def _common_causes(results: Results) -> Evidence:
    causes = results["commoncause"].common_causes
    tested = [each for each in causes if each.test.p_value is not None]
    text = "causes that the experiment planted: " + "; ".join(
        f"{each.kind}: two or more guests failed in {each.test.observed[-1]:,} of "
        f"{sum(each.test.observed):,} trials instead of {each.test.expected[-1]:.1f} "
        f"(p = {each.test.p_value:.2g})"
        for each in tested
    )  # fmt: skip
    text += (
        f"; significant (p below alpha / {len(tested)}, Bonferroni) in "
        f"{sum(each.together for each in tested)} of {len(tested)}"
    )
    certain = [e.kind for e in causes if e.test.p_value is None and e.failed[-1].value == 1.0]
    if certain:
        text += f"; all guests failed in every trial under {', '.join(certain)}"
    return Evidence(
        text=text, sides=(True if certain or any(each.together for each in causes) else None,),
        basis=("measured", "by construction"), planted=True,
    )  # fmt: skip


def _upper_bounds() -> tuple[str, bool]:
    two = {rm: float(two_of_three(1.0, 1.0, rm)) for rm in (0.3, 0.6, 0.9)}
    drawn = float(shared_draw(0.3, 0.2, 2, 3))
    common = {rm: float(beta_factor(rm, 0.5, 2, 3)) for rm in (0.6, 0.9)}
    return (
        "not for guests of low reliability. At R_M = .6, a cause that fails all guests and "
        f"accounts for half of each guest's failures raises 2-of-3 from {two[0.6]:.3f} to "
        f"{common[0.6]:.3f}. At R_M = .3, one fate for all guests in a fifth of missions raises it "
        f"from {two[0.3]:.3f} to {drawn:.3f}. From R_M = .75 on the claim holds for any mixture of "
        f"independent guests (at .9: {two[0.9]:.3f}, with such a cause {common[0.9]:.3f})",
        not (drawn > two[0.3] or common[0.6] > two[0.6]),
    )


CLAIMS = (
    Claim(where="Non-virtualized node", text="R_sys = R_H R_M: the plain node works as long as its "
          "one machine does.", command="trivisor campaign run inequality4", needs="inequality4",
          evidence=MissionCounts(title="missions of the plain node that failed", select=_plain,
                                 basis=("measured", "by construction"))),
    Claim(where="n VMs", text="R_sys = R_H R_V [1 - (1 - R_M)^n].",
          command="trivisor campaign run oneofn", needs="oneofn",
          evidence=DesignPoints(
              campaign="oneofn", where=lambda d, _: d.m == 1 and not d.repair,
              compared_with="paper", contradicts="outside",
              supports=f"n from 1 to 9: the whole interval of R_sys within {NEAR:g} of the formula",
          )),
    Claim(where="Inequality (1)", text="With n = 1 the hypervisor only lowers the reliability.",
          command="trivisor campaign run oneofn", evidence=_alone, needs="oneofn"),
    Claim(where="Inequality (1)", text="R_V = R_M is never enough.",
          command="trivisor campaign run oneofn", needs="oneofn",
          evidence=DesignPoints(
              campaign="oneofn", where=lambda d, p: d.m == 1 and not d.repair and p.rm == p.rv,
              compared_with="plain", supports="R_V = R_M: less reliable than the plain node",
              contradicts="more",
          )),
    Claim(where="Figure 3", text="R_M = .1, R_V = .3: fewer than 4 VMs only lower the "
          "reliability.", command="trivisor model bound --design 1ofn --rm .1 --rv .3",
          evidence=_figure3_example, needs="oneofn"),
    Claim(where="Figure 3", text="The fewer VMs, the more reliable the hypervisor must be.",
          command="trivisor model figure 3 --results docs/results", evidence=_fewer_guests,
          needs="oneofn"),
    Claim(where="n VMs", text="With more VMs the node comes as near to R_V as desired.",
          command="trivisor campaign run oneofn", evidence=_approaches_rv, needs="oneofn"),
    Claim(where="Inequality (2), Figure 4", text="A lower bound on n for a wanted R.",
          command="trivisor model figure 4 --results docs/results", evidence=_guests_needed,
          needs="oneofn"),
    Claim(where="Inequality (2)", text="The number of VMs is ultimately limited by the node's "
          "resources.", command="trivisor bench guests", evidence=_resources, needs=CAPACITY),
    Claim(where="n VMs", text="(Not in the paper:) 1 of n releases the reply of a lying VM.",
          command="trivisor campaign run liars", needs="liars",
          evidence=MissionCounts(
              title="one guest lying, missions with a wrong reply that a client would believe",
              select=_lies)),
    Claim(where="n VMs", text="With many VMs it is hard to have them diverse enough to fail "
          "independently (a bug that all of one build share).",
          command="trivisor campaign run poison", evidence=_poison, needs="poison"),
    Claim(where="Inequality (3)", text="With one VM it does not matter where f is.",
          command="trivisor model bound --design moved --rf .5 --rm .75 --n 1",
          evidence=one_guest),
    Claim(where="Inequality (3)", text="Moving f out of n VMs pays if R_F >= "
          "[1 - (1 - R_f R_M')^n] / [1 - (1 - R_M')^n].",
          command="trivisor campaign moved docs/results/moved-guest docs/results/moved-host "
          "--rm .5 --rm .75 --rm .9", evidence=inequality3, needs=RELOCATION),
    Claim(where="Figure 6", text="F must be more reliable than f, and the more so the larger R_M' "
          "and n are.", command="trivisor model figure 6b --results docs/results",
          evidence=Computed(evaluate_formulas=figure6_shape)),
    Claim(where="Figure 6", text="R_M' = R_f = .75: R_F above .9932 (n = 6), .9994 (n = 9).",
          command="trivisor model bound --design moved --rf .75 --rm .75 --n 6",
          evidence=figure6_values),
    Claim(where="Inequality (3)", text="With more than a handful of VMs a poor f is better "
          "retained in them.", command="trivisor model bound --design moved --rf .5 --rm .75 --n 5",
          evidence=Computed(evaluate_formulas=retained)),
    Claim(where="2-of-3", text="The node tolerates one failed VM of three, and no more.",
          command="trivisor campaign run inequality4", evidence=_tolerates_one,
          needs="inequality4"),
    Claim(where="2-of-3", text="It tolerates the arbitrary failure of one VM.",
          command="trivisor campaign run liars", needs="liars",
          evidence=MissionCounts(title="one guest hit", select=_arbitrary)),
    Claim(where="2-of-3", text="R_sys = R_H R_V [R_M^3 + 3 R_M^2 (1 - R_M)], if the VMs fail "
          "independently.", command="trivisor campaign run softerrors", evidence=formula_holds,
          needs="softerrors"),
    Claim(where="Inequality (4), Figure 7", text="2-of-3 is better where R_V is above "
          "1 / (3 R_M - 2 R_M^2).", command="trivisor campaign run inequality4",
          evidence=_operating_points, needs="inequality4"),
    Claim(where="Figure 7", text="With R_M of .5 or less no R_V helps.",
          command="trivisor campaign run inequality4", evidence=_poor_guests,
          needs="inequality4"),
    Claim(where="Figure 7", text="R_V = .98 accommodates a larger range of R_M than R_V = .9.",
          command="trivisor model figure 7 --results docs/results", evidence=_ranges,
          needs="inequality4"),
    Claim(where="Combinatorial modeling", text="VM failures are independent.",
          command="trivisor campaign run softerrors", evidence=consequences_coupled,
          needs="softerrors"),
    Claim(where="Combinatorial modeling", text="In the real world they may not be.",
          command="trivisor campaign run commoncause", evidence=_common_causes,
          needs="commoncause"),
    Claim(where="Combinatorial modeling", text="If they are not, these values are upper bounds.",
          command="trivisor model reliability --design 2of3 --rm .6 --rv 1 --beta .5",
          evidence=Computed(evaluate_formulas=_upper_bounds)),
)  # fmt: skip

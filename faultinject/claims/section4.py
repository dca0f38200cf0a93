"""The claims of section 4 of the paper, in its order.

Where a claim is about numbers, an interval decides: it *holds* if all of the interval is on the
claim's side, *does not hold* if all of it is on the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import SupportsFloat

from faultinject import model
from faultinject.campaign.report.findings import Node, NodePoint, Share
from faultinject.campaign.report.kept import Kept
from faultinject.claims.claim import MOVED, Answer, Claim, Results, Says
from faultinject.estimate import Band, BetterRange, Counts, Strata, band, better_range
from faultinject.estimate.moved import MovedPoint

__all__ = ["CLAIMS"]

Span = tuple[float, float, float]
NEAR = 0.05
"""How near to a formula's R_sys a measured one must be to agree with it."""


def _span(span: Span) -> str:
    return f"{span[1]:.4g} [{span[0]:.4g}, {span[2]:.4g}]"


def _share(share: Share) -> str:
    return f"{share.count:,} of {share.of:,}"


def _sums(sides: Iterable[bool | None]) -> Says:
    """From what each of several points says: True, False, or None for undecided."""
    found = list(sides)
    if False in found:
        return "does not hold"
    if not found or all(side is None for side in found):
        return "undecided"
    return "holds as far as the data reach" if None in found else "holds"


def _below(span: Span, limit: float) -> bool | None:
    return True if span[2] < limit else False if span[0] > limit else None


def _above(span: Span, limit: float) -> bool | None:
    return True if span[0] > limit else False if span[2] < limit else None


def _near(span: Span, value: float) -> bool | None:
    """Whether all of the interval is within NEAR of the value; False if none of it is."""
    if span[0] > value + NEAR or span[2] < value - NEAR:
        return False
    return True if span[0] >= value - NEAR and span[2] <= value + NEAR else None


def _at(kept: Kept, vote: str, rm: float, rv: float) -> NodePoint:
    for node in kept.nodes:
        for point in node.points:
            if (node.vote, point.rm, point.rv) == (vote, rm, rv) and not node.repair:
                return point
    raise LookupError(f"{kept.title}: no point R_M = {rm}, R_V = {rv} with vote {vote}")


def _one_of_n(kept: Kept) -> Iterator[tuple[Node, NodePoint]]:
    for node in kept.nodes:
        if node.m == 1 and not node.repair:
            for point in node.points:
                yield node, point


def _plain(results: Results) -> Answer:
    strata = {each.name: each for each in results["inequality4"].strata}
    clean, hit = strata["nv0"].failed, strata["nv1"].failed
    sound = not clean.count and hit.count == hit.of
    return Answer(
        measured=f"the plain node failed in {_share(clean)} missions with nothing hit, and in "
        f"{_share(hit)} with its guest hit",
        says="holds" if sound and hit.of else "undecided",
    )


def _formula(results: Results) -> Answer:
    found = list(_one_of_n(results["oneofn"]))
    sides = [_near(p.measured, p.model) for _, p in found]
    return Answer(
        measured=f"at {sides.count(True)} of {len(found)} points (n from 1 to 9) the measured "
        f"R_sys is within {NEAR:g} of the formula for sure, all of its interval; it is farther "
        f"away at {sides.count(False)}",
        says=_sums(sides),
    )


def _alone(results: Results) -> Answer:
    found = [p for node, p in _one_of_n(results["oneofn"]) if node.n == 1]
    sides = [_below(p.measured, p.plain) for p in found]
    shown = max(found, key=lambda p: p.rv)
    repaired = [
        p for node in results["oneofn"].nodes if node.repair and (node.m, node.n) == (1, 1)
        for p in node.points
    ]  # fmt: skip
    words = (
        f"; where voter and guest are repaired: better than plain at "
        f"{sum(p.measured[0] > p.plain for p in repaired)} of {len(repaired)}, worse at "
        f"{sum(p.measured[2] < p.plain for p in repaired)}"
        if repaired else ""
    )  # fmt: skip
    return Answer(
        measured=f"worse than plain at {sides.count(True)} of {len(found)} points, undecided at "
        f"{sides.count(None)} (at R_M = {shown.rm:g}, R_V = {shown.rv:g}: "
        f"{_span(shown.measured)}){words}",
        says=_sums(sides),
    )


def _equal(results: Results) -> Answer:
    found = [(n, p) for n, p in _one_of_n(results["oneofn"]) if p.rm == p.rv]
    sides = [_below(p.measured, p.plain) for _, p in found]
    return Answer(
        measured=f"R_V = R_M at {len(found)} points: worse than plain at {sides.count(True)}, "
        f"better at {sides.count(False)}, undecided at {sides.count(None)}",
        says=_sums(sides),
    )


def _example(results: Results) -> Answer:
    three, four = (_at(results["oneofn"], f"1/{n}", 0.1, 0.3) for n in (3, 4))
    exact = [float(model.one_of_n(1.0, 0.3, 0.1, n)) for n in (3, 4)]
    sides = [_below(three.measured, 0.1), _above(four.measured, 0.1)]
    return Answer(
        measured=f"plain .1; n = 3: {_span(three.measured)}, computed {exact[0]:.5f}; n = 4: "
        f"{_span(four.measured)}, computed {exact[1]:.5f}",
        says=_sums(sides),
    )


def _fewer(results: Results) -> Answer:
    """Adjacent sizes that were measured, at one R_M: does the break-even R_V fall?"""
    by_rm: dict[float, dict[int, Span]] = {}
    for node, point in _one_of_n(results["oneofn"]):
        if point.breakeven is not None:
            by_rm.setdefault(point.rm, {})[node.n] = point.breakeven
    pairs = [
        (few[n], few[more])
        for few in by_rm.values() for n, more in pairwise(sorted(few))
    ]  # fmt: skip
    sides = [
        True if more[2] < few[0] else False if more[0] > few[2] else None for few, more in pairs
    ]
    shown = by_rm.get(0.1, {})
    words = ", ".join(f"{n}: {shown[n][1]:.3g}" for n in sorted(shown))
    return Answer(
        measured=f"with more guests the break-even R_V is lower for sure in {sides.count(True)} "
        f"of {len(sides)} steps of n, higher in {sides.count(False)}; at R_M = .1, by n: {words}",
        says=_sums(sides),
    )


def _approaches(results: Results) -> Answer:
    words = []
    sides: list[bool | None] = []
    for rm in (0.5, 0.7):
        one, nine = (_at(results["oneofn"], f"1/{n}", rm, 0.9) for n in (1, 9))
        words.append(f"R_M = {rm:g}: from {_span(one.measured)} to {_span(nine.measured)}")
        sides.append(_above(nine.measured, one.measured[2]))
        sides.append(_near(nine.measured, 0.9))
    return Answer(measured=f"R_V = .9, n from 1 to 9: {'; '.join(words)}", says=_sums(sides))


def _needed(results: Results) -> Answer:
    words = []
    sides: list[bool | None] = []
    kept = results["oneofn"]
    for rm in (0.7, 0.9):
        for wanted in (0.98, 0.998):
            needed = model.guests_needed(wanted, 0.999, rm).guests
            words.append(f"R_M = {rm:g}, R = {wanted:g}: n = {needed} computed")
            for n, side in ((needed - 1, False), (needed, True)):
                if 1 <= n <= 9:
                    reached = _above(_at(kept, f"1/{n}", rm, 0.999).measured, wanted)
                    sides.append(None if reached is None else reached == side)
    decided = sum(side is not None for side in sides)
    return Answer(
        measured=f"{'; '.join(words)}; of the nodes just below and at the bound the data decide "
        f"{decided} of {len(sides)}",
        says=_sums(sides),
    )


def _moved(results: Results) -> list[MovedPoint]:
    return [] if results.moved is None else list(results.moved.points)


def _room(point: MovedPoint) -> str:
    """1 - R_F as measured."""
    shared = point.shared
    return f"{1 - shared.value:.3g} [{1 - shared.high:.3g}, {1 - shared.low:.3g}]"


def _inequality3(results: Results) -> Answer:
    found = _moved(results)
    inside = [p.shared.low <= p.paper <= p.shared.high for p in found]
    sharp = sum(p.reaches for p in found)
    told = [p.room for p in found if p.shared.high < 1.0]
    given = [p.room for p in found if p.given is not None and p.given.high < 1.0]
    partial = results.moved is not None and results.moved.partial
    words = "; after a part of their missions" if partial else ""
    return Answer(
        measured=f"(3)'s R_F lies within the interval of the measured break-even at "
        f"{sum(inside)} of {len(found)} points (n = {_ns(found)}); at {sharp} of them the data are "
        f"sharp enough to see {found[0].share:.0%} of 1 - R_F. A 1 - R_F of {_least(told)} is "
        f"told from 0, and one of {_least(given)} given that a node with a sound guest left never "
        f"fails (it did not){words}",
        says="does not hold" if not all(inside) else "holds" if sharp == len(found)
        else "holds as far as the data reach",
    )  # fmt: skip


def _least(rooms: Iterable[float]) -> str:
    least = min(rooms, default=None)
    return "none" if least is None else f"{least:.2g}"


def _ns(found: Iterable[MovedPoint]) -> str:
    return ", ".join(str(n) for n in sorted({point.n for point in found}))


def _spots(results: Results) -> Answer:
    six, nine = (float(model.breakeven_rf(0.75, 0.75, n)) for n in (6, 9))
    right = round(six, 4) == 0.9932 and round(nine, 4) == 0.9994
    measured = [
        f"n = {p.n}: 1 - R_F = {_room(p)}, (3) has {p.room:.3g}"
        for p in _moved(results) if p.n in (6, 9) and p.rf == p.rm_rest == 0.75
    ]  # fmt: skip
    words = f"; measured: {'; '.join(measured)}" if measured else ""
    return Answer(
        measured=f"computed: {six:.6f} and {nine:.6f}{words}",
        says="holds" if right else "does not hold",
    )


def _single(results: Results) -> Answer:
    worst = max(abs(float(model.breakeven_rf(rf / 10, 0.75, 1)) - rf / 10) for rf in range(1, 10))
    measured = [
        f"{p.rf:g}: {_span(_as_span(p))}"
        for p in _moved(results) if p.n == 1 and p.rm_rest == 0.75
    ]  # fmt: skip
    words = f"; measured at R_M' = .75, for R_f = {', '.join(measured)}" if measured else ""
    return Answer(
        measured=f"computed: R_F >= R_f, to {worst:.1g}{words}; "
        '"it does not matter" then needs R_F = R_f, which moving a function does not give by '
        "itself",
        says="is a formula",
    )


def _as_span(point: MovedPoint) -> Span:
    return point.shared.low, point.shared.value, point.shared.high


def _degree(_: Results) -> Answer:
    """On a grid: R_F / R_f, and how it grows with R_M' and with n."""
    grid = [i / 10 for i in range(1, 10)]

    def needed(rf: float, rm: float, n: int) -> float:
        return float(model.breakeven_rf(rf, rm, n))

    more = all(needed(f, m, n) > f for f in grid for m in grid for n in range(2, 10))
    with_rm = all(
        needed(f, low, n) < needed(f, high, n)
        for f in grid for low, high in pairwise(grid) for n in range(2, 10)
    )  # fmt: skip
    with_n = all(
        needed(f, m, n) < needed(f, m, n + 1) for f in grid for m in grid for n in range(1, 9)
    )
    return Answer(
        measured=f"computed for R_f, R_M' from .1 to .9 and n from 2 to 9: R_F > R_f "
        f"{_everywhere(more)}, it grows with R_M' {_everywhere(with_rm)}, with n "
        f"{_everywhere(with_n)}",
        says="holds" if more and with_rm and with_n else "does not hold",
    )


def _everywhere(so: bool) -> str:
    return "everywhere" if so else "not everywhere"


def _voter(results: Results) -> Answer:
    kept = results["inequality4"]
    strata = {each.name: each for each in kept.strata if each.alike is None}
    words = ", ".join(f"f_{k} {_share(strata[f'f{k}'].failed)}" for k in range(4))
    tones = {"good": "holds", "bad": "does not hold"}
    verdict = next(v for v in kept.verdicts if "Inequality (4) assumes" in v.answer)
    says: Says = tones.get(verdict.tone, "undecided")  # type: ignore[assignment]
    return Answer(measured=f"{words}. {verdict.answer}", says=says)


def _points(results: Results) -> Answer:
    found = [p for p in results["inequality4"].points if not p.repair]
    agree = sum(p.verdict == p.paper for p in found)
    against = [p for p in found if p.verdict not in ("undecided", p.paper)]
    return Answer(
        measured=f"of {len(found)} operating points {agree} are decided as (4) has it, "
        f"{len(against)} against it, {len(found) - agree - len(against)} not decided",
        says="does not hold" if against else "holds" if agree == len(found) and found
        else "holds as far as the data reach" if agree else "undecided",
    )  # fmt: skip


def _hopeless(results: Results) -> Answer:
    found = [
        p for node in results["mofn"].nodes if node.vote == "2/3" and not node.repair
        for p in node.points if p.rm < 0.5
    ]  # fmt: skip
    sides = [_below(p.measured, p.plain) for p in found]
    shown = max(found, key=lambda p: (p.rm, p.rv))
    words = (
        f"at R_M = {shown.rm:g}, R_V = {shown.rv:g}: {_span(shown.measured)}, plain "
        f"{shown.plain:g}; worse at {sides.count(True)} of {len(found)} points below .5"
    )
    if "inequality4" in results:  # of the same vote, by forty times as many missions
        perfect = _box(results["inequality4"]).system(shown.rm, 1.0)
        span = perfect.low, perfect.value, perfect.high
        if (side := _below(span, shown.rm)) is not None:  # at this R_M it says so for every R_V
            sides = [each for each, p in zip(sides, found, strict=True) if p.rm != shown.rm]
            sides.append(side)
        words += f"; by the missions of inequality4, with R_V = 1: {_span(span)}"
    return Answer(measured=words, says=_sums(sides))


def _box(kept: Kept) -> Band:
    """The strata of 2-of-3, repair off, voter not hit."""
    strata = {each.name: each for each in kept.strata if each.alike is None}
    counted = [strata[f"f{k}"].failed for k in range(4)]
    guests = tuple(Counts(trials=each.of, failures=each.count) for each in counted)
    return band(Strata(guests=guests), alpha=1.0 - kept.confidence)


def _ranges(results: Results) -> Answer:
    box = _box(results["inequality4"])
    wide, narrow = (better_range(box, rv) for rv in (0.98, 0.9))
    words = []
    for found in (wide, narrow):
        paper = model.rm_range_2of3(found.rv)
        assert paper is not None  # both are above 8/9
        words.append(
            f"R_V = {found.rv:g}: R_M {_ends(found.seen)}, for sure {_ends(found.sure)}; computed "
            f"{_ends(paper)}"
        )
    return Answer(measured=". ".join(words), says=_wider(wide, narrow))


def _wider(wide: BetterRange, narrow: BetterRange) -> Says:
    if wide.sure is not None:
        most = narrow.possible
        if most is None or _width(wide.sure) > _width(most):
            return "holds"
    if narrow.sure is not None and (
        wide.possible is None or _width(narrow.sure) > _width(wide.possible)
    ):
        return "does not hold"
    return "undecided"


def _width(ends: tuple[float, float]) -> float:
    return ends[1] - ends[0]


def _ends(ends: tuple[SupportsFloat, SupportsFloat] | None) -> str:
    return "nowhere" if ends is None else f"from {float(ends[0]):.4f} to {float(ends[1]):.4f}"


def _independent(results: Results) -> Answer:
    doses = [dose for dose in results["softerrors"].doses if not dose.shared]
    by = {
        name: sum(d.verdict == name for d in doses) for name in ("agrees", "departs", "undecided")
    }
    says: Says = (
        "does not hold" if by["departs"] else "holds" if by["agrees"] == len(doses) and doses
        else "undecided"
    )  # fmt: skip
    words = ", ".join(f"{name} {count}" for name, count in by.items() if count)
    asked = [dose.fell_p for dose in doses if dose.fell_p is not None]
    seen = sum(p < (1 - results["softerrors"].confidence) / len(asked) for p in asked)
    falls = (
        f"; how many guests fell in a mission is as with independent guests at "
        f"{len(asked) - seen} of {len(asked)} doses (G-test, Bonferroni)"
        if asked else ""
    )  # fmt: skip
    return Answer(
        measured=f"bit flips at {len(doses)} doses, R_M and R_sys measured apart: {words}{falls}",
        says=says,
    )


def _upper(results: Results) -> Answer:
    alone = float(model.two_of_three(1.0, 1.0, 0.3))
    shared = float(model.shared_draw(0.3, 0.2, 2, 3))
    worst = max(results["commoncause"].shots, key=lambda s: s.fatal[1] - s.fatal_independent)
    return Answer(
        measured=f"below R_M = .5 it is not so: at R_M = .3, one draw for all with probability "
        f".2 raises 2-of-3 from {alone:.3f} to {shared:.3f}. Above: {worst.kind} took a "
        f"majority in {_span(worst.fatal)} of shots, {worst.fatal_independent:.3g} had guests "
        "failed independently",
        says="does not hold",
    )


def _poison(results: Results) -> Answer:
    shots = sorted(results["poison"].shots, key=lambda shot: len(shot.fell))
    fell = [shot.fell[-1] for shot in shots]
    words = ", ".join(f"{len(shot.fell) - 1}: {_share(shot.voted)}" for shot in shots)
    together = all(share.low > 0.5 for share in fell)
    return Answer(
        measured=f"a request that meets one bug in all: missions failed, by n: {words}",
        says="holds" if fell and together else "undecided",
    )


def _lies(results: Results) -> Answer:
    one, three = (
        next(n for n in results["liars"].nodes if n.vote == vote) for vote in ("1/3", "2/3")
    )
    return Answer(
        measured=f"one guest lying: wrong replies released in {_share(one.silent[1])} missions of "
        f"1 of 3, in {_share(three.silent[1])} of 2 of 3",
        says="holds" if one.silent[1].count and not three.silent[1].count else "undecided",
    )


CLAIMS = (
    Claim(where="Non-virtualized node", text="R_sys = R_H R_M: the plain node serves while its "
          "one machine does.", command="trivisor campaign run inequality4", ask=_plain,
          needs="inequality4"),
    Claim(where="n VMs", text="R_sys = R_H R_V [1 - (1 - R_M)^n].",
          command="trivisor campaign run oneofn", ask=_formula, needs="oneofn"),
    Claim(where="Inequality (1)", text="With n = 1 the hypervisor only lowers the reliability.",
          command="trivisor campaign run oneofn", ask=_alone, needs="oneofn"),
    Claim(where="Inequality (1)", text="R_V = R_M is never enough.",
          command="trivisor campaign run oneofn", ask=_equal, needs="oneofn"),
    Claim(where="Figure 3", text="R_M = .1, R_V = .3: fewer than 4 VMs only lower the "
          "reliability.", command="trivisor model bound --design 1ofn --rm .1 --rv .3",
          ask=_example, needs="oneofn"),
    Claim(where="Figure 3", text="The fewer VMs, the more reliable the hypervisor must be.",
          command="trivisor model figure 3", ask=_fewer, needs="oneofn"),
    Claim(where="n VMs", text="With more VMs the node comes as near to R_V as desired.",
          command="trivisor campaign run oneofn", ask=_approaches, needs="oneofn"),
    Claim(where="Inequality (2), Figure 4", text="A lower bound on n for a wanted R.",
          command="trivisor model figure 4", ask=_needed, needs="oneofn"),
    Claim(where="n VMs", text="(Not said:) with 1 of n a VM that lies is released.",
          command="trivisor campaign run liars", ask=_lies, needs="liars"),
    Claim(where="n VMs", text="With many VMs it is hard to have them diverse enough to fail "
          "independently (a bug that all of one build share).",
          command="trivisor campaign run poison", ask=_poison, needs="poison"),
    Claim(where="Inequality (3)", text="With one VM it does not matter where f is.",
          command="trivisor model bound --design moved --rf .5 --rm .75 --n 1", ask=_single),
    Claim(where="Inequality (3)", text="Moving f out of n VMs pays if R_F >= "
          "[1 - (1 - R_f R_M')^n] / [1 - (1 - R_M')^n].",
          command="trivisor campaign moved moved-guest moved-host", ask=_inequality3, needs=MOVED),
    Claim(where="Figure 6", text="F must be more reliable than f, and the more so the larger R_M' "
          "and n are.", command="trivisor model figure 6b", ask=_degree),
    Claim(where="Figure 6", text="R_M' = R_f = .75: R_F above .9932 (n = 6), .9994 (n = 9).",
          command="trivisor model bound --design moved --rf .75 --rm .75 --n 6", ask=_spots),
    Claim(where="2-of-3", text="The node bears one failed VM of three, and no more.",
          command="trivisor campaign run inequality4", ask=_voter, needs="inequality4"),
    Claim(where="Inequality (4), Figure 7", text="2-of-3 is better exactly above "
          "1 / (3 R_M - 2 R_M^2).", command="trivisor campaign run inequality4", ask=_points,
          needs="inequality4"),
    Claim(where="Figure 7", text="With R_M of .5 or less no R_V helps.",
          command="trivisor campaign run mofn", ask=_hopeless, needs="mofn"),
    Claim(where="Figure 7", text="R_V = .98 accommodates a larger range of R_M than R_V = .9.",
          command="trivisor model bound --design 2of3 --rv .98", ask=_ranges,
          needs="inequality4"),
    Claim(where="Combinatorial modeling", text="VM failures are independent.",
          command="trivisor campaign run softerrors", ask=_independent, needs="softerrors"),
    Claim(where="Combinatorial modeling", text="If they are not, these values are upper bounds.",
          command="trivisor campaign run commoncause", ask=_upper, needs="commoncause"),
)  # fmt: skip

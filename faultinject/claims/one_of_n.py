"""n VMs of which the first reply counts: Inequalities (1) and (2), Figures 3 and 4."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from faultinject import model
from faultinject.claims.claim import ClaimAnswer, Results
from faultinject.claims.sides import (
    NEAR,
    Span,
    above,
    below,
    higher,
    near,
    share_words,
    span_words,
    sums,
)
from faultinject.results.findings import NodeFinding, NodePoint
from faultinject.results.findings_file import FindingsFile

__all__ = [
    "alone", "approaches", "equal", "example", "fewer", "formula", "lies", "needed", "poison",
    "resources",
]  # fmt: skip

MEBI = 1 << 20


def _at(kept: FindingsFile, vote: str, rm: float, rv: float) -> NodePoint:
    for node in kept.nodes:
        for point in node.points:
            if (node.vote, point.rm, point.rv) == (vote, rm, rv) and not node.repair:
                return point
    raise LookupError(f"{kept.title}: no point R_M = {rm}, R_V = {rv} with vote {vote}")


def _one_of_n(kept: FindingsFile) -> Iterator[tuple[NodeFinding, NodePoint]]:
    for node in kept.nodes:
        if node.m == 1 and not node.repair:
            for point in node.points:
                yield node, point


def formula(results: Results) -> ClaimAnswer:
    """Every node and operating point beside the formula."""
    found = list(_one_of_n(results["oneofn"]))
    sides = [near(p.measured, p.model) for _, p in found]
    return ClaimAnswer(
        measured=f"at {sides.count(True)} of {len(found)} points (n from 1 to 9) the measured "
        f"R_sys is within {NEAR:g} of the formula for sure, all of its interval; it is farther "
        f"away at {sides.count(False)}",
        says=sums(sides),
    )


def alone(results: Results) -> ClaimAnswer:
    """One guest through the voter, beside one without."""
    found = [p for node, p in _one_of_n(results["oneofn"]) if node.n == 1]
    sides = [below(p.measured, p.plain) for p in found]
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
    return ClaimAnswer(
        measured=f"worse than plain at {sides.count(True)} of {len(found)} points, undecided at "
        f"{sides.count(None)} (at R_M = {shown.rm:g}, R_V = {shown.rv:g}: "
        f"{span_words(shown.measured)}){words}",
        says=sums(sides),
    )


def equal(results: Results) -> ClaimAnswer:
    """A layer no more reliable than a guest."""
    found = [(n, p) for n, p in _one_of_n(results["oneofn"]) if p.rm == p.rv]
    sides = [below(p.measured, p.plain) for _, p in found]
    return ClaimAnswer(
        measured=f"R_V = R_M at {len(found)} points: worse than plain at {sides.count(True)}, "
        f"better at {sides.count(False)}, undecided at {sides.count(None)}",
        says=sums(sides),
    )


def example(results: Results) -> ClaimAnswer:
    """Three guests too few, four enough."""
    three, four = (_at(results["oneofn"], f"1/{n}", 0.1, 0.3) for n in (3, 4))
    exact = [float(model.one_of_n(1.0, 0.3, 0.1, n)) for n in (3, 4)]
    sides = [below(three.measured, 0.1), above(four.measured, 0.1)]
    return ClaimAnswer(
        measured=f"plain .1; n = 3: {span_words(three.measured)}, computed {exact[0]:.5f}; n = 4: "
        f"{span_words(four.measured)}, computed {exact[1]:.5f}",
        says=sums(sides),
    )


def fewer(results: Results) -> ClaimAnswer:
    """Adjacent sizes that were measured, at one R_M: does the break-even R_V fall?"""
    by_rm: dict[float, dict[int, Span]] = {}
    for node, point in _one_of_n(results["oneofn"]):
        if point.breakeven is not None:
            by_rm.setdefault(point.rm, {})[node.n] = point.breakeven
    pairs = [
        (few[n], few[more])
        for few in by_rm.values() for n, more in pairwise(sorted(few))
    ]  # fmt: skip
    sides = [higher(few, more) for few, more in pairs]
    shown = by_rm.get(0.1, {})
    words = ", ".join(f"{n}: {shown[n][1]:.3g}" for n in sorted(shown))
    return ClaimAnswer(
        measured=f"with more guests the break-even R_V is lower for sure in {sides.count(True)} "
        f"of {len(sides)} steps of n, higher in {sides.count(False)}; at R_M = .1, by n: {words}",
        says=sums(sides),
    )


def approaches(results: Results) -> ClaimAnswer:
    """One guest, and nine."""
    words = []
    sides: list[bool | None] = []
    for rm in (0.5, 0.7):
        one, nine = (_at(results["oneofn"], f"1/{n}", rm, 0.9) for n in (1, 9))
        words.append(
            f"R_M = {rm:g}: from {span_words(one.measured)} to {span_words(nine.measured)}"
        )
        sides.append(higher(nine.measured, one.measured))
        sides.append(near(nine.measured, 0.9))
    return ClaimAnswer(measured=f"R_V = .9, n from 1 to 9: {'; '.join(words)}", says=sums(sides))


def needed(results: Results) -> ClaimAnswer:
    """The nodes on both sides of the bound."""
    words = []
    sides: list[bool | None] = []
    kept = results["oneofn"]
    for rm in (0.7, 0.9):
        for wanted in (0.98, 0.998):
            needed = model.guests_needed(wanted, 0.999, rm).guests
            words.append(f"R_M = {rm:g}, R = {wanted:g}: n = {needed} computed")
            for n, side in ((needed - 1, False), (needed, True)):
                if 1 <= n <= 9:
                    reached = above(_at(kept, f"1/{n}", rm, 0.999).measured, wanted)
                    sides.append(None if reached is None else reached == side)
    decided = sum(side is not None for side in sides)
    return ClaimAnswer(
        measured=f"{'; '.join(words)}; of the nodes just below and at the bound the data decide "
        f"{decided} of {len(sides)}{_reach()}",
        says=sums(sides),
    )


def _reach() -> str:
    """How poor a guest may be for nine of them to be enough."""
    found = [f"{float(model.rm_needed(r, 0.999, 1, 9)):.3f} (R = {r:g})" for r in (0.98, 0.998)]
    return f". Nine are enough from R_M = {' and '.join(found)} on (R_V = .999, computed)"


def resources(results: Results) -> ClaimAnswer:
    """How many VMs a node can host."""
    crowd = results.crowd
    assert crowd is not None  # what the claim needs
    most = max(crowd.crowds, key=lambda each: each.guests)
    return ClaimAnswer(
        measured=f"{most.guests} guests of {crowd.plan.memory} MiB were run together, on "
        f"{crowd.host.cores} processors and {crowd.total / 2**30:.3g} GiB ({crowd.host.accel}): "
        f"one more takes {crowd.each / MEBI:.0f} MiB, so that {crowd.fit} would fit (computed); "
        f"all {most.guests} are ready after {most.seconds:.0f} s, one alone after "
        f"{min(crowd.crowds, key=lambda each: each.guests).seconds:.0f} s",
        says="holds",
    )


def lies(results: Results) -> ClaimAnswer:
    """One liar: the first reply, and a majority."""
    one, three = (
        next(n for n in results["liars"].nodes if n.vote == vote) for vote in ("1/3", "2/3")
    )
    return ClaimAnswer(
        measured=f"one guest lying: wrong replies released in {share_words(one.silent[1])} "
        f"missions of 1 of 3, in {share_words(three.silent[1])} of 2 of 3",
        says="holds" if one.silent[1].count and not three.silent[1].count else "undecided",
    )


def poison(results: Results) -> ClaimAnswer:
    """One request that meets a bug of all."""
    shots = sorted(results["poison"].shots, key=lambda shot: len(shot.fell))
    fell = [shot.fell[-1] for shot in shots]
    words = ", ".join(f"{len(shot.fell) - 1}: {share_words(shot.voted)}" for shot in shots)
    together = all(share.low > 0.5 for share in fell)
    return ClaimAnswer(
        measured="by construction: a request that meets a bug planted in all. Missions failed, by "
        f"n: {words}; nine guests are lost as surely as one",
        says="holds" if fell and together else "undecided",
    )

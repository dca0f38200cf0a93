"""The verdicts of a campaign: one sentence each, and the evidence for it.

Every sentence states what was measured, the estimate with its interval, and what is undecided.
"""

from __future__ import annotations

from collections.abc import Sequence

from faultinject.estimate.counts import EstimateError
from faultinject.estimate.equivalence import (
    Choice,
    Equivalence,
    PointComparison,
    VoterVerdict,
    bound_equivalence,
    combined_verdict,
    failure_equivalence,
    paper_failure,
)
from faultinject.estimate.strata import Excluded, band
from faultinject.report.dose_verdicts import dose_verdict, pooled_verdict
from faultinject.report.formatting import percent, sentence
from faultinject.report.model_findings import Doses
from faultinject.report.strata import StrataGroup
from faultinject.results.findings import (
    CommonCauseFinding,
    DesignFinding,
    PooledFinding,
    Proportion,
    VerdictFinding,
)

__all__ = [
    "REPAIR", "design_verdicts", "model_verdicts", "points_verdict", "voter_verdict",
    "worst_case_verdict",
]  # fmt: skip

CERTAIN = 0.9
"""Probability of a guest's failure above which dependence between guests makes no difference."""
REPAIR = (
    "Section 4 does not model repair: a repaired voted node is compared here with a plain node "
    "that is never restarted. A plain node with restarts was not measured."
)
PLANTED = "A planted cause shows the mechanism, not how often such causes occur."
DESIGN_MARGIN = 0.05
"""Margin, absolute, for the difference from the proportion 0 or 1 that the paper assumes."""
POINTS = "5 percentage points"
"""DESIGN_MARGIN in words."""


def voter_verdict(group: StrataGroup) -> VerdictFinding:
    """Compare U and the break-even R_V with the paper's, within the spec's margins."""
    found = _equivalences(group, given=False)
    verdict, margins = combined_verdict(*found), group.margins()
    repair = " with repair on" if group.repair else ""
    within = (
        f"The recombined U is within {percent(margins.failure)} of the paper's, and the break-even "
        f"R_V within {margins.bound:g} of Inequality (4), for every R_M from "
        f"{1 - margins.q_high:.2g} to {1 - margins.q_low:.2g}"
    )
    undecided = " ".join(
        _describe(each) for each in found if each.verdict is VoterVerdict.UNDECIDED
    )
    if verdict is VoterVerdict.HOLDS:
        tone, answer = "good", f"The voter behaves as Inequality (4) assumes{repair}."
        detail = f"{within}. f_0 was measured, not assumed."
    elif verdict is VoterVerdict.VIOLATED:
        detail = " ".join(
            _describe(each) for each in found if each.verdict is VoterVerdict.VIOLATED
        )
        if group.repair and _fails_less(group):
            tone = "open"
            answer = "With repair on, the voted node fails less often than Inequality (4) predicts."
            detail += f" {REPAIR}"
        else:
            tone, answer = "bad", f"The voter does not behave as Inequality (4) assumes{repair}."
    elif group.given and combined_verdict(*_equivalences(group, given=True)) is VoterVerdict.HOLDS:
        tone = "open"
        answer = f"Given f_0 = 0, the voter behaves as Inequality (4) assumes{repair}."
        detail = (
            f"Given f_0 = 0: {within}. Without that condition the number of missions with nothing "
            f"hit is too small: {undecided}"
        )
    else:
        tone, detail = "open", undecided
        answer = f"Undecided: does the voter behave as Inequality (4) assumes{repair}?"
    return VerdictFinding(about="voter", tone=tone, answer=answer, detail=detail, tests="voter")  # type: ignore[arg-type]


def _fails_less(group: StrataGroup) -> bool:
    """Whether the whole interval of U is below the paper's where guests fail most often."""
    q, source = group.margins().q_high, group.source
    known = band(group.strata, source.alpha).failure(q)
    return known.high < paper_failure(q, source.m, source.n)


def _equivalences(
    group: StrataGroup, *, given: bool, excluded: Excluded = "dropped"
) -> tuple[Equivalence, ...]:
    strata = group.given if given and group.given else group.strata
    alpha, m = group.source.alpha, group.source.m
    found = [failure_equivalence(strata, group.margins(), alpha, m, excluded)]
    try:
        found.append(bound_equivalence(strata, group.margins(), alpha, m, excluded))
    except EstimateError:  # the paper's bound is 1 or more within all of the margins
        pass
    return tuple(found)


def worst_case_verdict(group: StrataGroup) -> str:
    """Return the verdict if every excluded mission had gone against it."""
    return combined_verdict(*_equivalences(group, given=False, excluded="worst")).value


def _describe(found: Equivalence) -> str:
    measured = found.measured
    if measured.value != measured.value:
        seen = "not measured yet"
    else:
        high = "unbounded" if measured.high == float("inf") else f"to {measured.high:.4g}"
        seen = f"recombined estimate {measured.value:.4g}, interval {measured.low:.4g} {high}"
    if found.verdict is VoterVerdict.VIOLATED:
        ending = "outside the margin"
    elif found.missions is None:
        ending = "more missions at the observed rates would not decide it"
    else:
        more = ", ".join(
            f"{count:,} in {name[0]}_{name[1:]}" for name, count in found.missions.items() if count
        )
        ending = f"at the observed rates, a decision needs about {more} more missions"
    return sentence(
        f"{found.quantity} at q = {found.q:.3g} (R_M = {1 - found.q:.3g}): {seen}; the paper's "
        f"value is {found.paper:.4g}; {ending}"
    )


def points_verdict(
    points: Sequence[PointComparison], *, repair: bool, strata: int
) -> VerdictFinding | None:
    """Count the operating points at which each node is better; None without points.

    ``strata``: how many measured strata they are recombined from.
    """
    here = [each for each in points if each.repair == repair]
    if not here:
        return None
    by = {choice: [p for p in here if p.choice is choice] for choice in Choice}
    undecided = by[Choice.UNDECIDED]
    contrary = [p for p in here if p.choice not in (Choice.UNDECIDED, p.paper)]
    names = {
        Choice.VOTED: "the voted node is better", Choice.PLAIN: "the plain node is better",
        Choice.UNDECIDED: "undecided",
    }  # fmt: skip
    counts = ", ".join(f"{names[choice]} at {len(found)}" for choice, found in by.items() if found)
    tone, detail = "open", ""
    if contrary and repair and all(p.choice is Choice.VOTED for p in contrary):
        detail = (
            f"The voted node is better, contrary to Inequality (4), at {_list(contrary)}. {REPAIR}"
        )
    elif contrary:
        tone, detail = "bad", f"Contrary to Inequality (4) at {_list(contrary)}."
    elif not undecided:
        tone, detail = "good", "All of them agree with Inequality (4)."
    elif len(undecided) < len(here):
        detail = "All decided points agree with Inequality (4)."
    if undecided:
        detail += f" Undecided: {_list(undecided)}."
        given = sum(p.given_f0 is not Choice.UNDECIDED for p in undecided)
        if given:
            detail += f" Given f_0 = 0, {given} of these would be decided."
    return VerdictFinding(
        about="points", tone=tone, tests="voter", detail=detail.strip(),  # type: ignore[arg-type]
        answer=f"Of {len(here)} operating points{' with repair' if repair else ''}, all recombined "
        f"from the same {strata} strata: {counts}.",
    )  # fmt: skip


def _list(points: Sequence[PointComparison], most: int = 6) -> str:
    shown = [f"(R_M {p.rm:g}, R_V {p.rv:g})" for p in points[:most]]
    return ", ".join(shown) + (f" and {len(points) - most} more" if len(points) > most else "")


def design_verdicts(designs: Sequence[DesignFinding]) -> list[VerdictFinding]:
    """Compare each design with the paper: does it tolerate n - m failed guests, and no more?

    With repair, which section 4 does not model: is it better than the plain node?
    """
    unmasked = [each for each in designs if not each.repair and _releases_lies(each)]
    compared = [each for each in designs if not each.repair and each not in unmasked]
    repaired = [each for each in designs if each.repair]
    found = [_as_assumed(compared)] if compared else []
    found += [_unmasked(unmasked)] if unmasked else []
    return found + ([_repaired(repaired)] if repaired else [])


def _releases_lies(design: DesignFinding) -> bool:
    """Whether a 1-of-n design released wrong replies with guests hit that it should tolerate."""
    tolerated = design.n - design.m
    return design.m == 1 and any(share.count for share in design.silent[: tolerated + 1])


def _unmasked(designs: Sequence[DesignFinding]) -> VerdictFinding:
    parts = []
    for each in designs:
        silent, failed = each.silent[: each.n], each.failed[: each.n]
        counts = ", ".join(
            f"{share.count} of {share.of} missions failed with {k} hit"
            for k, share in enumerate(failed)
            if k and share.of
        )
        parts.append(
            f"{each.vote}: {counts}; {sum(share.count for share in silent)} of these "
            f"{sum(share.count for share in failed)} released a wrong reply"
        )
    return VerdictFinding(
        about="designs", tone="bad", tests="model",
        answer="A node that releases the first reply does not tolerate lying guests, contrary to "
        "the paper's formula for 1 of n.",
        detail=f"{'. '.join(parts)}. The formula assumes that a failed guest is silent. Here the "
        "reply of a lying guest is released whenever it arrives first; the voter has nothing to "
        "compare it with.",
    )  # fmt: skip


def _as_assumed(designs: Sequence[DesignFinding]) -> VerdictFinding:
    shares = [
        (f"{each.vote} with {k} hit: {share.count} of {share.of} failed", share, paper)
        for each in designs
        for k, (share, paper) in enumerate(zip(each.failed, each.paper, strict=True))
    ]
    margin = DESIGN_MARGIN
    contrary = [
        text
        for text, share, paper in shares
        if share.low > paper + margin or share.high < paper - margin
    ]
    points = [(each, p) for each in designs for p in each.points]
    outside = [
        f"{each.vote} at R_M = {p.rm:g}, R_V = {p.rv:g}"
        for each, p in points
        if p.paper < p.recombined.low - margin or p.paper > p.recombined.high + margin
    ]
    inside = sum(p.recombined.contains(p.paper) for _, p in points)
    covered = (
        f"The paper's R_sys is within the recombined interval at {inside} of {len(points)} points."
    )
    wide = sum(
        not (share.of and paper - margin <= share.low and share.high <= paper + margin)
        for _, share, paper in shares
    )
    if contrary or outside:
        tone, answer = "bad", "Not every design behaves as the paper assumes."
        detail = f"Contrary to the paper: {'; '.join([*contrary[:6], *outside[:6]])}."
    elif wide:
        tone = "open"
        answer = f"{_plural(len(designs), 'design')}: no departure from the paper was observed."
        detail = (
            f"{covered} The proportions of {wide} of {len(shares)} strata are not known to within "
            f"{POINTS}."
        )
    else:
        tone = "good"
        answer = (
            f"{', '.join(each.vote for each in designs)} behave as the paper assumes: m of n "
            "tolerates n - m failed guests, and no more."
        )
        detail = f"The proportion of every stratum is within {POINTS} of the assumed one. {covered}"
    return VerdictFinding(about="designs", tone=tone, tests="voter", answer=answer, detail=detail)  # type: ignore[arg-type]


def _repaired(designs: Sequence[DesignFinding]) -> VerdictFinding:
    points = [point for each in designs for point in each.points]
    better = sum(point.recombined.low > point.plain for point in points)
    worse = sum(point.recombined.high < point.plain for point in points)
    failed = "; ".join(f"{each.vote}: {', '.join(_failures(each))}" for each in designs)
    return VerdictFinding(
        about="designs", tone="open", tests="voter",
        answer=f"With repair, {', '.join(each.vote for each in designs)} is better than the plain "
        f"node at {better} of {len(points)} operating points, worse at {worse}.",
        detail=f"Missions that failed despite repair: {failed}. {REPAIR}",
    )  # fmt: skip


def _failures(design: DesignFinding) -> list[str]:
    guests = [
        f"{share.count} of {share.of} with {k} hit"
        for k, share in enumerate(design.failed)
        if share.of
    ]
    return guests + [
        f"{share.count} of {share.of} with the voter hit" + (f" and {k} guests" if k else "")
        for k, share in enumerate(design.voter)
        if share and share.of
    ]


def model_verdicts(
    doses: Doses, pooled: Sequence[PooledFinding], causes: Sequence[CommonCauseFinding]
) -> tuple[VerdictFinding, ...]:
    """Compare the paper's model with what was measured: common causes, all doses, each dose."""
    found = [_common_causes(causes)] if causes else []
    each = [dose_verdict(kind, series, found) for kind, (found, series) in doses.items()]
    return (*found, *map(pooled_verdict, pooled), *each)


def _common_causes(causes: Sequence[CommonCauseFinding]) -> VerdictFinding:
    if over_n := _over_n(causes):
        return over_n
    together = [each for each in causes if each.together]
    certain = [each for each in causes if each.independent[-1] > CERTAIN]
    count = _plural(len(causes), "common cause")
    detail = []
    if together:
        contrasts = "; ".join(
            f"{each.kind}, {each.test.observed[-1]:,} of {sum(each.test.observed):,} trials "
            f"instead of {each.test.expected[-1]:.1f} (p = {each.test.p_value:.2g})"
            for each in together
        )
        detail.append(
            "Too few guests were left for a vote more often than with independent guests: "
            f"{contrasts}. {_tests(causes)}"
        )
    if certain:
        detail.append(
            f"Under {_names(certain)} nearly every guest fails in every trial, so that independent "
            "guests would fare no better."
        )
    detail += _compare_with_plain(causes)
    return VerdictFinding(
        about="common causes", tone="bad" if together else "open", tests="model",
        answer=f"Under {len(together)} of {count} (planted), guests do not fail independently."
        if together else f"Undecided: do guests fail independently under {count} (planted)?",
        detail=" ".join([*detail, PLANTED]),
    )  # fmt: skip


def _tests(causes: Sequence[CommonCauseFinding]) -> str:
    """State the rule for several tests."""
    count = sum(each.test.p_value is not None for each in causes)
    return f"Significant: p below alpha / {count} (Bonferroni over the causes that can be tested)."


def _over_n(causes: Sequence[CommonCauseFinding]) -> VerdictFinding | None:
    """The verdict on one cause that fails all guests of nodes of several sizes; None otherwise.

    Dependence cannot be distinguished from independence there, and need not be: more guests do not
    help.
    """
    names = {each.kind.partition(",")[0] for each in causes}
    ns = sorted(len(each.failed) - 1 for each in causes)
    if len(names) > 1 or len(set(ns)) < 3 or any(e.failed[-1].low < CERTAIN for e in causes):
        return None
    everything = [each.failed[-1] for each in causes]
    failed = sum(each.voted.count for each in causes)
    return VerdictFinding(
        about="common causes", tone="bad", tests="model",
        answer=f"{sentence(names.pop())[:-1]} (planted) fails all guests, whatever their number.",
        detail=f"In {sum(e.count for e in everything):,} of {sum(e.of for e in everything):,} "
        f"trials all guests failed, at each n from {ns[0]} to {ns[-1]}; {failed:,} of the missions "
        "failed. No number of guests tolerates what all guests of one build have in common. "
        f"{PLANTED}",
    )  # fmt: skip


def _compare_with_plain(causes: Sequence[CommonCauseFinding]) -> list[str]:
    """Compare the voted node with one guest alone, by whether the intervals overlap."""

    def side(voted: Proportion, plain: Proportion) -> str:
        if voted.high < plain.low:
            return "The voted node failed less often than one guest alone under"
        if voted.low > plain.high:
            return "The voted node failed more often than one guest alone under"
        return "Undecided (the intervals of the voted node and of one guest overlap) under"

    sides: dict[str, list[CommonCauseFinding]] = {}
    for each in causes:
        if each.plain and each.plain.of:
            sides.setdefault(side(each.voted, each.plain), []).append(each)
    return [f"{text} {_names(which)}." for text, which in sorted(sides.items(), reverse=True)]


def _names(causes: Sequence[CommonCauseFinding]) -> str:
    names = [each.kind for each in causes]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"

"""Findings on faults that nobody forced to cause a failure: doses of soft errors, common causes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from faultinject.campaign.store.tally import Tally
from faultinject.estimate.common_cause import AtFrequency, at_frequency, estimate_common_cause
from faultinject.estimate.counts import Counts
from faultinject.estimate.doses import (
    MARGIN,
    DoseCounts,
    DoseSeries,
    compare_doses,
    joint_test,
    mean_departure,
)
from faultinject.estimate.hypothesis_tests import fit_correlation, independence_test
from faultinject.estimate.power import REFERENCE, dose_power, independence_power, pooled_power
from faultinject.model.reliability import m_of_n
from faultinject.report.data import CauseAtFrequency
from faultinject.report.formatting import TIMES
from faultinject.report.source import Source, outcomes_of
from faultinject.results.findings import CommonCauseFinding, DoseFinding, PooledFinding, Proportion

__all__ = ["Doses", "find_at_frequency", "find_common_causes", "find_doses", "find_pooled",
           "find_shared_doses"]  # fmt: skip

FREQUENCY = 0.05
"""Assumed proportion of missions with the common cause, where the page shows its effect."""
SHOWN_RM = 0.9  # R_M at which the page gives numbers for that

Doses = dict[str, tuple[tuple[DoseFinding, ...], DoseSeries]]
Arms = dict[int, tuple[Tally, Tally]]
"""By dose: missions of one guest without a voter, and of the voted node."""


def find_doses(source: Source) -> Doses:
    """Return by kind: its doses in rising order, and the estimate over all of them."""
    tallies = source.store.by_dose(source.prefix)
    found: Doses = {}
    for kind in dict.fromkeys(kind for kind, _, _ in tallies):
        arms = {
            dose: (
                tallies.get((kind, dose, "nv"), Tally()),
                tallies.get((kind, dose, "voted"), Tally()),
            )
            for dose in sorted({dose for each, dose, _ in tallies if each == kind})
        }  # fmt: skip
        series = _compare(source, arms, source.alpha)
        doses = _doses(source, kind, arms, series, shared=False)
        counted = [_with_failed_guests(source, each) for each in doses]
        found[kind] = tuple(_with_power(source, each, counted) for each in counted), series
    return found


def _with_power(source: Source, dose: DoseFinding, family: Sequence[DoseFinding]) -> DoseFinding:
    """Add what this dose can show; its tests share alpha with those of the ``family``."""
    rm, counted = dose.plain.value, dose.failed_guests
    if rm is None or not dose.voted.of:
        return dose
    m, n, alpha = source.m, source.n, source.alpha
    tests = sum(_testable(each) for each in family)
    missions = sum(counted.observed) if counted else 0
    return msgspec.structs.replace(
        dose,
        power=dose_power(rm, dose.plain.of, dose.voted.of, alpha / len(family), MARGIN, m, n),
        test_power=independence_power(
            REFERENCE, 1 - (counted.expected[0] / missions) ** (1 / n), missions, alpha / tests,
            len(counted.observed), n,
        ) if counted and _testable(dose) else None,
    )  # fmt: skip


def _testable(dose: DoseFinding) -> bool:
    return dose.failed_guests is not None and dose.failed_guests.p_value is not None


def find_pooled(source: Source, doses: Doses) -> tuple[PooledFinding, ...]:
    """Return the evidence of all doses together, for each kind with two doses or more."""
    found, m, n = [], source.m, source.n
    for kind, (each, _) in doses.items():
        used = [dose for dose in each if dose.plain.of and dose.voted.of]
        arms = [
            DoseCounts(
                dose=dose.flips,
                nv=Counts(trials=dose.plain.of, failures=dose.plain.of - dose.plain.count),
                voted=Counts(trials=dose.voted.of, failures=dose.voted.of - dose.voted.count),
            )
            for dose in used
        ]
        joint, departure = joint_test(arms, m, n), mean_departure(arms, source.alpha, m, n)
        if joint is None or departure is None or len(used) < 2:
            continue
        counted = [dose for dose in used if _testable(dose)]
        found.append(
            PooledFinding(
                kind=kind, doses=len(used), confidence=1 - source.alpha, joint=joint,
                departure=departure,
                correlation=fit_correlation(
                    [dose.failed_guests.observed for dose in counted if dose.failed_guests], n,
                    source.alpha,
                ),
                counted=tuple(dose.flips for dose in counted),
                power=pooled_power(
                    [(dose.plain.value or 0.0, dose.plain.of, dose.voted.of) for dose in used],
                    source.alpha, m, n,
                ),
            )
        )  # fmt: skip
    return tuple(found)


def _with_failed_guests(source: Source, dose: DoseFinding) -> DoseFinding:
    """Add how many guests failed per mission; with repair they do not stay failed."""
    if source.store.spec.repair == "on":
        return dose
    classes = [0] * (source.n - source.m + 2)
    tallies = source.store.doses_by_failed_guests(source.prefix).get((dose.kind, dose.flips), {})
    for failed, count in _by_failed(tallies, source.m, source.n, lost=False).items():
        classes[min(failed, len(classes) - 1)] += count
    return msgspec.structs.replace(dose, failed_guests=independence_test(classes, source.n))


def find_shared_doses(source: Source) -> tuple[DoseFinding, ...]:
    """Return each common cause that was also applied to one guest alone, as a point of the figure
    of doses.
    """
    causes = {
        kind: each
        for kind, each in _causes(source).items()
        if each.plain.trials and not each.own_vote
    }
    found: list[DoseFinding] = []
    for kind, each in causes.items():
        arms = {each.flips: (each.plain, each.voted)}
        series = _compare(source, arms, source.alpha / len(causes))
        found += _doses(source, kind, arms, series, shared=True)
    return tuple(found)


def _compare(source: Source, arms: Arms, alpha: float) -> DoseSeries:
    counts = [
        DoseCounts(dose=dose, nv=nv.counts(), voted=voted.counts())
        for dose, (nv, voted) in arms.items()
    ]
    return compare_doses(counts, alpha, MARGIN, source.m, source.n)


def _doses(
    source: Source, kind: str, arms: Arms, series: DoseSeries, *, shared: bool
) -> tuple[DoseFinding, ...]:
    return tuple(
        DoseFinding(
            kind=kind, flips=dose, shared=shared,
            plain=source.proportion(nv.successes, nv.trials),
            voted=source.proportion(voted.successes, voted.trials),
            model=each.model, verdict=each.verdict,
            outcomes=outcomes_of(voted), plain_outcomes=outcomes_of(nv),
        )
        for (dose, (nv, voted)), each in zip(arms.items(), series.doses, strict=True)
    )  # fmt: skip


class _Cause(msgspec.Struct, frozen=True, kw_only=True):
    """One common cause: trials by number of failed guests of a node, m of n, and missions."""

    kind: str
    flips: int
    m: int
    n: int
    failed: tuple[int, ...]
    voted: Tally
    plain: Tally
    strata: tuple[str, ...]  # of the voted node
    own_vote: bool = False


def _by_failed(
    tallies: Mapping[int, Tally], m: int, n: int, *, lost: bool = True
) -> dict[int, int]:
    """Count missions by number of failed guests, from tallies by failures that the voter saw.

    Where a wrong reply was released, the guests that agreed on it failed, at least m; the state of
    the outvoted ones is unknown and not counted.  Where the voter was ``lost``, nothing is known:
    all guests count as failed.
    """
    found: dict[int, int] = {}
    for seen, tally in tallies.items():
        agreed = n - min(seen, n) if m > 1 else 1  # 1 of n compares nothing
        for failed, count in (
            (min(seen, n), tally.trials - tally.voter_lost - tally.wrong_replies),
            (max(m, agreed), tally.wrong_replies),
            (n, tally.voter_lost if lost else 0),
        ):
            found[failed] = found.get(failed, 0) + count
    return found


def _causes(source: Source) -> dict[str, _Cause]:
    tallies = source.store.common_causes(source.prefix)
    found: dict[str, _Cause] = {}
    for (kind, flips, design, vote), by_failed in tallies.items():
        policy = source.policy(vote)
        counted = _by_failed(by_failed, policy.need, policy.of)
        failed = tuple(counted.get(k, 0) for k in range(policy.of + 1))
        if design != "voted" or not sum(failed):
            continue
        cause = f"{kind} {TIMES} {flips:,}" if flips > 1 else kind
        name = f"{cause}, {policy.need} of {policy.of}" if vote else cause
        found[name] = _Cause(
            kind=cause, flips=flips, m=policy.need, n=policy.of, failed=failed,
            voted=sum(by_failed.values(), Tally()),
            plain=sum(tallies.get((kind, flips, "nv", ""), {}).values(), Tally()),
            strata=tuple(
                cell.name for cell in source.cells()
                if (cell.kind, cell.dose, cell.design, cell.vote) == (kind, flips, design, vote)
                and cell.common_cause
            ),
            own_vote=bool(vote),
        )  # fmt: skip
    return found


def _merged(failed: Sequence[int], last: int) -> tuple[int, ...]:
    """Return trials by failed guests, those with ``last`` or more in one class, as for doses."""
    return (*failed[:last], sum(failed[last:]))


def find_common_causes(source: Source) -> tuple[CommonCauseFinding, ...]:
    """Return each common cause with its estimates."""
    found = []
    causes = _causes(source)
    tests = {
        kind: independence_test(_merged(each.failed, each.n - each.m + 1), each.n)
        for kind, each in causes.items()
    }
    ps = {kind: each.p_value for kind, each in tests.items() if each.p_value is not None}
    for kind, each in causes.items():
        result = estimate_common_cause(each.failed, source.alpha, each.m)
        voted, plain, trials = each.voted, each.plain, sum(each.failed)
        test = tests[kind]
        more = bool(test.expected) and test.observed[-1] > test.expected[-1]
        found.append(
            CommonCauseFinding(
                kind=kind,
                failed=tuple(
                    Proportion(count=count, of=trials, low=c.low, high=c.high)
                    for count, c in zip(each.failed, result.c, strict=True)
                ),
                independent=result.independent,
                test=test,
                together=kind in ps and more and ps[kind] < source.alpha / len(ps),
                fatal=result.fatal,
                fatal_independent=result.fatal_if_independent,
                voted=source.proportion(voted.failures, voted.trials),
                plain=source.proportion(plain.failures, plain.trials) if plain.trials else None,
                wrong=source.wrong_replies(voted, source.prefix, stratum=each.strata),
            )
        )
    return tuple(found)


def find_at_frequency(source: Source) -> tuple[CauseAtFrequency, ...]:
    """Return R_sys if each common cause occurred in the proportion FREQUENCY of missions."""
    found = []
    for kind, cause in _causes(source).items():
        each = estimate_common_cause(cause.failed, source.alpha, cause.m).each.value

        def at(own: float, cause: _Cause = cause) -> AtFrequency:
            return at_frequency(cause.failed, FREQUENCY, own, m=cause.m, alpha=source.alpha)

        curve = [at(i / 100) for i in range(101)]
        shown = at(min(1.0, SHOWN_RM / (1 - FREQUENCY * each)))
        found.append(
            CauseAtFrequency(
                kind=kind, cause=cause.kind, frequency=FREQUENCY,
                rm=tuple(one.rm.value for one in curve), rsys=tuple(one.rsys for one in curve),
                at=shown.rsys, beta=shown.beta, m=cause.m, n=cause.n,
                at_independent=float(m_of_n(1.0, 1.0, SHOWN_RM, cause.m, cause.n)),
            )
        )  # fmt: skip
    return tuple(found)

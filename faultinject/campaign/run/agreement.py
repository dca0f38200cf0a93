"""Compares two runs of one plan: how often did the same mission end alike?

One seed makes one plan, but outcomes on real machines may differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec
from rich.table import Table

from faultinject.campaign.store.store import Store
from faultinject.estimate.intervals import Interval
from faultinject.results.outcome import Outcome
from voter.commands.terminal import CommandError, ExitCode

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Agreement", "StratumAgreement", "compare", "compare_stores", "show_agreement"]

EXCLUDED = "excluded"


class StratumAgreement(msgspec.Struct, frozen=True, kw_only=True):
    """The trials of one planned stratum, and how many ended differently."""

    stratum: str
    missions: int
    other_outcome: int
    other_success: int


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """The comparison of two runs.

    ``both``: missions that both ran.  ``trials``: those of them that are trials in both.
    ``pairs``: (outcome in the first, in the second, missions), excluded ones too.
    ``other_outcome``: trials with different outcomes.  ``other_success``: those where
    one failed and the other did not; ``share``, ``low``, ``high``: their share of the trials with
    its Clopper-Pearson interval.
    ``difference``: failure rate of the second run minus that of the first, with its interval; None
    without trials.  ``p_value``: McNemar's, of no difference.  ``apart``: the missions with
    different outcomes.
    """

    both: int
    trials: int
    pairs: tuple[tuple[str, str, int], ...]
    other_outcome: int
    other_success: int
    share: float | None
    low: float
    high: float
    difference: Interval | None
    p_value: float
    strata: tuple[StratumAgreement, ...]
    apart: tuple[int, ...]


def compare(
    missions: Iterable[tuple[int, str, Outcome | None, Outcome | None]], alpha: float = 0.05
) -> Agreement:
    """Compare missions, each given as number, stratum, first and second outcome."""
    from faultinject.estimate.hypothesis_tests import mcnemar_p, paired_difference  # noqa: PLC0415
    from faultinject.estimate.intervals import clopper_pearson  # noqa: PLC0415

    pairs: Counter[tuple[str, str]] = Counter()
    verdicts: Counter[tuple[bool, bool]] = Counter()
    strata: dict[str, list[int]] = {}
    apart = []
    for index, stratum, first, second in missions:
        pairs[str(first or EXCLUDED), str(second or EXCLUDED)] += 1
        if first is None or second is None:
            continue
        verdicts[first.failed, second.failed] += 1
        counts = strata.setdefault(stratum, [0, 0, 0])
        counts[0] += 1
        counts[1] += first is not second
        counts[2] += first.failed is not second.failed
        if first is not second:
            apart.append(index)
    trials = verdicts.total()
    other = verdicts[True, False] + verdicts[False, True]
    interval = clopper_pearson(other, trials, alpha)
    return Agreement(
        both=pairs.total(),
        trials=trials,
        pairs=tuple((one, two, count) for (one, two), count in sorted(pairs.items())),
        other_outcome=len(apart),
        other_success=other,
        share=interval.value if trials else None,
        low=interval.low,
        high=interval.high,
        difference=paired_difference(verdicts[True, False], verdicts[False, True], trials, alpha)
        if trials
        else None,
        p_value=mcnemar_p(verdicts[True, False], verdicts[False, True]) if trials else 1.0,
        strata=tuple(
            StratumAgreement(stratum=name, missions=a, other_outcome=b, other_success=c)
            for name, (a, b, c) in sorted(strata.items())
        ),
        apart=tuple(sorted(apart)),
    )


def compare_stores(first: Store, second: Store) -> Agreement:
    """Compare two runs of one plan.  Raises CommandError if their plans differ."""
    for what, one, two in (
        ("specs", first.spec.hash, second.spec.hash),
        ("seeds", first.seed, second.seed),
        ("plans", first.plan.fingerprint, second.plan.fingerprint),
    ):
        if one != two:
            raise CommandError(
                f"{first.directory} and {second.directory} have different {what}: "
                f"{str(one)[:16]} and {str(two)[:16]}",
                remedy="compare two runs of one file with one seed",
                code=ExitCode.USAGE,
                error_code="TV0533",
            )
    outcomes = {mission.index: mission.outcome for _, mission in second.missions()}
    return compare(
        (
            (plan.index, plan.stratum, mission.outcome, outcomes[plan.index])
            for plan, mission in first.missions()
            if plan.index in outcomes
        ),
        first.spec.alpha,
    )


def show_agreement(agreed: Agreement, out: Console) -> None:
    """Print a comparison."""
    table = Table("first run", "second run", "missions")
    for one, two, count in agreed.pairs:
        colour = "" if one == two else "[yellow]"
        table.add_row(f"{colour}{one}", f"{colour}{two}", f"{colour}{count:,}")
    out.print(table)
    strata = Table("stratum", "missions", "different outcome", "one failed, one did not")
    for each in agreed.strata:
        strata.add_row(
            each.stratum, f"{each.missions:,}", f"{each.other_outcome:,}", f"{each.other_success:,}"
        )
    out.print(strata)
    share = "" if agreed.share is None else (
        f": {agreed.share:.2%} [{agreed.low:.2%}, {agreed.high:.2%}] of them failed in one run only"
    )  # fmt: skip
    rates = agreed.difference
    difference = "" if rates is None else (
        f"; failure rate of the second run minus the first: {rates.value:+.2%} [{rates.low:+.2%}, "
        f"{rates.high:+.2%}]"
    )  # fmt: skip
    out.print(
        f"{agreed.both:,} missions were run by both, {agreed.trials:,} are trials in both{share}; "
        f"{agreed.other_outcome:,} had different outcomes{difference} (McNemar p = "
        f"{agreed.p_value:.3g})",
        markup=False,
    )

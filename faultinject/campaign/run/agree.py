"""The same missions run twice: how often they came out alike.

The plan is the same from the same seed, outcomes on real machines need not be.  Pure, but for the
statistics' library.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from faultinject.campaign.records import Outcome

__all__ = ["Agreed", "StratumAgreed", "compare"]

VOID = "void"


class StratumAgreed(msgspec.Struct, frozen=True, kw_only=True):
    """One planned stratum: missions that both ran, and how many came out otherwise."""

    stratum: str
    missions: int
    other_outcome: int
    other_verdict: int


class Agreed(msgspec.Struct, frozen=True, kw_only=True):
    """Two runs beside each other.

    ``both``: missions that both have, ``trials`` those of them that are trials in both.
    ``pairs``: (outcome in the first, in the second, missions), void ones too.  ``other_outcome``:
    trials with another outcome, ``other_verdict``: of those, one failed and the other did not;
    ``share``, ``low``, ``high``: of these among the trials, with its Clopper-Pearson interval.
    ``p_value``: McNemar's, of neither run failing more often than the other.  ``apart``: the
    missions with another outcome.
    """

    both: int
    trials: int
    pairs: tuple[tuple[str, str, int], ...]
    other_outcome: int
    other_verdict: int
    share: float | None
    low: float
    high: float
    p_value: float
    strata: tuple[StratumAgreed, ...]
    apart: tuple[int, ...]


def compare(
    missions: Iterable[tuple[int, str, Outcome | None, Outcome | None]], alpha: float = 0.05
) -> Agreed:
    """Compare two runs; each mission: its number, stratum, first and second outcome."""
    from faultinject.estimate.hypothesis_tests import mcnemar_p  # noqa: PLC0415 - slow
    from faultinject.estimate.intervals import clopper_pearson  # noqa: PLC0415

    pairs: Counter[tuple[str, str]] = Counter()
    verdicts: Counter[tuple[bool, bool]] = Counter()
    strata: dict[str, list[int]] = {}
    apart = []
    for index, stratum, first, second in missions:
        pairs[str(first or VOID), str(second or VOID)] += 1
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
    return Agreed(
        both=pairs.total(),
        trials=trials,
        pairs=tuple((one, two, count) for (one, two), count in sorted(pairs.items())),
        other_outcome=len(apart),
        other_verdict=other,
        share=interval.value if trials else None,
        low=interval.low,
        high=interval.high,
        p_value=mcnemar_p(verdicts[True, False], verdicts[False, True]) if trials else 1.0,
        strata=tuple(
            StratumAgreed(stratum=name, missions=a, other_outcome=b, other_verdict=c)
            for name, (a, b, c) in sorted(strata.items())
        ),
        apart=tuple(sorted(apart)),
    )

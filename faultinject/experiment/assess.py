"""From rows to a result: counts with exact intervals, each compared with its prediction."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from faultinject.estimate.intervals import clopper_pearson
from faultinject.experiment.design import Arm
from faultinject.experiment.store import Row, RowStore
from faultinject.results.experiment import ArmResult, ExperimentResult, Fitness, Quantity
from faultinject.results.findings import Proportion

__all__ = ["assess"]

ALPHA = 0.05
"""Probability that any interval of an experiment misses (Bonferroni over its arms)."""


def assess(store: RowStore) -> ExperimentResult:
    """Return the result of the rows so far.

    The rows of an incomplete run are the first of a random order, but slow trials may be missing:
    the result says that it is partial.
    """
    experiment, rows = store.experiment, store.rows
    names = {trial.arm for trial in store.plan}
    arms = [arm for arm in experiment.arms if arm.name in names]
    results = [
        _assess_arm(arm, store, [row for row in rows if row.arm == arm.name], ALPHA / len(arms))
        for arm in arms
    ]
    return ExperimentResult(
        name=experiment.name,
        title=experiment.title,
        about=experiment.about,
        paper=experiment.paper,
        seed=store.head.seed,
        share=store.head.share,
        planned=len(store.plan),
        done=len(rows),
        excluded=sum(bool(row.outcome.excluded) for row in rows),
        confidence=1 - ALPHA,
        accel=", ".join(sorted({row.facts.get("accel", "unknown") for row in rows})),
        seconds=round(sum(row.seconds for row in rows), 1),
        version=store.head.version,
        arms=tuple(results),
        joint_p=_joint_p(results),
        quantities=dict(experiment.values),
    )


def _assess_arm(arm: Arm, store: RowStore, rows: Sequence[Row], alpha: float) -> ArmResult:
    outcomes = [row.outcome for row in rows if not row.outcome.excluded]
    count = sum(outcome.event for outcome in outcomes)
    found = clopper_pearson(count, len(outcomes), alpha)
    observed = Proportion(count=count, of=len(outcomes), low=found.low, high=found.high)
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.values)
    return ArmResult(
        name=arm.name,
        label=arm.label,
        event=arm.event,
        planned=sum(trial.arm == arm.name for trial in store.plan),
        excluded=len(rows) - len(outcomes),
        observed=observed,
        predicted=arm.predicted,
        basis=arm.basis,
        source=arm.source,
        margin=arm.margin,
        fitness=_fitness(arm, observed),
        quantities={
            name: _quantity([each.values[name] for each in outcomes if name in each.values])
            for name in names
        },
    )


def _fitness(arm: Arm, observed: Proportion) -> Fitness:
    if arm.predicted is None:
        return "measured"
    if not observed.low <= arm.predicted <= observed.high:
        return "departs"
    inside = (
        observed.low >= arm.predicted - arm.margin and observed.high <= arm.predicted + arm.margin
    )
    return "agrees" if inside and observed.of else "undecided"


def _quantity(values: Sequence[float]) -> Quantity:
    return Quantity(
        trials=len(values),
        total=math.fsum(values),
        mean=statistics.fmean(values),
        median=statistics.median(values),
        largest=max(values),
    )


def _joint_p(arms: Sequence[ArmResult]) -> float | None:
    """Return the p-value of the likelihood-ratio test that all predictions hold (chi-squared)."""
    from scipy.stats import chi2  # noqa: PLC0415 - slow to load

    tested = [
        (arm.observed, arm.predicted)
        for arm in arms
        if arm.predicted is not None and 0 < arm.predicted < 1 and arm.observed.of
    ]
    if not tested:
        return None
    ratio = 0.0
    for observed, predicted in tested:
        for count, share in (
            (observed.count, predicted),
            (observed.of - observed.count, 1 - predicted),
        ):
            if count:
                ratio += 2 * count * math.log(count / (observed.of * share))
    return float(chi2.sf(max(ratio, 0.0), len(tested)))

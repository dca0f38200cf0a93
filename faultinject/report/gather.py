"""From a campaign's directory to the report's data: reads the store, calls the estimators."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from faultinject.campaign.planning.detectable import Detectable, detectable, share_of
from faultinject.campaign.planning.plan import LIARS
from faultinject.campaign.planning.spec import FORCED, Spec
from faultinject.campaign.store.store import Store
from faultinject.report.data import ReportData, RunDetails
from faultinject.report.designs import find_designs
from faultinject.report.formatting import percent
from faultinject.report.mission_findings import (
    Observations,
    find_effects,
    find_kinds,
    find_latencies,
    find_times,
    observe,
)
from faultinject.report.model_findings import (
    Doses,
    find_at_frequency,
    find_common_causes,
    find_doses,
    find_pooled,
    find_shared_doses,
)
from faultinject.report.source import Source
from faultinject.report.strata import StrataGroup, find_strata, group_strata
from faultinject.report.verdicts import (
    design_verdicts,
    model_verdicts,
    points_verdict,
    voter_verdict,
    worst_case_verdict,
)
from faultinject.report.wrong_replies import find_wrong_replies, wrong_replies_verdicts
from faultinject.results.findings import (
    CampaignSummary,
    Proportion,
    StratumFinding,
    VerdictFinding,
)

__all__ = ["gather"]

MANY_EXCLUDED = 0.01
"""Proportion of excluded missions of a stratum above which the page notes it."""
WRONG = LIARS | {"function-admit", "function-refuse"}
"""Faults after which a guest answers, and wrongly."""
DRAWN_WITH = ("matplotlib", "scipy", "jinja2")


def gather(directory: Path) -> ReportData:
    """Read the campaign in ``directory``, which may be running.  Raises StoreError."""
    with Store.open(directory, write=False) as store:
        m, n = (int(each) for each in store.spec.station.vote.split("/"))
        prefix = store.prefix() if store.partial else None
        return _gather(
            Source(store=store, prefix=prefix, alpha=store.spec.alpha_per_analysis, m=m, n=n)
        )


def _gather(source: Source) -> ReportData:
    observed = observe(source)
    groups, strata = group_strata(source), find_strata(source)
    points = tuple(point for group in groups for point in group.points())
    doses, causes = find_doses(source), find_common_causes(source)
    designs, wrong = find_designs(source), find_wrong_replies(source, observed.wrong)
    on_voter = [
        verdict
        for group in groups
        for verdict in (
            voter_verdict(group),
            points_verdict(points, repair=group.repair, strata=len(group.strata.measured())),
        )
        if verdict
    ]
    on_voter += design_verdicts(designs)
    pooled = find_pooled(source, doses)
    on_model = list(model_verdicts(doses, pooled, causes))
    forced = source.store.spec.question in FORCED
    verdicts: list[VerdictFinding] = [
        *(on_voter + on_model if forced else on_model + on_voter), *wrong_replies_verdicts(wrong)
    ]  # fmt: skip
    verdicts.sort(key=lambda each: each.tone != "alarm")  # alarms first
    return ReportData(
        campaign=_summary(source),
        run=_run(source, observed),
        verdicts=tuple(verdicts),
        strata=strata,
        kinds=find_kinds(source, observed),
        wrong_replies=wrong,
        crossings={kind: found.crossing for kind, (_, found) in doses.items() if found.crossing},
        curves=tuple(group.curve() for group in groups),
        points=points,
        precision=tuple(each for group in groups for each in group.precision()),
        sampling=groups[0].sampling() if groups else (),
        detectable=_detectable(source, doses),
        shares=_shares(source),
        designs=designs,
        doses=tuple(dose for each, _ in doses.values() for dose in each)
        + find_shared_doses(source),
        pooled=pooled,
        common_causes=causes,
        at_frequency=find_at_frequency(source),
        latencies=find_latencies(source, observed, strata),
        times=find_times(observed),
        idle_timeouts=_idle_timeouts(source),
        effects=find_effects(source),
        notes=tuple(_notes(source, observed, groups, strata)),
    )


def _detectable(source: Source, doses: Doses) -> tuple[Detectable, ...]:
    """What the trials so far detect, at the measured R_M."""
    trials = {str(name): tally.trials for (name,), tally in source.grouped("stratum").items()}
    rms = {
        (kind, dose.flips): rm
        for kind, (found, _) in doses.items()
        for dose in found
        if (rm := dose.plain.value) is not None
    }
    return detectable(source.store.plan, trials, rms)


def _shares(source: Source) -> tuple[tuple[str, float], ...]:
    """By stratum, the smallest proportion against the paper's that its trials show once."""
    return tuple(
        (cell.name, share)
        for cell in source.cells()
        if (share := share_of(cell, source.tally(stratum=cell.name).trials)) is not None
    )


def _idle_timeouts(source: Source) -> Proportion | None:
    """Missions with nothing hit that timed out: a busy host was mistaken for a fault."""
    idle = [
        cell.name
        for cell in source.cells()
        if not cell.common_cause
        and (not cell.dose if cell.kind else not cell.failing_guests and not cell.host_target_hit)
    ]
    if not idle:
        return None
    tally = source.tally(stratum=idle)
    return source.proportion(tally.timeout, tally.trials)


def _lying(spec: Spec) -> float:
    """The share of faults that make guests lie; of guests and of f in them, the larger one."""
    mixes = (
        (spec.faults, any(each.guests_hit for each in spec.strata)),
        (spec.function_faults, any(each.function_hit for each in spec.strata)),
    )
    return max((_wrong(mix) for mix, used in mixes if used), default=0.0)


def _wrong(faults: Mapping[str, float]) -> float:
    total = sum(faults.values())
    return sum(weight for kind, weight in faults.items() if kind in WRONG) / total if total else 0.0


def _summary(source: Source) -> CampaignSummary:
    store, meta, tally = source.store, source.store.meta(), source.tally()
    return CampaignSummary(
        title=meta.title, question=store.spec.question, seed=meta.seed, planned=store.total,
        done=store.done, used=store.total if source.prefix is None else source.prefix,
        excluded=tally.excluded, trials=tally.trials, confidence=1 - source.alpha,
        vote=f"{source.m}/{source.n}", lying=_lying(store.spec),
        accel=", ".join(sorted({each.accel for each in meta.facts.values()})),
        flips=any("flip" in kind and kind != "voter-flip" for kind in store.spec.kinds),
    )  # fmt: skip


def _run(source: Source, observed: Observations) -> RunDetails:
    store, meta = source.store, source.store.meta()
    began = [each.began for each in meta.runs] or [meta.created]
    ends = [began + sum(parts) for _, began, parts in observed.times]
    ends += [each.ended for each in meta.runs if each.ended]
    return RunDetails(
        service=Path(store.spec.station.service).name,
        requests=store.spec.workload.length,
        workers=max((each.workers for each in meta.runs), default=0),
        began=min(began),
        ended=max(ends, default=max(began)),
        spec=meta.spec_text,
        spec_hash=meta.spec_hash,
        facts=tuple(dict.fromkeys(meta.facts.values())),  # of another host or a later run, too
        versions=(*sorted(meta.versions.items()), *_versions()),
        directory=store.directory.resolve().name,
    )


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in DRAWN_WITH:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:  # importable, but not installed as a package
            found.append((name, "of unknown version"))
    return found


def _notes(
    source: Source,
    observed: Observations,
    groups: tuple[StrataGroup, ...],
    strata: tuple[StratumFinding, ...],
) -> list[str]:
    notes = []
    unmet = [each for each in strata if each.alike is None and each.met.of < each.failed.of]
    if unmet:
        parts = "; ".join(
            f"{each.name}, {each.failed.of - each.met.of:,} of {each.failed.of:,} (without them "
            f"{each.met.count:,} of {each.met.of:,} failed)"
            for each in unmet
        )
        notes.append(
            "A fault that nothing met before the end of the mission counts as a hit. Missions with "
            f"such a fault: {parts}."
        )
    excluded = []
    for each in strata:
        missions = each.failed.of + each.excluded
        if each.alike is None and missions and each.excluded / missions > MANY_EXCLUDED:
            excluded.append(
                f"{each.name}: {each.excluded:,} of {missions:,} missions "
                f"({percent(each.excluded / missions)}) were no trial, because the fault was not "
                "confirmed to act. They do not count as masked."
            )
    if excluded:
        notes += excluded
        notes += [
            f"If every such mission had gone against it, the verdict on the voter"
            f"{' with repair on' if group.repair else ''} would be: {worst_case_verdict(group)}."
            for group in groups
        ]
    place = {"guest": "in each guest (C1)", "host": "once on the host, as F (C2)"}.get(
        source.store.spec.station.function
    )
    if place:
        notes.append(
            f"Requests pass a function f {place}. A guest whose f fails counts as a failed guest, "
            "so that R_M here is R_f R_M' in C1 and R_M' in C2. `trivisor campaign moved GUEST "
            "HOST` compares both sides of Inequality (3)."
        )
    if source.store.plan.extended:
        notes.append(
            "The campaign was extended once, as its file allowed beforehand; each of the two "
            "analyses uses half of alpha."
        )
    if observed.sampled:
        notes.append(
            f"Latencies, times, and the last three columns by kind of fault are from the first "
            f"{observed.rows:,} missions of the random order; proportions are from all missions."
        )
    return notes

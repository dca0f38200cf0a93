"""A campaign's directory to its findings: asks the store, hands counts to the estimators."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from faultinject.campaign.planning.plan import LIARS
from faultinject.campaign.planning.spec import FORCED, Spec
from faultinject.campaign.store.store import Store
from faultinject.campaign.store.tally import Tally
from faultinject.report.counting import Source, share_of
from faultinject.report.formatting import percent
from faultinject.report.mission_findings import (
    CHORUS,
    Observation,
    find_effects,
    find_kinds,
    find_latencies,
    find_speeds,
    look,
)
from faultinject.report.model_findings import (
    find_breaks,
    find_doses,
    find_shared,
    find_shots,
    model_verdicts,
)
from faultinject.report.nodes import design_verdicts, find_nodes
from faultinject.report.strata import Side, find_sides, find_strata
from faultinject.report.voter_verdicts import (
    points_verdict,
    silence_verdict,
    voter_verdict,
    worst_case,
)
from faultinject.results.findings import (
    Findings,
    Head,
    Share,
    Silence,
    StratumFinding,
    VerdictFinding,
)
from voter.core.vote import Policy

__all__ = ["gather"]

MANY_VOID = 0.01
WRONG = LIARS | {"function-admit", "function-refuse"}
"""Hits after which a guest answers, and wrongly."""
DRAWN_WITH = ("matplotlib", "scipy", "jinja2")


def gather(directory: Path) -> Findings:
    """Read the campaign in ``directory``, which may be running.  Raises StoreError."""
    with Store.open(directory, write=False) as store:
        m, n = (int(each) for each in store.spec.station.vote.split("/"))
        prefix = store.prefix() if store.partial else None
        return _findings(Source(store=store, prefix=prefix, alpha=store.spec.alpha_look, m=m, n=n))


def _findings(source: Source) -> Findings:
    found = look(source)
    sides, strata = find_sides(source), find_strata(source)
    points = tuple(point for side in sides for point in side.points())
    doses, shots, nodes = find_doses(source), find_shots(source), find_nodes(source)
    silence = _silence(source, found)
    voter = [
        verdict
        for side in sides
        for verdict in (voter_verdict(side), points_verdict(points, repair=side.repair))
        if verdict
    ]
    voter += design_verdicts(nodes)
    model = list(model_verdicts(doses, shots))
    first = voter + model if source.store.spec.question in FORCED else model + voter
    verdicts: list[VerdictFinding] = [*first, silence_verdict(silence)]
    # What is alarming is read first, whatever was asked.
    verdicts.sort(key=lambda each: each.tone != "alarm")
    return Findings(
        head=_head(source, found),
        verdicts=tuple(verdicts),
        strata=strata,
        kinds=find_kinds(source, found),
        silence=silence,
        crossing={
            kind: f"{judged.crossing.words[:1].upper()}{judged.crossing.words[1:]}."
            for kind, (_, judged) in doses.items() if judged.crossing
        },
        curves=tuple(side.curve() for side in sides),
        points=points,
        reach=tuple(each for side in sides for each in side.reach()),
        widths=sides[0].widths() if sides else (),
        nodes=nodes,
        doses=tuple(dose for each, _ in doses.values() for dose in each) + find_shared(source),
        shots=tuple(shot for shot, _ in shots),
        breaks=find_breaks(source),
        latencies=find_latencies(source, found, strata),
        speeds=find_speeds(found),
        idle_timeouts=_idle(source),
        effects=find_effects(source),
        notes=tuple(_notes(source, found, sides, strata)),
    )  # fmt: skip


def _silence(source: Source, found: Observation) -> Silence:
    """Over all missions there are, also those after the prefix: not one may be left out."""
    every = source.store.tallies(
        "stratum", "k", "voter_hit", "kind", "shot", "alike", design="voted"
    )
    wrong = {key[1:]: 0 for key in every}
    promised = uncompared = 0
    votes = {cell.name: cell.vote for cell in source.cells()}
    for (stratum, *key), tally in every.items():
        wrong[tuple(key)] += tally.silent
        k, voter_hit, kind, _, alike = key
        vote = votes[stratum]
        policy = Policy.parse(vote) if vote else Policy(source.m, source.n)
        if kind or voter_hit:
            continue
        if policy.need == 1 and k:
            uncompared += 0 if alike else tally.silent
        elif k <= policy.of - policy.need:
            promised += tally.silent
    total = sum(every.values(), Tally())
    return Silence(
        share=share_of(total.silent, total.trials, source.alpha),
        alike=sum(
            count for (_, _, kind, _, alike), count in wrong.items() if alike or kind in CHORUS
        ),
        struck=sum(
            count for (_, _, kind, shot, _), count in wrong.items() if shot and kind not in CHORUS
        ),
        promised=promised,
        uncompared=uncompared,
        listed=tuple(sorted(found.silent, key=lambda each: each.arranged)),
    )  # fmt: skip


def _idle(source: Source) -> Share | None:
    """Missions with nothing hit that timed out: a busy host taken for a fault."""
    idle = [
        cell.name
        for cell in source.cells()
        if not cell.shot
        and (not cell.dose if cell.kind else not cell.failing_guests and not cell.layer_hit)
    ]
    if not idle:
        return None
    tally = source.tally(stratum=idle)
    return share_of(tally.timeout, tally.trials, source.alpha)


def _lying(spec: Spec) -> float:
    """Of guests and of f in them, whichever are hit; where both are, the larger part."""
    mixes = (
        (spec.faults, any(each.guests_hit for each in spec.strata)),
        (spec.function_faults, any(each.function_hit for each in spec.strata)),
    )
    return max((_wrong(mix) for mix, used in mixes if used), default=0.0)


def _wrong(faults: Mapping[str, float]) -> float:
    total = sum(faults.values())
    return sum(weight for kind, weight in faults.items() if kind in WRONG) / total if total else 0.0


def _head(source: Source, found: Observation) -> Head:
    store, meta = source.store, source.store.meta()
    all_of_it = source.tally()
    began = [each.began for each in meta.runs] or [meta.created]
    ends = [began + sum(parts) for _, began, parts in found.times]
    ends += [each.ended for each in meta.runs if each.ended]
    facts = dict.fromkeys(meta.facts.values())  # a run that went on elsewhere, or later, has others
    return Head(
        title=meta.title,
        question=store.spec.question,
        planned=store.total,
        done=store.done,
        used=store.total if source.prefix is None else source.prefix,
        void=all_of_it.void,
        trials=all_of_it.trials,
        seed=meta.seed,
        confidence=1 - source.alpha,
        service=store.spec.station.service,
        lying=_lying(store.spec),
        requests=store.spec.workload.length,
        m=source.m,
        n=source.n,
        workers=max((each.workers for each in meta.runs), default=0),
        began=min(began),
        ended=max(ends, default=max(began)),
        spec=meta.spec_text,
        spec_hash=meta.spec_hash,
        facts=tuple(facts),
        versions=(*sorted(meta.versions.items()), *_versions()),
        directory=store.directory.resolve().name,
    )


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in DRAWN_WITH:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:  # it is there, or nothing would be drawn, but unpackaged
            found.append((name, "of unknown version"))
    return found


def _notes(
    source: Source, found: Observation, sides: tuple[Side, ...], strata: tuple[StratumFinding, ...]
) -> list[str]:
    notes = []
    for each in strata:
        missions = each.trials + each.void
        if each.alike is None and missions and each.void / missions > MANY_VOID:
            notes.append(
                f"{each.name}: {each.void:,} of {missions:,} missions "
                f"({percent(each.void / missions)}) were no trial, because the fault was not "
                "proved to act. They are not counted as masked."
            )
    if notes:
        notes += [
            f"Had every such mission gone against it, the verdict on the voter"
            f"{' with repair on' if side.repair else ''} would be: {worst_case(side)}."
            for side in sides
        ]
    place = {"guest": "in each guest (C1)", "host": "once on the host, F (C2)"}.get(
        source.store.spec.station.function
    )
    if place:
        notes.append(
            f"Requests pass a function f {place}: a guest whose f fails counts as a guest that "
            "fails, so that R_M here is R_f R_M' in C1 and R_M' in C2. `trivisor campaign moved "
            "GUEST HOST` holds both sides of Inequality (3) against each other."
        )
    if source.store.plan.extended:
        notes.append(
            "The campaign was extended once, as its file allowed beforehand: each of the two "
            "looks at the data is at half of alpha."
        )
    if found.sampled:
        notes.append(
            f"Latencies, times, and the last three columns by kind of fault are from the first "
            f"{found.rows:,} missions of the random order; all shares are from all."
        )
    return notes

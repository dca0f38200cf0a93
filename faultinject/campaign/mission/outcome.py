"""What a mission came to.  Pure.

``classify``: of what became of its requests the worst wins, silent > voter lost > detected >
timeout > correct.  ``standing`` says of what stratum a mission is a trial when a fault did not
take effect, by a rule that was there before the data:

- all faults applied: of its own stratum;
- a fault that comes when an earlier applied one has felled its target already is moot: it counts
  as applied;
- a fault that was not seen to be applied, but whose target failed (the voter: was lost; F: the
  mission failed), may have acted all the same: no trial of anything;
- of a stratum's faults some were applied and some were not: a trial of the stratum of the same
  vote with as many guests hit, and as many hit in f (and the voter, and F, hit or not), as there
  were, if the plan has it;
- else, and where a fault of a dose or a shot was not applied: no trial.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from faultinject.campaign.planning.plan import Cell
from faultinject.campaign.records import GuestFate, HitResult, MissionPlan, Outcome
from faultinject.faults import FaultLayer, Injection, find
from voter.core.events import Failure

__all__ = [
    "NO_VERDICT",
    "ClassifiedMission",
    "StratumAssignment",
    "MissionVerdict",
    "classify",
    "standing",
]

NO_VERDICT = "no verdict in time"
"""What a mission says of a request that nobody answered within its deadline."""
CONNECTION = "connection"
_TIMEOUTS = frozenset({Failure.TIMEOUT, NO_VERDICT})
_ORDER = list(Outcome)  # falling badness


class ClassifiedMission(msgspec.Struct, frozen=True, kw_only=True):
    """One request.  ``right``: whether its reply was the oracle's, None without a reply;
    ``failure``: then the client's code; ``dissent``: bit mask of replicas that said something else;
    ``words``: what is wrong, for people.
    """

    right: bool | None
    failure: str = ""
    dissent: int = 0
    words: str = ""


class MissionVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a mission came to; the fields of ``trial.Row`` by the same names."""

    outcome: Outcome
    words: str
    correct: int
    wrong: int
    refused: int
    unanswered: int
    masked: int


class StratumAssignment(msgspec.Struct, frozen=True, kw_only=True):
    """Of what stratum a mission is a trial; of none if ``void`` says why not."""

    stratum: str
    void: str = ""


def _class_of(request: ClassifiedMission, *, voter_alive: bool) -> Outcome:
    if request.right is not None:
        return Outcome.CORRECT if request.right else Outcome.SILENT
    if request.failure in _TIMEOUTS:
        return Outcome.TIMEOUT
    if request.failure == CONNECTION:
        # Nobody said anything: like a timeout, unless it was the voter's end.
        return Outcome.TIMEOUT if voter_alive else Outcome.VOTER_LOST
    return Outcome.DETECTED


def classify(requests: Sequence[ClassifiedMission], *, voter_alive: bool) -> MissionVerdict:
    """Return the worst of what became of a mission's requests.

    ``voter_alive``: at the mission's end the voter still answered on its control socket (the plain
    design has none: True).  One that does not is lost even if all replies came and were right.
    """
    classes = [_class_of(request, voter_alive=voter_alive) for request in requests]
    worst = min(classes, key=_ORDER.index, default=Outcome.CORRECT)
    words = ""
    if not voter_alive and worst is not Outcome.SILENT:
        worst, words = Outcome.VOTER_LOST, "the voter does not speak any more"
    for number, (request, kind) in enumerate(zip(requests, classes, strict=True)):
        if kind is worst and kind.failed:
            words = f"request {number}: {request.words or request.failure or 'a wrong reply'}"
            break
    return MissionVerdict(
        outcome=worst,
        words=words,
        correct=classes.count(Outcome.CORRECT),
        wrong=classes.count(Outcome.SILENT),
        refused=classes.count(Outcome.DETECTED),
        unanswered=classes.count(Outcome.TIMEOUT) + classes.count(Outcome.VOTER_LOST),
        masked=sum(1 for request in requests if request.right and request.dissent),
    )


def _effective(
    plan: MissionPlan, results: Sequence[HitResult], fates: Sequence[GuestFate]
) -> list[tuple[Injection, bool]]:
    """Return each planned hit and whether it took effect, moot ones included."""
    felled = {fate.name for fate in fates if fate.failed}
    struck: set[str] = set()
    told: list[tuple[Injection, bool]] = []
    for number, hit in enumerate(plan.hits):
        applied = number < len(results) and results[number].applied
        moot = hit.target in struck and hit.target in felled
        if applied:
            struck.add(hit.target)
        told.append((hit, applied or moot))
    return told


def standing(
    plan: MissionPlan,
    results: Sequence[HitResult],
    fates: Sequence[GuestFate],
    cells: Sequence[Cell],
    outcome: Outcome = Outcome.CORRECT,
) -> StratumAssignment:
    """Say of what stratum a mission is a trial (the rule: above).

    ``results`` are in the plan's order; a hit without one was not applied.  ``outcome``: what the
    mission came to.
    """
    effective = _effective(plan, results, fates)
    missed = [hit for hit, effect in effective if not effect]
    if not missed:
        return StratumAssignment(stratum=plan.stratum)
    words = f"{missed[0].kind} was not applied to {missed[0].target}"
    felled = {fate.name for fate in fates if fate.failed}
    felled |= {"voter"} if outcome is Outcome.VOTER_LOST else set()
    felled |= {"function"} if outcome.failed else set()
    doubtful = [hit for hit in missed if hit.target in felled]
    if doubtful:
        first = doubtful[0]
        words = f"{first.kind} was not seen to be applied to {first.target}, which failed"
        return StratumAssignment(stratum=plan.stratum, void=words)
    own = next(cell for cell in cells if cell.name == plan.stratum)
    if len(missed) == len(effective) or not own.forced:
        return StratumAssignment(stratum=plan.stratum, void=words)
    took = {hit.target for hit, effect in effective if effect}
    in_f = {
        h.target for h, effect in effective if effect and find(h.kind).layer is FaultLayer.FUNCTION
    }
    guests = took - in_f - {"voter", "function"}
    struck = (len(guests), len(in_f), "voter" in took, "function" in took)
    for cell in cells:
        alike = (cell.design, cell.repair, cell.vote) == (own.design, own.repair, own.vote)
        hit = (cell.k, cell.function_k, cell.voter_hit, cell.host_function_hit)
        if alike and cell.forced and hit == struck:
            return StratumAssignment(stratum=cell.name)
    return StratumAssignment(
        stratum=plan.stratum, void=f"{words}, and the plan has no stratum without it"
    )

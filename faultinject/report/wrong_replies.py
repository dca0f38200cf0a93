"""Wrong replies: which the vote should have masked, and which a client would believe."""

from __future__ import annotations

from collections.abc import Sequence

from faultinject.campaign.assessment import AssessedMission
from faultinject.campaign.planning.plan import Cell
from faultinject.campaign.records import MissionPlan
from faultinject.campaign.store.tally import Tally
from faultinject.report.formatting import TIMES, percent
from faultinject.report.source import Source
from faultinject.results.findings import (
    VerdictFinding,
    WrongReplies,
    WrongReply,
    WrongReplyCounts,
)
from faultinject.results.outcome import Outcome

__all__ = [
    "describe_belief", "find_wrong_replies", "is_covered", "wrong_replies_verdicts",
    "wrong_reply_of",
]  # fmt: skip

ARRANGED = frozenset({"poison"})
"""Common causes after which all guests return the same bytes, chosen by the injector."""
COVERED = (
    "No more guests were hit than the vote tolerates (1 of n compares nothing, so it tolerates no "
    "wrong guest), and F was not hit."
)


def is_covered(source: Source, cell: Cell) -> bool:
    """Return whether the vote should mask every wrong reply in missions of this cell."""
    if cell.design != "voted" or cell.host_function_hit:
        return False
    if not cell.forced:
        return not cell.dose and not cell.common_cause
    policy = source.policy(cell.vote)
    return cell.failing_guests <= (policy.of - policy.need if policy.need > 1 else 0)


def wrong_reply_of(
    mission: MissionPlan, row: AssessedMission, outcome: Outcome, *, covered: bool
) -> WrongReply:
    """Return a mission with a wrong reply, as the page lists it."""
    hits = ", ".join(f"{hit.target} {hit.kind}" for hit in mission.injections) or "nothing"
    lies = {True: " (equal lies)", False: " (different lies)", None: ""}[mission.alike]
    return WrongReply(
        mission=row.index, stratum=row.stratum, hits=hits + lies, event=row.problem,
        outcome=outcome, covered=covered,
        arranged=bool(mission.alike) or any(hit.kind in ARRANGED for hit in mission.injections),
    )  # fmt: skip


def find_wrong_replies(source: Source, listed: Sequence[WrongReply]) -> WrongReplies:
    """Classify wrong replies over all missions, including those after the used prefix.

    A mission is no trial if its fault was not confirmed.  It counts all the same where the vote
    should have masked even the planned faults, and a wrong reply was released.
    """
    every = source.store.tallies("stratum", "alike", design="voted")
    cells = {cell.name: cell for cell in source.cells()}
    covered = Tally()
    arranged = common = uncompared = 0
    for (stratum, alike), tally in every.items():
        cell = cells[str(stratum)]
        if is_covered(source, cell):
            covered += tally
        elif alike or cell.kind in ARRANGED:
            arranged += tally.wrong_replies
        elif cell.common_cause:
            common += tally.wrong_replies
        elif source.policy(cell.vote).need == 1 and not cell.host_target_hit:
            uncompared += tally.wrong_replies
    total = sum(every.values(), Tally())
    no_trials = sum(
        tally.excluded
        for (planned, outcome), tally in source.store.tallies(
            "planned", "requests_outcome", design="voted"
        ).items()
        if outcome is not None and Outcome(str(outcome)).is_wrong_reply
        and is_covered(source, cells[str(planned)])
    )  # fmt: skip
    plain = sum(source.store.tallies(design="nv").values(), Tally())
    return WrongReplies(
        share=source.proportion(total.wrong_replies + no_trials, total.trials + no_trials),
        covered=source.proportion(covered.wrong_replies + no_trials, covered.trials + no_trials),
        beyond=source.proportion(
            total.wrong_replies - covered.wrong_replies, total.trials - covered.trials
        ),
        arranged=arranged, uncompared=uncompared, common_cause=common,
        voted=source.wrong_replies(total, design="voted"),
        plain=source.wrong_replies(plain, design="nv"),
        listed=tuple(sorted(listed, key=lambda each: (not each.covered, each.arranged))),
    )  # fmt: skip


def wrong_replies_verdicts(found: WrongReplies) -> list[VerdictFinding]:
    """State the wrong replies that the vote should have masked (there must be none), and then those
    that no vote can mask.
    """
    covered = found.covered
    verdicts = []
    if covered.count:
        verdicts.append(VerdictFinding(
            about="wrong replies", tone="alarm", tests="voter",
            answer=f"The voter released a wrong reply in {covered.count:,} of {covered.of:,} "
            "missions in which the vote should have masked it.",
            detail=f"{COVERED} This is a defect of the voter.",
        ))  # fmt: skip
    elif covered.of:
        verdicts.append(VerdictFinding(
            about="wrong replies", tone="good", tests="voter",
            answer=f"No wrong reply was released in the {covered.of:,} missions in which the vote "
            "should mask it.",
            detail=f"{COVERED} Under this mix of faults, the upper confidence limit is "
            f"{percent(covered.high)} of these missions.",
        ))  # fmt: skip
    beyond = found.beyond
    if beyond.count:
        verdicts.append(VerdictFinding(
            about="wrong replies", tone="expected", tests="voter",
            answer=f"Where more was hit than a vote can mask, a wrong reply was released in "
            f"{beyond.count:,} of {beyond.of:,} missions ({percent(beyond.count / beyond.of)}).",
            detail=f"{describe_belief(found.voted)} {explain_wrong_replies(found)}",
        ))  # fmt: skip
    elif beyond.of:
        verdicts.append(VerdictFinding(
            about="wrong replies", tone="good", tests="voter",
            answer=f"No wrong reply was released in the {beyond.of:,} missions in which more was "
            "hit than a vote can mask.",
            detail="More guests were hit than the vote tolerates, or F was. Under this mix of "
            f"faults, the upper confidence limit is {percent(beyond.high)} of these missions.",
        ))  # fmt: skip
    if found.plain.missions:
        wrong = found.plain.silent + found.plain.unclear + found.plain.declared
        verdicts.append(VerdictFinding(
            about="wrong replies", tone="expected" if wrong else "open", tests="voter",
            answer=f"Without a voter, one guest gave a wrong reply in {wrong:,} of "
            f"{found.plain.missions:,} missions.",
            detail=describe_belief(found.plain) or "So these missions say nothing about what the "
            "vote masks.",
        ))  # fmt: skip
    return verdicts


def describe_belief(found: WrongReplyCounts) -> str:
    """State how many of the wrong replies a client would believe; "" without any."""
    wrong = found.silent + found.unclear + found.declared
    if not wrong:
        return ""
    unclear = (
        f", in {found.unclear:,} the first wrong reply declares an error and the later ones were "
        "not kept" if found.unclear else ""
    )  # fmt: skip
    statuses = ", ".join(
        f"{count:,} {TIMES} {status if status != '0' else 'no readable status'}"
        for status, count in sorted(found.statuses.items())
    )
    return (
        f"In {found.silent:,} of these {wrong:,} a client would believe it (silent corruption), in "
        f"{found.declared:,} it declares an error{unclear}. By status: {statuses}."
    )


def explain_wrong_replies(found: WrongReplies) -> str:
    """State why no vote can mask the wrong replies that are not covered."""
    beyond = found.beyond.count
    rest = beyond - (found.arranged + found.common_cause + found.uncompared)
    parts = (
        (found.arranged, "the injector made a majority of guests return the same wrong bytes, "
         "which no vote can detect: by equal lies, or a poison request to a bug in every guest."),
        (found.uncompared, "the vote was 1 of n, which compares nothing and releases the first "
         "reply."),
        (found.common_cause, "one event hit all guests, and a majority returned the same wrong "
         "bytes without any arrangement."),
        (rest, "more guests were hit than the vote tolerates, or F was hit. Equal wrong replies "
         "were not arranged."),
    )  # fmt: skip
    return " ".join(
        f"In {'all' if count == beyond else f'{count:,}'} of them {text}"
        for count, text in parts if count
    )  # fmt: skip

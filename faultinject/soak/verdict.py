"""Judge a soak: the promises about replies, faults, the final state, and rounds.  Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from faultinject.soak.checkpoints import CheckpointAudit
from faultinject.soak.load import TIMEOUT, Load
from faultinject.soak.plan import GUESTS
from faultinject.soak.record import InjectedFault, Promise, RoundRecord, RoundSummary
from faultinject.soak.round_plan import MARKERS
from faultinject.soak.view import View
from faultinject.soak.voter_log import Detector

__all__ = [
    "corrupt_restores", "judge_end", "judge_faults", "judge_replies", "judge_rounds",
    "summarize_rounds",
]  # fmt: skip

OVERLAP_SHARE = 0.25
"""Least share of the faults that must be injected while a repair or a transfer is in progress."""
NEAR = 0.05
"""Seconds around the detection within which a kill counts as simultaneous."""


def _promise(promise: str, held: bool, seen: str, *complaints: str) -> Promise:
    return Promise(promise=promise, held=held, seen="; ".join([seen, *complaints[:3]]))


def judge_replies(load: Load) -> list[Promise]:
    """Judge the replies that clients got."""
    oracle, counters = load.oracle, load.counters
    longest = max(load.latencies, default=0.0)
    return [
        _promise(
            "no acknowledged write lost",
            not counters.lost and not oracle.wrong,
            f"{counters.increments} increments acknowledged, {counters.lost} lost; every key read "
            "back",
            *counters.complaints,
        ),
        _promise(
            "none applied twice",
            not counters.twice and not oracle.wrong,
            f"{counters.twice} twice; {load.replayed} replies were replayed to a client that had "
            "not received them",
            *counters.complaints,
        ),
        _promise(
            "no wrong reply",
            not oracle.wrong and oracle.correct > 0,
            f"{oracle.correct} correct byte for byte in the voter's order, {oracle.wrong} wrong; "
            f"{oracle.unknown} writes of unknown outcome, {oracle.found} proved executed",
            *oracle.complaints,
        ),
        _promise(
            "the order is one, and that of real time",
            not oracle.misplaced and not counters.back,
            f"{oracle.misplaced} at a wrong place, {counters.back} reads that went back",
            *oracle.complaints,
        ),
        _promise(
            "every request answered",
            not load.errors and len(load.latencies) > 0,
            f"{len(load.latencies)} of {load.requests}, the longest wait {longest:.2f} s "
            f"(timeout {TIMEOUT:g} s)",
            *load.messages,
        ),
    ]


def judge_faults(
    faults: Sequence[InjectedFault], failed: Sequence[str], *, planned: int, overlap: bool
) -> list[Promise]:
    """Judge whether all planned faults were applied, and (``overlap``) enough during repairs."""
    applied = len(faults)
    promises = [
        _promise(
            "every fault applied, and proved applied",
            applied == planned and not failed,
            f"{applied} of {planned}",
            *failed,
        )
    ]
    if overlap:
        overlapped = sum(fault.overlapped for fault in faults)
        promises.append(
            _promise(
                "a quarter of them during a repair or a transfer",
                overlapped >= OVERLAP_SHARE * planned,
                f"{overlapped} of {applied}",
            )
        )
    return promises


def judge_end(view: View, markers: int, failure: str) -> list[Promise]:
    """Judge the node at the end.  ``failure``: why it did not recover, if it did not."""
    return [
        _promise(
            "three replicas vote at the end",
            view.recovered and len(view.guests) == len(GUESTS) and not failure,
            ", ".join(f"{name} {guest}" for name, guest in view.guests.items()),
            *filter(None, [failure]),
        ),
        _promise(
            "their digests are equal",
            view.recovered and markers >= MARKERS,
            f"{markers} markers after the last fault, each reported by all that vote before the "
            "next one came; nobody was expelled",
        ),
    ]


def corrupt_restores(one: RoundRecord) -> list[str]:
    """Describe what shows that a corrupted state was restored in a round; empty if nothing does.

    A corrupted value in a guest that it was never injected into can only come from a restore.  In
    its own guest a copy may be left in memory that a forked process once used.  The digests at the
    markers then decide, because the service computes them from the stored bytes.
    """
    found = [
        f"round {one.number}: {guest} holds {memory.foreign} corrupted values of other guests"
        for guest, memory in one.memory.items()
        if memory.foreign
    ]
    if one.markers < MARKERS:
        found += [
            f"round {one.number}: {guest} holds {memory.own_live} corrupted values in use, and "
            f"only {one.markers} of {MARKERS} markers passed"
            for guest, memory in one.memory.items()
            if memory.own_live
        ]
    if not one.read_back:
        found.append(f"round {one.number}: {one.key} or an earlier key has another value")
    return found


def judge_rounds(rounds: Sequence[RoundRecord], audit: CheckpointAudit) -> list[Promise]:
    """Judge whether corrupted states were detected, and neither released nor restored."""
    unnoticed = [
        f"round {one.number}: {one.noticed_by}"
        for one in rounds
        if one.noticed_by in (Detector.NOTHING, Detector.REPLACED)
    ]
    nothing = sum(one.noticed_by == Detector.NOTHING for one in rounds)
    restores = [text for one in rounds for text in corrupt_restores(one)]
    late = [f"round {one.number}: {one.markers}" for one in rounds if one.markers < MARKERS]
    released = sum(one.wrong for one in rounds)
    return [
        _promise(
            "every corruption noticed",
            bool(rounds) and not nothing,
            f"{len(rounds) - nothing} of {len(rounds)}",
            *unnoticed,
        ),
        _promise(
            "no corrupted value released",
            bool(rounds) and not released,
            f"{released} wrong replies in {len(rounds)} rounds",
        ),
        _promise(
            "no corrupted state restored",
            bool(rounds) and not restores,
            f"{len(restores)} signs of one in the memory of the guests and in what was read back, "
            f"{len(rounds)} rounds",
            *restores,
        ),
        _promise(
            "every checkpoint holds the right state",
            audit.compared > 0 and not audit.wrong,
            f"{audit.compared - audit.wrong} of {audit.compared} checkpoint files equal the "
            "model's state byte for byte",
            *audit.complaints,
        ),
        _promise(
            "the digests are equal after every round",
            bool(rounds) and not late,
            f"{MARKERS} markers in {len(rounds) - len(late)} of {len(rounds)}",
            *late,
        ),
    ]


def summarize_rounds(rounds: Sequence[RoundRecord], audit: CheckpointAudit) -> RoundSummary:
    """Return the totals of all rounds."""
    after = [one.noticed_after for one in rounds if one.noticed_after is not None]
    return RoundSummary(
        rounds=len(rounds),
        proven=sum(bool(one.corruption) for one in rounds),
        noticed=dict(Counter(one.noticed_by for one in rounds).most_common()),
        unnoticed_median=round(median(after), 3) if after else None,
        unnoticed_longest=max(after, default=None),
        wrong=sum(one.wrong for one in rounds),
        restored=audit.wrong + sum(bool(corrupt_restores(one)) for one in rounds),
        checkpoints=audit.compared,
        interrupted=sum(one.interrupted for one in rounds),
        kills=dict(Counter(_when(one) for one in rounds)),
    )


def _when(one: RoundRecord) -> str:
    """Classify the voter's kill by its time relative to the detection."""
    if one.noticed_after is None:
        return "never noticed"
    late = one.offset - one.noticed_after
    if abs(late) <= NEAR:
        return f"within {NEAR * 1e3:.0f} ms of the notice"
    return "before the notice" if late < 0 else "after the notice"

"""Verdicts on the rounds: the promises about corrupted states, and the totals.  Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from faultinject.soak.detection import Detector
from faultinject.soak.record import Promise, RoundRecord, RoundSummary
from faultinject.soak.together import MARKERS

__all__ = ["corrupt_restores", "judge_rounds", "summarize_rounds"]

NEAR = 0.05
"""Seconds around the moment of notice."""


def corrupt_restores(one: RoundRecord) -> list[str]:
    """Return what shows that a corrupted state was restored in a round, in words.

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


def judge_rounds(
    rounds: Sequence[RoundRecord], *, compared: int, wrong: int, complaints: Sequence[str]
) -> list[Promise]:
    """Return the promises about corrupted states.

    ``compared``, ``wrong`` and ``complaints`` are of the audit of the checkpoints.
    """
    unnoticed = [
        f"round {one.number}: {one.noticed_by}"
        for one in rounds
        if one.noticed_by in (Detector.NOTHING, Detector.REPLACED)
    ]
    nothing = sum(one.noticed_by == Detector.NOTHING for one in rounds)
    restores = [words for one in rounds for words in corrupt_restores(one)]
    late = [f"round {one.number}: {one.markers}" for one in rounds if one.markers < MARKERS]
    released = sum(one.wrong for one in rounds)
    return [
        Promise(
            promise="every corruption noticed",
            held=bool(rounds) and not nothing,
            seen="; ".join([f"{len(rounds) - nothing} of {len(rounds)}", *unnoticed[:3]]),
        ),
        Promise(
            promise="no corrupted value released",
            held=bool(rounds) and not released,
            seen=f"{released} wrong replies in {len(rounds)} rounds",
        ),
        Promise(
            promise="no corrupted state restored",
            held=bool(rounds) and not restores,
            seen="; ".join(
                [
                    f"{len(restores)} signs of one in the memory of the guests and in what was "
                    f"read back, {len(rounds)} rounds",
                    *restores[:3],
                ]
            ),
        ),
        Promise(
            promise="every checkpoint holds the right state",
            held=compared > 0 and not wrong,
            seen="; ".join(
                [
                    f"{compared - wrong} of {compared} checkpoint files equal the oracle's state "
                    "byte for byte",
                    *complaints[:3],
                ]
            ),
        ),
        Promise(
            promise="the digests are equal after every round",
            held=bool(rounds) and not late,
            seen="; ".join(
                [f"{MARKERS} markers in {len(rounds) - len(late)} of {len(rounds)}", *late[:3]]
            ),
        ),
    ]


def summarize_rounds(rounds: Sequence[RoundRecord], *, compared: int, wrong: int) -> RoundSummary:
    """Return the totals; ``compared`` and ``wrong`` are of the audit of the checkpoints."""
    after = [one.noticed_after for one in rounds if one.noticed_after is not None]
    return RoundSummary(
        rounds=len(rounds),
        proven=sum(bool(one.corruption) for one in rounds),
        noticed=dict(Counter(one.noticed_by for one in rounds).most_common()),
        unnoticed_median=round(median(after), 3) if after else None,
        unnoticed_longest=max(after, default=None),
        wrong=sum(one.wrong for one in rounds),
        restored=wrong + sum(bool(corrupt_restores(one)) for one in rounds),
        checkpoints=compared,
        interrupted=sum(one.interrupted for one in rounds),
        kills=dict(Counter(_when(one) for one in rounds)),
    )


def _when(one: RoundRecord) -> str:
    """Say when the voter was killed, compared with the moment of notice."""
    if one.noticed_after is None:
        return "never noticed"
    late = one.offset - one.noticed_after
    if abs(late) <= NEAR:
        return f"within {NEAR * 1e3:.0f} ms of the notice"
    return "before the notice" if late < 0 else "after the notice"

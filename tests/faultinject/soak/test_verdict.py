"""Rounds are judged: what shows a corrupted restore, what stayed unnoticed, and the totals."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from faultinject.soak.checkpoints import CheckpointAudit
from faultinject.soak.guest_memory import MemoryMatches
from faultinject.soak.record import RoundRecord, append_round
from faultinject.soak.verdict import corrupt_restores, judge_rounds, summarize_rounds
from faultinject.soak.voter_log import Detector

CLEAN = MemoryMatches(right=1, foreign=0, own=0, own_live=0)
RIGHT = RoundRecord(
    number=1, guest="g1", key="held-1", trigger="clients read the value", lead=0.0,
    planned_offset=0.1, offset=0.1, corruption="flipped", kill="gone", interrupted=False,
    noticed_by=Detector.DISSENT, noticed_after=0.02, noticed_as="", timeline=[], wrong=0,
    read_back=True, markers=2, checkpoints=1,
    memory=dict.fromkeys(("g1", "g2", "g3"), CLEAN), recovered_after=1.0, longest_pause=0.5,
)  # fmt: skip


def audited(compared: int, wrong: int) -> CheckpointAudit:
    audit = CheckpointAudit(Path("unused"))
    audit.compared, audit.wrong = compared, wrong
    return audit


def with_memory(guest: str, found: MemoryMatches, markers: int = 2) -> RoundRecord:
    memory = RIGHT.memory | {guest: found}
    return msgspec.structs.replace(RIGHT, memory=memory, markers=markers)


def broken(*rounds: RoundRecord, compared: int = 1, wrong: int = 0) -> set[str]:
    """Return the promises that these rounds break."""
    judged = judge_rounds(rounds, audited(compared, wrong))
    return {promise.promise for promise in judged if not promise.held}


def test_right_rounds_break_no_promise() -> None:
    assert broken(RIGHT, RIGHT) == set()


def test_corrupted_value_in_another_guest_shows_a_corrupted_restore() -> None:
    spread = with_memory("g2", MemoryMatches(right=1, foreign=1, own=0, own_live=0))
    assert "g2 holds 1 corrupted values" in corrupt_restores(spread)[0]
    assert broken(RIGHT, spread) == {"no corrupted state restored"}


def test_copy_left_in_the_corrupted_guest_counts_only_without_the_markers() -> None:
    left = MemoryMatches(right=1, foreign=0, own=1, own_live=1)
    assert corrupt_restores(with_memory("g1", left)) == []
    assert corrupt_restores(with_memory("g1", left, markers=1)) != []


def test_wrong_value_read_back_shows_a_corrupted_restore() -> None:
    assert broken(msgspec.structs.replace(RIGHT, read_back=False)) == {
        "no corrupted state restored"
    }


def test_each_other_promise_is_broken_by_its_own_finding() -> None:
    unnoticed = msgspec.structs.replace(RIGHT, noticed_by=Detector.NOTHING, noticed_after=None)
    assert broken(unnoticed) == {"every corruption noticed"}
    assert broken(msgspec.structs.replace(RIGHT, wrong=1)) == {"no corrupted value released"}
    assert broken(RIGHT, wrong=1) == {"every checkpoint holds the right state"}
    assert broken(RIGHT, compared=0) == {"every checkpoint holds the right state"}
    assert broken(msgspec.structs.replace(RIGHT, markers=1)) == {
        "the digests are equal after every round"
    }


def test_no_rounds_hold_no_promise() -> None:
    assert len(broken(compared=0)) == 5


def test_summary_counts_detectors_and_times_and_places_the_kills() -> None:
    rounds = [
        RIGHT,  # killed 80 ms after the notice
        msgspec.structs.replace(RIGHT, noticed_after=0.12, interrupted=True),
        msgspec.structs.replace(RIGHT, noticed_by=Detector.DIGEST, noticed_after=3.0),
    ]
    summary = summarize_rounds(rounds, audited(4, 0))
    assert summary.noticed == {"dissent": 2, "digest": 1}
    assert (summary.unnoticed_median, summary.unnoticed_longest) == (0.12, 3.0)
    assert (summary.rounds, summary.proven, summary.wrong, summary.restored) == (3, 3, 0, 0)
    assert summary.interrupted == 1
    assert summary.kills == {
        "after the notice": 1, "within 50 ms of the notice": 1, "before the notice": 1,
    }  # fmt: skip


def test_rounds_are_appended_as_lines_that_can_be_read_again(scratch: Path) -> None:
    path = scratch / "rounds.jsonl"
    append_round(RIGHT, path)
    append_round(msgspec.structs.replace(RIGHT, number=2), path)
    lines = path.read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 2]
    assert msgspec.json.decode(lines[0], type=RoundRecord) == RIGHT

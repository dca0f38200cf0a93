"""The voter's log is read as it grows, and shows detected corruptions and failed replicas."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from faultinject.soak.plan import SoakFaultKind
from faultinject.soak.record import InjectedFault, UnexplainedFailure
from faultinject.soak.voter_log import (
    Detector,
    VoterEvent,
    VoterLog,
    classify,
    unexplained_failures,
)


def line(replica: str = "g1", before: str = "active", after: str = "expelled",
         reason: str = "dissent", seq: int = 7) -> str:  # fmt: skip
    return json.dumps(
        {
            "time": "2026-11-29T15:43:30.387Z", "level": "info", "event": "replica",
            "replica": replica, "before": before, "after": after, "reason": reason, "seq": seq,
        }
    )  # fmt: skip


def event(**fields: object) -> VoterEvent:
    return VoterEvent(0.0, "replica", json.loads(line()) | fields)


def test_log_is_read_as_it_grows_and_from_its_start_after_truncation(scratch: Path) -> None:
    path = scratch / "voter.log"
    log = VoterLog(path)
    assert log.read() == []
    path.write_text("Traceback\n" + line() + "\n" + line(seq=8)[:30])
    (first,) = log.read()
    assert first.fields["seq"] == 7
    assert first.at == pytest.approx(1795967010.387)
    with path.open("a") as file:
        file.write(line(seq=8)[30:] + "\n")
    assert [one.fields["seq"] for one in log.read()] == [8]
    path.write_text(line(seq=9) + "\n")
    assert [one.fields["seq"] for one in log.read()] == [9]


@pytest.mark.parametrize(
    "fields, unread, detector",
    [
        ({"seq": 7}, False, Detector.DISSENT),
        ({"seq": 8}, True, Detector.DIGEST),
        ({"seq": 8}, False, Detector.UNCLEAR),
        ({"reason": "no majority: replicas disagree"}, False, Detector.DISSENT),
        ({"reason": "the state it sent does not hash to the voted digest"}, True, Detector.FETCH),
        ({"reason": "its restored state is not the checkpoint"}, True, Detector.RESTORE),
        ({"reason": "sends garbage"}, True, Detector.CHECKSUM),
        ({"reason": "hang: silent for 5.0 s", "after": "absent"}, True, Detector.REPLACED),
        ({"before": "absent", "after": "restoring", "reason": "is sent the last checkpoint"}, True,
         Detector.REPLACED),
        ({"before": "absent", "after": "learner", "reason": "catches up from the log"}, True, None),
        ({"replica": "g2"}, True, None),
    ],
)  # fmt: skip
def test_classify_returns_what_detected_the_corruption(
    fields: dict[str, object], unread: bool, detector: Detector | None
) -> None:
    assert classify(event(**fields), "g1", requests={7}, unread=unread) == detector


def test_classify_returns_none_for_other_events() -> None:
    other = VoterEvent(0.0, "checkpoint", {"seq": 7})
    assert classify(other, "g1", requests={7}, unread=True) is None
    assert str(other) == "checkpoint at place 7"


BEGAN = 1_000_000.0


def fault(
    number: int, kind: SoakFaultKind, target: str, at: float, recovered: float | None
) -> InjectedFault:
    return InjectedFault(
        number=number, kind=kind, target=target, seconds=0.0, trigger="", at=at, proof="",
        overlapped=False, seen="", longest_pause=0.1, rate=1.0, recovered_after=recovered,
    )  # fmt: skip


def logged(at: float, guest: str, before: str, after: str, reason: str = "hang") -> str:
    time = datetime.fromtimestamp(BEGAN + at, UTC).isoformat()
    return line(guest, before, after, reason).replace("2026-11-29T15:43:30.387Z", time)


def test_failure_in_an_episode_that_hit_its_guest_is_explained(scratch: Path) -> None:
    faults = [
        fault(1, SoakFaultKind.GUEST_KILL, "g1", 1.0, None),
        fault(2, SoakFaultKind.VOTER_KILL, "voter", 2.0, 3.0),
        fault(3, SoakFaultKind.GUEST_KILL, "g2", 9.0, 2.0),
    ]
    log = [
        "not JSON",
        logged(0.5, "g1", "active", "absent"),  # within the slack
        logged(4.0, "g1", "active", "absent"),
        logged(4.0, "g3", "active", "absent", "slow"),
        logged(7.5, "g1", "active", "expelled", "dissent"),
        logged(9.5, "g2", "active", "absent"),
        logged(9.6, "g2", "absent", "learner"),
        logged(99.0, "g3", "active", "absent", "the voter stops"),
    ]
    path = scratch / "voter.log"
    path.write_text("\n".join(log) + "\n")
    assert unexplained_failures(VoterLog(path).read(), faults, began=BEGAN, ended=BEGAN + 50) == [
        UnexplainedFailure(guest="g3", at=4.0, reason="slow"),
        UnexplainedFailure(guest="g1", at=7.5, reason="dissent"),
    ]

"""What the voter's log says is read as it grows, and classified by what noticed a corruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from faultinject.soak.detection import Detector, VoterEvent, VoterLog, classify


def line(replica: str = "g1", before: str = "active", after: str = "expelled",
         reason: str = "dissent", seq: int = 7) -> str:  # fmt: skip
    return json.dumps(
        {
            "time": "2026-11-29T15:43:30.387Z", "level": "info", "event": "replica",
            "replica": replica, "before": before, "after": after, "reason": reason, "seq": seq,
        }
    )  # fmt: skip


def event(**fields: object) -> VoterEvent:
    said = json.loads(line()) | fields
    return VoterEvent(0.0, "replica", said)


def test_log_is_read_as_it_grows_and_from_its_start_after_it_was_cut(scratch: Path) -> None:
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
        ({"reason": "the state it gave does not hash to the voted digest"}, True, Detector.FETCH),
        ({"reason": "its state is not the checkpoint it was given"}, True, Detector.RESTORE),
        ({"reason": "sends garbage"}, True, Detector.CHECKSUM),
        ({"reason": "hang: silent for 5.0 s", "after": "absent"}, True, Detector.REPLACED),
        ({"before": "absent", "after": "restoring", "reason": "gets the last checkpoint"}, True,
         Detector.REPLACED),
        ({"before": "absent", "after": "learner", "reason": "catches up from the log"}, True, None),
        ({"replica": "g2"}, True, None),
    ],
)  # fmt: skip
def test_event_is_classified_by_what_noticed_the_corruption(
    fields: dict[str, object], unread: bool, detector: Detector | None
) -> None:
    assert classify(event(**fields), "g1", requests={7}, unread=unread) == detector


def test_other_events_notice_nothing() -> None:
    other = VoterEvent(0.0, "checkpoint", {"seq": 7})
    assert classify(other, "g1", requests={7}, unread=True) is None
    assert str(other) == "checkpoint at place 7"

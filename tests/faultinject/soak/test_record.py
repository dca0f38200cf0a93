"""What is made of faults: summaries, falls that no fault explains, a record on the disk."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from faultinject.soak.falls import find_falls
from faultinject.soak.plan import SoakFaultKind, make_plan
from faultinject.soak.record import (
    InjectedFault,
    LoadSummary,
    Promise,
    SoakRecord,
    SoakSpec,
    UnexplainedFailure,
    host_facts,
    save,
    summarize,
)

BEGAN = 1_000_000.0


def fault(
    number: int, kind: SoakFaultKind, target: str, at: float, whole: float | None, **more: float
) -> InjectedFault:
    return InjectedFault(
        number=number,
        kind=kind,
        target=target,
        seconds=0.0,
        moment="",
        at=at,
        proof="",
        overlapped=bool(more.get("overlapped")),
        seen="",
        longest_pause=more.get("pause", 0.1),
        rate=1.0,
        whole_after=whole,
    )


def line(at: float, guest: str, before: str, after: str, reason: str = "hang") -> str:
    time = datetime.fromtimestamp(BEGAN + at, UTC).isoformat()
    what = {"replica": guest, "before": before, "after": after, "reason": reason}
    return json.dumps({"time": time, "event": "replica", **what})


def test_a_summary_counts_by_kind_and_leaves_out_what_is_not_known() -> None:
    summary = summarize(
        [
            fault(1, SoakFaultKind.GUEST_KILL, "g1", 1.0, None, pause=0.2),
            fault(2, SoakFaultKind.VOTER_KILL, "voter", 1.5, 3.0, pause=0.5, overlapped=1),
            fault(3, SoakFaultKind.GUEST_KILL, "g2", 9.0, 2.0, pause=0.4),
        ]
    )
    voter, guest = summary
    assert (voter.kind, voter.count, voter.overlapped) == ("voter-kill", 1, 1)
    assert (guest.kind, guest.count, guest.pause_longest) == ("guest-kill", 2, 0.4)
    assert guest.pause_median == pytest.approx(0.3)
    assert (guest.whole_median, guest.whole_longest) == (2.0, 2.0)


def test_a_fall_in_an_episode_that_hit_its_guest_is_explained() -> None:
    faults = [
        fault(1, SoakFaultKind.GUEST_KILL, "g1", 1.0, None),
        fault(2, SoakFaultKind.VOTER_KILL, "voter", 2.0, 3.0),
        fault(3, SoakFaultKind.GUEST_KILL, "g2", 9.0, 2.0),
    ]
    log = [
        "not JSON",
        line(0.5, "g1", "active", "absent"),  # within the slack
        line(4.0, "g1", "active", "absent"),
        line(4.0, "g3", "active", "absent", "slow"),
        line(7.5, "g1", "active", "expelled", "dissent"),
        line(9.5, "g2", "active", "absent"),
        line(9.6, "g2", "absent", "learner"),
        line(99.0, "g3", "active", "absent", "the voter stops"),
    ]
    assert find_falls(log, faults, began=BEGAN, ended=BEGAN + 50) == [
        UnexplainedFailure(guest="g3", at=4.0, reason="slow"),
        UnexplainedFailure(guest="g1", at=7.5, reason="dissent"),
    ]


def test_a_record_is_stored_whole_and_tells_whether_all_held(scratch: Path) -> None:
    spec = SoakSpec(faults=3, seed=9)
    faults = [fault(1, SoakFaultKind.GUEST_KILL, "g1", 1.0, 2.0, overlapped=1)]
    load = LoadSummary(
        requests=1, replies=1, kinds={}, correct=1, wrong=0, misplaced=0, increments=0,
        told_again=0, errors={}, told=[], unknown=0, unknown_found=0, p50=0.0, p99=0.0,
        longest=0.0, rate=0.0,
    )  # fmt: skip
    record = SoakRecord(
        spec=spec, seconds=1.0, host=host_facts("tcg", "image", 0.5),
        promises=[Promise(promise="p", held=True, seen="s")], load=load, kinds=summarize(faults),
        faults=faults, falls=[], waits=[], plan=make_plan(9, 3),
    )  # fmt: skip
    assert (record.held, record.overlapped) == (True, 1)
    broken = Promise(promise="q", held=False, seen="s")
    assert not msgspec.structs.replace(record, promises=[*record.promises, broken]).held
    path = scratch / "record.json"
    save(record, path)
    stored = json.loads(path.read_text())
    assert stored["held"] is True
    assert stored["spec"]["seed"] == 9
    assert [p.name for p in scratch.iterdir()] == ["record.json"]
    del stored["held"]
    assert msgspec.convert(stored, SoakRecord) == record

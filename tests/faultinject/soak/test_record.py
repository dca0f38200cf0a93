"""Faults are summarized, and a record is stored."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from faultinject.soak.plan import SoakFaultKind, make_plan
from faultinject.soak.record import (
    InjectedFault,
    LoadSummary,
    Promise,
    SoakHost,
    SoakRecord,
    SoakSpec,
    save,
    summarize,
)

HOST = SoakHost(cpu="", cores=1, kernel="", python="", accel="tcg", load_before=0.5, image="image")


def fault(
    number: int, kind: SoakFaultKind, target: str, at: float, recovered: float | None, **more: float
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
        recovered_after=recovered,
    )


def test_summary_counts_by_kind_and_skips_unknown_recovery_times() -> None:
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
    assert (guest.recovery_median, guest.recovery_longest) == (2.0, 2.0)


def test_record_is_stored_and_read_back_equal(scratch: Path) -> None:
    spec = SoakSpec(faults=3, seed=9)
    faults = [fault(1, SoakFaultKind.GUEST_KILL, "g1", 1.0, 2.0, overlapped=1)]
    load = LoadSummary(
        requests=1, replies=1, kinds={}, correct=1, wrong=0, misplaced=0, increments=0,
        replayed=0, errors={}, messages=[], unknown=0, unknown_found=0, p50=0.0, p99=0.0,
        longest=0.0, rate=0.0,
    )  # fmt: skip
    record = SoakRecord(
        spec=spec, seconds=1.0, host=HOST,
        promises=[Promise(promise="p", held=True, seen="s")], load=load, kinds=summarize(faults),
        faults=faults, unexplained=[], waits=[], plan=make_plan(9, 3),
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

"""Faults are summarized, and a record is stored."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from faultinject.soak.plan import SoakFaultKind
from faultinject.soak.record import InjectedFault, Promise, SoakRecord, save, summarize
from tests.project.tree import ROOT


def fault(
    number: int, kind: SoakFaultKind, target: str, at: float, recovered: float | None, **more: float
) -> InjectedFault:
    return InjectedFault(
        number=number, kind=kind, target=target, seconds=0.0, trigger="", at=at, proof="",
        overlapped=bool(more.get("overlapped")), seen="", longest_pause=more.get("pause", 0.1),
        rate=1.0, recovered_after=recovered,
    )  # fmt: skip


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


def test_kept_record_is_stored_and_read_back_equal(scratch: Path) -> None:
    kept = json.loads((ROOT / "docs/results/soak.json").read_text())
    assert kept["held"] is True
    record = msgspec.convert(without_held(kept), SoakRecord)
    assert (record.held, record.overlapped) == (True, 383)
    broken = Promise(promise="q", held=False, seen="s")
    assert not msgspec.structs.replace(record, promises=[*record.promises, broken]).held
    path = scratch / "record.json"
    save(record, path)
    assert [p.name for p in scratch.iterdir()] == ["record.json"]
    assert msgspec.convert(without_held(json.loads(path.read_text())), SoakRecord) == record


def without_held(stored: dict[str, object]) -> dict[str, object]:
    """Return a stored record without the verdict, which is computed."""
    return {key: value for key, value in stored.items() if key != "held"}

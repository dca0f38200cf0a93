"""Rules on consoles, resources and votes, and on the bytes of a memory."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from deploy.monitor.memory import MemoryJudge, find_bytes
from deploy.monitor.observations import ConsoleJudge, ResourceJudge, Usage, VoteJudge
from deploy.monitor.rules import ConsoleRule, MemoryRule, ResourceRule, VoteRule


def test_line_of_a_console_matches_for_the_guests_of_the_rule() -> None:
    judge = ConsoleJudge([ConsoleRule(name="oops", line="Oops|panic", guests=["g1"])])
    assert [each.guest for each in judge.judge("g1", "[ 1.0] Oops: 0002")] == ["g1"]
    assert judge.judge("g1", "all is well") == []
    assert judge.judge("g2", "Oops") == []


def test_guest_that_uses_too_much_for_long_enough_matches_once() -> None:
    judge = ResourceJudge([ResourceRule(name="busy", cpu_above=0.5, lasting=2.0)])
    idle = [judge.judge("g1", Usage(float(at), 0.1 * at, 0)) for at in range(5)]
    busy = [judge.judge("g1", Usage(4.0 + at, 0.4 + 0.9 * at, 0)) for at in range(1, 6)]
    again = [judge.judge("g1", Usage(9.0 + at, 4.9, 0)) for at in range(1, 4)]
    assert not any(idle + again)
    assert [len(found) for found in busy] == [0, 1, 0, 0, 0]


def test_memory_must_be_above_the_limit_all_the_time() -> None:
    rule = ResourceRule(name="big", rss_above=100, lasting=1.0)
    assert [
        bool(ResourceJudge([rule]).judge("g1", Usage(0.0, 0.0, size))) for size in (50, 500)
    ] == [False, False], "one sample says nothing about a time"
    judge = ResourceJudge([rule])
    found = [
        bool(judge.judge("g1", Usage(n / 2, 0.0, s))) for n, s in enumerate((99, 200, 200, 200))
    ]
    assert found == [False, False, False, True]


def event(guest: str, before: str, after: str, reason: str = "", at: float = 0.0) -> dict[str, Any]:
    return {
        "event": "replica", "guest": guest, "before": before, "after": after, "reason": reason,
        "time": at, "seq": 5,
    }  # fmt: skip


def test_votes_are_counted_by_what_they_show() -> None:
    rules = [
        VoteRule(name=name, event=name) for name in ("dissent", "expelled", "lost", "no-majority")
    ]
    judge = VoteJudge(rules, need=2, active=["g1", "g2", "g3"])

    def names(**changes: Any) -> list[str]:
        return [each.rule.name for each in judge.judge(event(**changes))]

    assert names(guest="g3", before="active", after="expelled", reason="dissent") == [
        "dissent", "expelled"
    ]  # fmt: skip
    assert names(guest="g2", before="active", after="absent", reason="lost") == [
        "lost", "no-majority"
    ]  # fmt: skip
    assert names(guest="g1", before="active", after="absent") == ["lost"]
    assert names(guest="g1", before="learner", after="active") == []
    assert judge.judge({"event": "repaired", "guest": "g1"}) == []


def test_rule_on_votes_counts_within_its_time() -> None:
    judge = VoteJudge(
        [VoteRule(name="a", event="lost", more_than=1, within=10.0)], need=2, active=["g1"]
    )
    found = [bool(judge.judge(event("g1", "active", "absent", at=at))) for at in (0.0, 20.0, 25.0)]
    assert found == [False, False, True]


def ram(directory: Path, *parts: tuple[int, bytes]) -> Path:
    """Make a sparse file, as a guest's memory is."""
    path = directory / "ram"
    with path.open("wb") as file:
        file.truncate(64 << 20)
        for offset, data in parts:
            file.seek(offset)
            file.write(data)
    return path


def test_bytes_are_found_wherever_they_are_and_holes_are_not_read(tmp_path: Path) -> None:
    wanted = b"the-wanted-bytes"
    places = [5, (4 << 20) - 7, (8 << 20) - len(wanted), 40 << 20]
    path = ram(tmp_path, *((place, wanted) for place in places))
    assert list(find_bytes(path, wanted)) == places
    judge = MemoryJudge(MemoryRule(name="a", contains="the-wanted-bytes"))
    found = judge.judge("g1", path)
    assert found is not None
    assert "0x5" in found.detail
    assert judge.judge("g1", path) is None, "it is reported once"
    assert judge.judge("g2", path) is not None


def test_region_between_marks_must_stay_as_it_was(tmp_path: Path) -> None:
    rule = MemoryRule(name="a", begin=r"BEGIN-MARK\x00", end="END-MARK!")
    judge = MemoryJudge(rule)

    def with_region(data: bytes) -> Path:
        return ram(tmp_path, (4096, b"BEGIN-MARK\0" + data + b"END-MARK!"), (9999, b"BEGIN-MARK\0"))

    assert judge.judge("g1", ram(tmp_path)) is None, "the guest has not booted"
    assert judge.judge("g1", with_region(b"code")) is None
    assert judge.judge("g1", with_region(b"code")) is None
    found = judge.judge("g1", with_region(b"evil"))
    assert found is not None
    assert "0x100b" in found.detail
    known = MemoryRule(
        name="b", begin=r"BEGIN-MARK\x00", end="END-MARK!",
        sha256=hashlib.sha256(b"code").hexdigest(),
    )  # fmt: skip
    assert MemoryJudge(known).judge("g1", with_region(b"code")) is None
    assert MemoryJudge(known).judge("g1", with_region(b"evil")) is not None

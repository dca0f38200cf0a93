"""The logs of incidents and differences: what is kept, and what is cut off."""

from __future__ import annotations

import asyncio
from base64 import b64decode

from tests.voter.core.model import make_engine
from voter import reports
from voter.core import events as ev
from voter.reports import Reports


def make_reports() -> Reports:
    members = make_engine(observers=1).members
    return Reports(members, lambda: 5_000_000_000, {"dissents": 0, "voided": 0, "clock_steps": 0})


async def test_long_replies_are_cut_and_their_sizes_are_kept() -> None:
    found = make_reports()
    found.differed(ev.Differed(3, 7, b"r" * 100_000, b"x" * 70_000, None, 0.5))
    (difference,) = found.differences.kept
    assert (difference.id, difference.time, difference.replica) == (1, 5.0, "g4")
    assert len(b64decode(difference.request or "")) == reports.LONGEST_PART
    assert (difference.other, difference.sizes) == (None, (100_000, 70_000, None))


async def test_differences_are_kept_within_their_bytes() -> None:
    found = make_reports()
    for _ in range(200):
        found.differed(ev.Differed(3, 7, b"r" * 60_000, b"x", b"y", 0.5))
    kept = found.differences.kept
    assert sum(difference.size for difference in kept) <= reports.DIFFERENCE_BYTES
    assert kept[-1].id == 200
    assert kept[0].id == 200 - len(kept) + 1, "a gap in the ids shows what was dropped"


async def test_differences_are_kept_within_their_number() -> None:
    found = make_reports()
    for _ in range(reports.MOST_EVENTS + 5):
        found.differed(ev.Differed(3, 7, b"", b"x", b"y", 0.5))
    assert len(found.differences.kept) == reports.MOST_EVENTS
    assert found.differences.kept[0].kind == "digest"


async def test_listener_gets_what_comes_later() -> None:
    found = make_reports()
    waiting = asyncio.ensure_future(found.differences.after(0))
    await asyncio.sleep(0)
    assert not waiting.done()
    found.differed(ev.Differed(3, 7, b"r", b"x", b"y", 0.5))
    assert [difference.seq for difference in await waiting] == [7]

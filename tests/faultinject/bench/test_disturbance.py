"""Failed requests of a disturbance are reported by kind and time; a returned guest really votes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from deploy.machine.spec import GuestState
from faultinject.bench import rig
from faultinject.bench.disturbance import WINDOW, Disturbance, group_failures
from faultinject.load import Arrivals, FailedRequest
from voter.errors import VoterError


async def test_failed_requests_are_grouped_by_kind_with_their_times() -> None:
    async def fail() -> None:
        raise VoterError("no majority")

    async with Arrivals(lambda: asyncio.ensure_future(fail()), 100) as load:
        await asyncio.sleep(0.1)
    load.failed.append(FailedRequest(2.5, "Overload", "too many"))
    number = load.failures["VoterError"]
    first, second = group_failures(load, window="g2", pair=3, restoring=1.0, voting=1.5)
    assert (first.kind, first.requests, first.text) == ("VoterError", number, "no majority")
    assert 0 <= first.first < first.last < 2.5
    assert (second.kind, second.requests, second.first) == ("Overload", 1, 2.5)
    assert all(word in str(second) for word in ("1 Overload", "2.50", "window 3", "g2", "too many"))
    found = Disturbance(
        kind="freeze", rate=100, quiet=[0.1], faulty=[0.2], failures=[first, second]
    )
    assert found.failed == number + 1
    assert WINDOW > 2.5


class Guest:
    """A replica that answers throughout, as a guest that is paused for a moment seems to do."""

    name = "g1"
    state = GuestState.READY

    def subscribe(self, _callback: object) -> Callable[[], None]:
        return lambda: None

    async def restore(self) -> None:
        return None

    async def yield_processor(self, yields: bool) -> None:
        return None


class Node:
    """What `return_guest` uses of a node."""

    guests: ClassVar = {"g1": Guest()}


async def test_returned_guest_has_left_the_vote_and_votes_again(scratch: Path) -> None:
    """The voter may still count a paused guest as voting when its repair begins."""
    link = f"exec:{sys.executable} -m guests.agent --stdio --service kv"
    async with rig.ChildProcesses() as children:
        voter = await rig.start_voter(children, scratch / "v", [link] * 3)
        await rig.return_guest(Node(), voter, "g1")  # type: ignore[arg-type]
        status = await voter.call("GET", "/status")
        ended = {each["name"]: each["incarnations_ended"] for each in status["replicas"]}
        assert (ended["g1"], ended["g2"]) == (1, 0)
        assert {each["state"] for each in status["replicas"]} == {"active"}

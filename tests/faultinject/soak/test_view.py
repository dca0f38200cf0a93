"""The state of a node is read from its supervisor or its voter."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from deploy.node.records import Layout
from faultinject.soak.view import GuestView, NoAnswer, NodeView, SupervisorRefused
from voter.sockets import listen_unix

ACTIVE = GuestView(replica="active", reason="votes", vm="ready", pid=7)


def supervisor(**guest: Any) -> dict[str, Any]:
    replica = {
        "state": guest.get("replica", "active"),
        "reason": "votes",
        "lag": guest.get("lag", 0),
    }
    repairs = {"in_progress": guest.get("under_way", False), "consecutive": 0}
    return {
        "phase": "up", "status": "ready",
        "supervisor": {"pid": 11}, "voter": {"pid": 12, "seq": 5, "counters": {}},
        "guests": [{"name": "g1", "vm": "ready", "pid": 13, "replica": replica,
                    "repairs": repairs, "fault": guest.get("fault")}],
    }  # fmt: skip


VOTER = {
    "pid": 12, "status": "degraded", "seq": 6, "counters": {},
    "replicas": [{"name": "g1", "state": "learner", "reason": "catches up"}],
}  # fmt: skip


@contextlib.asynccontextmanager
async def serving(path: Path, answers: dict[str, tuple[int, Any]]) -> AsyncIterator[None]:
    """Answer GET and POST of these paths on a unix socket."""

    async def answer(request: web.Request) -> web.Response:
        status, body = answers[request.path]
        if isinstance(body, str):
            return web.Response(text=body)
        return web.json_response(body, status=status)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.SockSite(runner, listen_unix(str(path))).start()
    try:
        yield
    finally:
        await runner.cleanup()


def test_guest_is_whole_only_if_it_votes_without_fault_repair_and_lag() -> None:
    assert ACTIVE.recovered
    for change in (
        {"replica": "learner"}, {"vm": "paused"}, {"fault": "slow"}, {"under_way": True},
        {"lag": 500},
    ):  # fmt: skip
        assert not msgspec.structs.replace(ACTIVE, **change).recovered


def test_guest_is_returning_from_its_repair_until_it_votes() -> None:
    repaired = msgspec.structs.replace(ACTIVE, replica="absent", under_way=True)
    assert repaired.returning and not repaired.joining
    learner = msgspec.structs.replace(ACTIVE, replica="learner")
    assert learner.returning and learner.joining
    assert not msgspec.structs.replace(ACTIVE, under_way=True).returning
    assert not msgspec.structs.replace(ACTIVE, replica="absent").returning


async def test_poll_asks_the_supervisor_and_without_it_the_voter(scratch: Path) -> None:
    layout = Layout(scratch)
    async with NodeView(layout) as node:
        with pytest.raises(NoAnswer):
            await node.poll()
        async with serving(layout.voter_control, {"/status": (200, VOTER)}):
            view = await node.poll()
            assert (view.supervisor, view.voter, view.recovered) == (None, 12, False)
            assert view.guests["g1"].joining
            async with serving(layout.supervisor_socket, {"/status": (200, supervisor())}):
                view = await node.poll()
                assert (view.supervisor, view.recovered) == (11, True)


async def test_node_is_not_whole_while_its_supervisor_starts(scratch: Path) -> None:
    layout = Layout(scratch)
    starting = supervisor() | {"phase": "starting"}
    async with (
        NodeView(layout) as node,
        serving(layout.supervisor_socket, {"/status": (200, starting)}),
    ):
        assert not (await node.poll()).recovered


async def test_refusal_has_the_supervisors_message(scratch: Path) -> None:
    layout = Layout(scratch)
    refusal = (409, {"error": "g1 is dead"})
    async with NodeView(layout) as node, serving(layout.supervisor_socket, {"/inject": refusal}):
        with pytest.raises(SupervisorRefused, match="g1 is dead"):
            await node.supervisor("POST", "/inject", {})


@pytest.mark.parametrize("since, again", [(99.0, True), (101.0, False)])
async def test_voted_again_reads_the_supervisors_history(
    scratch: Path, since: float, again: bool
) -> None:
    layout = Layout(scratch)
    event = {"guest": "g1", "after": "active", "time": 100.0}
    async with (
        NodeView(layout) as node,
        serving(layout.supervisor_socket, {"/events": (200, {"events": [event]})}),
    ):
        assert await node.voted_again("g1", since) is again
        assert not await node.voted_again("g2", since)


async def test_voted_again_is_true_when_nobody_answers(scratch: Path) -> None:
    layout = Layout(scratch)
    async with NodeView(layout) as node:
        assert await node.voted_again("g1", 0.0)
        async with serving(layout.voter_control, {"/status": (200, VOTER)}):
            assert not await node.voted_again("g1", 0.0)

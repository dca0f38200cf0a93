"""A supervisor's dashboard: links and campaigns over the control socket, and its address."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from deploy.commands.control_client import ask
from deploy.dashboard.campaigns import Estimate
from deploy.host.identity import identify
from deploy.node.records import RunningRecord
from faultinject.campaign.run.interim import CellResult, InterimResults, LiveFigure
from faultinject.campaign.run.posting import DashboardPoster
from tests.deploy.dashboard.shown import Browser
from tests.deploy.supervisor.running import Running, plan
from tests.waiting import until
from voter.commands.terminal import CommandError
from voter.errors import AddressError


@pytest_asyncio.fixture
async def shown_node(scratch: Path) -> AsyncIterator[Running]:
    running = Running(plan(scratch, dashboard="127.0.0.1:0"))
    await running.start_ready()
    yield running
    await running.stop()


async def request(node: Running, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    return await asyncio.to_thread(ask, node.layout, "POST", path, body)


async def test_link_of_the_control_socket_opens_the_dashboard(shown_node: Running) -> None:
    link = (await request(shown_node, "/dashboard"))["url"]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/#[\w-]{43}", link)
    assert (await shown_node.status())["dashboard"] in link
    assert shown_node.layout.read_running().dashboard in link
    assert shown_node.dashboard is not None
    browser = Browser(shown_node.dashboard)
    async with browser.session:
        token = {"token": link.partition("#")[2]}
        assert (await browser.post("/api/login", token))[0] == 204
        kinds = {"kind": "corrupt-reply", "guest": "g3", "seconds": None}
        assert (await browser.post("/api/inject", kinds))[0] == 204
        async with await shown_node.client() as client:
            await client.request("PUT", "/kv/a", b"1")
        await until(lambda: shown_node.has_state("g3", "expelled"))
        status, text = await browser.post("/api/heal", {"guest": "g3"})
        assert (status, json.loads(text)["fault"]) == (200, "corrupt-reply")
        assert (await browser.post("/api/heal", {"guest": "g7"}))[0] == 409
    secrets = [link.partition("#")[2], *(m.value for m in browser.session.cookie_jar)]
    for log in shown_node.layout.directory.glob("*.log"):
        assert not any(secret in log.read_text() for secret in secrets)


async def test_campaign_posts_its_figures_to_the_node(shown_node: Running) -> None:
    cell = CellResult(name="d1", voted=True, planned=9, trials=5, failures=1, wrong=0, excluded=0,
                      rate=0.2, low=0.1, high=0.3)  # fmt: skip
    figure = LiveFigure(points=(Estimate(x=0.9, y=0.8, low=0.7, high=0.9),))
    found = InterimResults(cells=(cell,), estimates=("R_sys 0.8",), figure=figure)
    poster = DashboardPoster("softerrors", Path("/results"), shown_node.layout.directory)
    await asyncio.to_thread(poster.begin)
    await asyncio.to_thread(
        lambda: poster.post(found, state="running", done=5, total=9, rate=2.0, goal=9)
    )
    assert shown_node.dashboard is not None
    shown = shown_node.dashboard.board.current()
    assert shown is not None
    assert (shown["title"], shown["done"], shown["left"]) == ("softerrors", 5, 2.0)
    assert shown["points"][0]["y"] == 0.8


@pytest.mark.parametrize("body", [{}, {"title": 5}, {"title": "x" * 10_000}])
async def test_wrong_figures_are_an_error(shown_node: Running, body: dict[str, Any]) -> None:
    with pytest.raises(CommandError):
        await request(shown_node, "/campaign", body)


async def test_campaign_without_a_dashboard_is_an_error_only_if_it_was_named(
    plain_node: Running, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = plain_node.layout.directory
    named = DashboardPoster("t", Path("/results"), directory)
    with pytest.raises(CommandError, match="no dashboard"):
        await asyncio.to_thread(named.begin)
    monkeypatch.setenv("TRIVISOR_DIR", str(directory))
    default = DashboardPoster("t", Path("/results"), None)
    await asyncio.to_thread(default.begin)
    await asyncio.to_thread(
        lambda: default.post(InterimResults(cells=()), state="running", done=0, total=1)
    )


def taken() -> tuple[socket.socket, str]:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock, f"127.0.0.1:{sock.getsockname()[1]}"


def test_taken_address_fails_the_start_of_a_node(scratch: Path) -> None:
    sock, address = taken()
    with sock, pytest.raises(AddressError, match=f"{address}.*--dashboard off"):
        Running(plan(scratch, dashboard=address))


def test_taken_address_does_not_fail_a_supervisor_that_takes_over(scratch: Path) -> None:
    sock, address = taken()
    layout = plan(scratch, dashboard=address)
    me = identify(os.getpid())
    assert me is not None
    layout.write(RunningRecord(processes={"voter": me}))
    with sock:
        running = Running(layout)
    assert running.dashboard is None
    assert [event["event"] for event in running.events("no dashboard")] == ["no dashboard"]

"""A supervisor brings a node up, injects and heals faults, answers requests, ends the node."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from deploy.commands.control_client import ask
from deploy.errors import DeployError
from deploy.host.identity import identify
from deploy.machine.spec import Progress
from deploy.node.records import Layout
from deploy.supervisor.voter_control import VoterControl
from guests.protocol.message import encode_request
from tests.deploy.fake_node import FakeNode
from tests.deploy.supervisor.running import Running, plan
from tests.errors import logs, raises
from tests.other_user import CALL, run_as
from tests.waiting import until
from voter.client.errors import NotExecuted, RequestError
from voter.commands.terminal import CommandError, ExitCode

# ---- up and down


async def test_node_serves_when_up_and_leaves_nothing_when_down(scratch: Path) -> None:
    running = Running(plan(scratch))
    await running.start_ready()
    status = running.reports[-1]["ready"]
    assert status["status"] == "ready"
    assert [guest["state"] for guest in status["guests"]] == ["active"] * 3
    assert running.layout.read_running().processes.keys() == {"supervisor", "voter", "proxy"}
    pids = [status["voter"]["pid"], *(guest["pid"] for guest in status["guests"])]
    async with await running.client() as client:
        assert (await client.request("PUT", "/kv/a", b"1")).status == 201
    await running.stop()
    assert [identify(pid) for pid in pids] == [None] * 4
    assert not running.layout.stale_sockets()
    assert running.layout.read_running().processes == {}


class _NeverReady(FakeNode):
    async def up(
        self, progress: Progress, *, take_over: bool, empty: Collection[str] | None = None
    ) -> None:
        await self.guests["g1"].start()
        raise DeployError("g2 never became ready")


async def test_failed_start_leaves_nothing(scratch: Path) -> None:
    layout = plan(scratch)
    running = Running(layout, _NeverReady(layout, layout.read_node()))
    with pytest.raises(DeployError, match="never became ready"):
        await running.start_and_fail()
    assert running.guests["g1"].pid is None
    assert not layout.stale_sockets()


class _OneMissing(FakeNode):
    async def up(
        self, progress: Progress, *, take_over: bool, empty: Collection[str] | None = None
    ) -> None:
        await self.guests["g1"].start()
        await self.guests["g2"].start()
        await self.guests["g3"].start()
        await self.guests["g3"].kill()


async def test_guest_that_does_not_vote_in_time_is_named(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.supervisor.supervisor.READY_DEADLINE", 0.5)
    layout = plan(scratch, boot_deadline=0.5)
    running = Running(layout, _OneMissing(layout, layout.read_node()))
    with raises("TV0717", match="g3 did not vote"):
        await running.start_and_fail()


CHANGED = """
from guests.service import Context, Reply, Request, Service


class Changed(Service):
    name = "NAME"

    def apply(self, request: Request, context: Context) -> Reply:
        return Reply(200, "changed")
"""


@pytest.mark.parametrize("name", ["kv", "other"])
async def test_start_fails_at_once_if_the_service_does_not_continue_the_journal(
    scratch: Path, tmp_path: Path, name: str
) -> None:
    first = Running(plan(scratch))
    await first.start_ready()
    try:
        async with await first.client() as client:
            await client.request("PUT", "/kv/a", b"1")
    finally:
        await first.stop()
    file = tmp_path / "changed.py"
    file.write_text(CHANGED.replace("NAME", name))
    running = Running(plan(scratch, service=str(file)))
    with pytest.raises(DeployError, match="differs from the one that wrote") as caught:
        await running.start_and_fail()
    assert "--dir" in caught.value.remedy


async def test_start_fails_before_any_guest_starts_when_the_port_is_in_use(
    plain_node: Running, scratch: Path
) -> None:
    http = (await plain_node.status())["http"]
    running = Running(plan(scratch / "other", http=http))
    with raises("TV0203", match=f"cannot listen on {http}"):
        await running.start_and_fail()
    assert not any("ready" in str(report) for report in running.reports)


async def test_next_supervisor_adopts_what_a_killed_one_left(scratch: Path) -> None:
    first = Running(plan(scratch))
    await first.start_ready()
    async with await first.client() as client:
        await client.request("PUT", "/kv/a", b"kept")
    await first.supervisor.inject("corrupt-reply", "g3", None)
    before = await first.voter_pid()
    proxy = first.layout.read_running().processes["proxy"]
    await first.cut_off()
    assert first.node.released
    async with await first.client() as client:  # the voter continues without a supervisor
        assert (await client.request("GET", "/kv/a")).body == b"kept"
    second = Running(first.layout, first.node)
    await second.start_ready()
    status = await second.status()
    assert status["voter"]["pid"] == before
    assert second.layout.read_running().processes["proxy"] == proxy
    assert status["guests"][2]["fault"]["kind"] == "corrupt-reply"
    async with await second.client() as client:
        assert (await client.request("GET", "/kv/a")).body == b"kept"
    # The next voter gets new sockets at the same address.
    os.kill(before, signal.SIGKILL)
    await until(lambda: second.has_state("g1", "active"))
    assert (await second.status())["http"] == status["http"]
    await second.supervisor.heal("g3")
    await second.stop()
    assert identify(proxy.pid) is None


class _NeverUp(FakeNode):
    async def up(
        self, progress: Progress, *, take_over: bool, empty: Collection[str] | None = None
    ) -> None:
        progress("taking over")
        await asyncio.Event().wait()


async def test_stop_during_a_take_over_ends_the_former_proxy(scratch: Path) -> None:
    first = Running(plan(scratch))
    await first.start_ready()
    processes = first.layout.read_running().processes
    await first.cut_off()
    second = Running(first.layout, _NeverUp(first.layout, first.layout.read_node()))
    await second.control.start()
    second.task = asyncio.create_task(second.supervisor.serve())
    await until(lambda: {"step": "taking over"} in second.reports)
    second.supervisor.stop()
    await second.task
    assert not processes["proxy"].alive and not processes["voter"].alive
    await second.stop()
    await first.node.down()


# ---- repair


async def test_dead_guest_is_repaired_and_no_request_fails(node: Running) -> None:
    async with await node.client() as client:
        await client.request("PUT", "/kv/a", b"1")
        await node.guests["g2"].kill()
        for number in range(50):
            assert (await client.request("PUT", "/kv/a", b"%d" % number)).status == 204
        await until(node.all_active)
        answer = await client.request("GET", "/kv/a")
    assert (answer.body, answer.vote.dissent) == (b"49", 0)
    assert [event["guest"] for event in node.events("repaired")] == ["g2"]


async def test_returning_guest_yields_until_it_votes(plain_node: Running) -> None:
    guests = plain_node.guests
    async with await plain_node.client() as client:
        for number in range(40):  # so that it has something to catch up with
            await client.request("PUT", f"/kv/{number}", bytes(60_000))
    await guests["g2"].kill()
    await until(lambda: guests["g2"].restores > 0)
    await until(plain_node.all_active)
    await until(lambda: not guests["g2"].yields)
    assert guests["g2"].yielded == [True, False]
    assert [guests["g1"].yielded, guests["g3"].yielded] == [[], []], "no majority was there before"


async def test_failed_repair_is_retried_and_reported(plain_node: Running) -> None:
    async def last_error() -> Any:
        return (await plain_node.status())["guests"][2]["repairs"]["last_error"]

    async def failed() -> bool:
        return "cannot be restored" in (await last_error() or "")

    guest = plain_node.guests["g3"]
    guest.fail_restore = True
    await guest.kill()
    await until(failed)
    guest.fail_restore = False
    await until(plain_node.all_active)
    assert await last_error() is None


async def test_no_guest_is_restored_automatically_with_repair_off(scratch: Path) -> None:
    running = Running(plan(scratch, repair="off", allow_faults=False))
    await running.start_ready()
    await running.guests["g1"].kill()
    await asyncio.sleep(2.0)  # longer than a repair takes
    assert await running.has_state("g1", "dead")
    await running.supervisor.heal("g1")
    assert await running.all_active()
    await running.stop()


# ---- faults


@pytest.mark.parametrize(
    "kind,state,dissents",
    [
        ("crash", "dead", False),
        ("hang", "paused", False),
        ("corrupt-reply", "expelled", True),
        ("garbage", "expelled", False),
        ("stale-reply", "expelled", True),
        ("wrong-seq", "expelled", False),
    ],
)
async def test_injected_fault_is_masked_and_stays_active_until_healed(
    node: Running, kind: str, state: str, dissents: bool
) -> None:
    assert (await node.supervisor.inject(kind, "g2", None)).proof
    async with await node.client() as client:
        for number in range(20):
            answer = await client.request("PUT", f"/kv/{number}", b"%d" % number)
            assert answer.status == 201
        await until(lambda: node.has_state("g2", state))
        await asyncio.sleep(2.0)  # longer than a repair takes: it must not touch this guest
        guest = (await node.status())["guests"][1]
        assert (guest["state"], guest["fault"]["kind"]) == (state, kind)
        assert guest["repairs"]["count"] == node.guests["g2"].restores == 0
        assert (guest["replica"]["dissents"] > 0) == dissents
        assert (await node.supervisor.heal("g2"))["fault"] == kind
        assert await node.all_active()
        assert node.guests["g2"].restores == 1  # by `heal` alone
        assert (await client.request("GET", "/kv/7")).body == b"7"


async def test_slow_guest_delays_no_request_and_is_not_restored(node: Running) -> None:
    await node.supervisor.inject("slow", "g3", None)
    async with await node.client() as client:
        agreed = [
            (await client.ask(encode_request("PUT", "/kv/a", [], b"%d" % number)))[0].agreed
            for number in range(50)
        ]
        assert agreed.count(2) > 25, "replies are released before the third guest has answered"
    await node.supervisor.heal("g3")
    assert await node.all_active()
    assert node.guests["g3"].restores == 0


async def test_expired_fault_is_healed(node: Running) -> None:
    record = await node.supervisor.inject("crash", "g1", 0.5)
    assert record.until is not None
    await until(lambda: "g1" not in node.supervisor._records.active)
    await until(node.all_active)


async def test_expired_fault_is_healed_later_when_the_guest_is_needed(
    node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.supervisor.active_faults.RETRY_INTERVAL", 0.2)
    heal, refused = node.supervisor._records._heal, 0

    async def refuse_twice(guest: str) -> object:
        nonlocal refused
        if refused < 2:
            refused += 1
            raise DeployError(f"{guest} is one of the last 2 that vote")
        return await heal(guest)

    node.supervisor._records._heal = refuse_twice
    await node.supervisor.inject("corrupt-reply", "g1", 0.2)
    with logs("TV0510"):
        await until(lambda: "g1" not in node.supervisor._records.active)
    assert refused == 2
    await until(node.all_active)


async def test_impossible_faults_are_rejected(node: Running) -> None:
    with raises("TV0114", match="no guest 'g9'"):
        await node.supervisor.inject("crash", "g9", None)
    with raises("TV0503", match="corrupt-reply"):
        await node.supervisor.inject("nonsense", "g1", None)
    with logs("TV0512"):
        await node.supervisor.inject("hang", "g1", None)
    with raises("TV0502", match="hang is already active"):
        await node.supervisor.inject("garbage", "g1", None)
    # A fault that was not injected is not recorded, so repair still applies to the guest.
    with raises("TV0506", match="not a VM"):
        await node.supervisor.inject("corrupt-state", "g2", None)
    assert node.supervisor._records.active.keys() == {"g1"}
    node.supervisor.phase = "stopping"
    with raises("TV0504", match="stopping"):
        await node.supervisor.inject("crash", "g3", None)
    node.supervisor.phase = "up"


async def test_end_of_the_link_proxy_is_logged_and_another_is_started(node: Running) -> None:
    before = node.layout.read_running().processes["proxy"]
    with logs("TV0505"):
        os.kill(before.pid, signal.SIGKILL)
        await until(lambda: node.layout.read_running().processes["proxy"] != before)
    await until(node.all_active)


async def test_node_without_allow_faults_has_no_proxy_and_rejects_faults(
    plain_node: Running,
) -> None:
    assert "proxy" not in plain_node.layout.read_running().processes
    with raises("TV0501", match="does not allow faults"):
        await plain_node.supervisor.inject("crash", "g1", None)


async def test_two_liars_get_no_majority_and_the_correct_guest_is_repaired(node: Running) -> None:
    async with await node.client() as client:
        await client.request("PUT", "/kv/a", b"kept")
        await node.supervisor.inject("corrupt-reply", "g2", None)
        await node.supervisor.inject("corrupt-reply", "g3", None)
        with pytest.raises(RequestError):
            await client.request("GET", "/kv/a", timeout=5.0)
        await until(lambda: node.has_state("g1", "active"))
        assert node.guests["g1"].restores == 1
        with pytest.raises(NotExecuted):
            await client.request("GET", "/kv/a", timeout=2.0)
        await node.supervisor.heal("g2")
        assert (await client.request("GET", "/kv/a")).body == b"kept"
        assert (await node.status())["status"] == "degraded"


# ---- control socket


async def test_control_socket_answers_with_errors_and_exit_codes(node: Running) -> None:
    def refused(path: str, body: dict[str, Any]) -> CommandError:
        with pytest.raises(CommandError) as caught:
            ask(node.layout, "POST", path, body)
        return caught.value

    status = await asyncio.to_thread(ask, node.layout, "GET", "/status")
    assert status["vote"] == "2/3"
    error = await asyncio.to_thread(refused, "/inject", {"kind": "nonsense", "guest": "g1"})
    assert error.code is ExitCode.NOT_ALLOWED
    error = await asyncio.to_thread(refused, "/inject", {"kind": "crash"})
    assert error.code is ExitCode.USAGE and error.error_code == "TV0734"
    error = await asyncio.to_thread(refused, "/heal", {"guest": "g9"})
    assert "it has g1, g2, g3" in str(error) and error.error_code == "TV0114"
    lines = await asyncio.to_thread(ask, node.layout, "GET", "/logs/g1?lines=5")
    assert lines["lines"] == ["g1 is a process"]
    mode = node.layout.supervisor_socket.stat().st_mode & 0o777
    assert mode == 0o600


async def test_control_socket_refuses_other_users_although_its_file_lets_them_in(
    node: Running,
) -> None:
    path = node.layout.supervisor_socket
    for directory in (path.parent, *path.parents[1:-2]):
        directory.chmod(0o755)
    path.chmod(0o666)
    try:
        for method, target in (("GET", "/status"), ("POST", "/down"), ("POST", "/heal")):
            answer = await asyncio.to_thread(run_as, CALL, path, method, target)
            assert " 403 " in answer
            assert '"error_code": "TV0972"' in answer
    finally:
        path.chmod(0o600)
    assert (await asyncio.to_thread(ask, node.layout, "GET", "/status"))["phase"] == "up"


async def test_control_socket_rejects_absurd_numbers(node: Running) -> None:
    def refused(method: str, path: str, body: dict[str, Any] | None) -> ExitCode:
        with pytest.raises(CommandError) as caught:
            ask(node.layout, method, path, body)
        return caught.value.code

    for seconds in (0, -1, 1e300, 10**30, "5", True, [1]):
        body = {"kind": "corrupt-reply", "guest": "g1", "seconds": seconds}
        code = await asyncio.to_thread(refused, "POST", "/inject", body)
        assert code is ExitCode.USAGE, seconds
    for number in ("-1", "nan", "1e3", "1_0", "%D9%A3", "9" * 5000, "", "1.5"):
        for path in (f"/logs/g1?lines={number}", f"/events?lines={number}",
                     f"/events?follow=1&since={number}"):  # fmt: skip
            code = await asyncio.to_thread(refused, "GET", path, None)
            assert code is ExitCode.USAGE, path
    status = await asyncio.to_thread(ask, node.layout, "GET", "/status")
    assert all(guest["fault"] is None for guest in status["guests"])


def test_client_raises_not_up_without_a_supervisor(scratch: Path) -> None:
    with raises("TV0701", match="no node runs"):
        ask(Layout(scratch), "GET", "/status")


async def test_control_socket_of_a_node_without_a_dashboard_says_so(plain_node: Running) -> None:
    def ask_for_a_link() -> str:
        with pytest.raises(CommandError) as caught:
            ask(plain_node.layout, "POST", "/dashboard", {})
        return caught.value.error_code

    assert await asyncio.to_thread(ask_for_a_link) == "TV0907"


async def test_voter_control_reports_a_voter_that_is_not_there(scratch: Path) -> None:
    control = VoterControl(scratch / "none.sock")
    with raises("TV0224"):
        await control.status()
    await control.close()


async def test_voter_control_reports_what_the_voter_rejects(plain_node: Running) -> None:
    control = VoterControl(plain_node.layout.voter_control)
    with raises("TV0225"):
        await control.admit("g9")
    await control.close()


def test_supervisor_that_does_not_answer_is_an_error(scratch: Path) -> None:
    layout = plan(scratch)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(layout.supervisor_socket))
        listener.listen()
        with raises("TV0715", match="did not answer within"):
            ask(layout, "GET", "/status", timeout=0.2)


def test_node_of_another_user_is_named(scratch: Path) -> None:
    layout = plan(scratch)
    if os.geteuid():
        pytest.skip("only root can become another user")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(layout.supervisor_socket))
        listener.listen()
        layout.directory.chmod(0o755)
        layout.supervisor_socket.chmod(0o600)
        os.seteuid(54321)
        try:
            with raises("TV0714", match="belongs to another user"):
                ask(layout, "GET", "/status", timeout=5.0, patience=0.0)
        finally:
            os.seteuid(0)

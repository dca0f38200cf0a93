"""The supervisor with a real voter and a real proxy, on guests that are processes (no VM)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from deploy.commands.control_client import NotUp, ask
from deploy.errors import DeployError
from deploy.host.child import Child
from deploy.host.identity import identify
from deploy.node.interfaces import Progress
from deploy.node.records import Layout, NodeRecord, Settings
from deploy.supervisor.control import SupervisorControlServer
from deploy.supervisor.fault_records import FaultRefused
from deploy.supervisor.supervisor import Supervisor
from deploy.watchdog.client import WatchdogClient
from faultinject.faults.injector import FaultInjector
from guests.protocol.message import encode_request
from tests.deploy.fake_node import FakeNode
from voter.client import Client
from voter.client.errors import NotExecuted, RequestError
from voter.commands.terminal import CommandError, ExitCode


class Running:
    """A supervisor that serves in the background, and what tests do with it."""

    def __init__(
        self, layout: Layout, node: FakeNode | None = None, nursery: WatchdogClient | None = None
    ) -> None:
        self.layout = layout
        self.reports: list[dict[str, Any]] = []
        self.supervisor = Supervisor(
            layout,
            make_node=FakeNode if node is None else lambda layout, record: node,
            make_faults=FaultInjector,
            report=self.reports.append,
            nursery=nursery,
        )
        self.control = SupervisorControlServer(self.supervisor)
        self.task: asyncio.Task[None] | None = None

    @property
    def node(self) -> FakeNode:
        node = self.supervisor._node
        assert isinstance(node, FakeNode)
        return node

    async def start(self) -> None:
        await self.control.start()
        self.task = asyncio.create_task(self.supervisor.serve())
        await until(lambda: "ready" in (self.reports or [{}])[-1] or self.done(), 40.0)

    def done(self) -> bool:
        return self.task is not None and self.task.done()

    async def stop(self) -> None:
        """End everything, also where the supervisor has failed and left all running."""
        self.supervisor.stop()
        try:
            if self.task is not None:
                await self.task
        finally:
            await self.control.stop()
            for name, identity in self.layout.read_running().processes.items():
                child = Child.adopt(identity) if name != "supervisor" else None
                if child is not None:
                    await child.end(1.0)
            await self.node.down()

    async def states(self) -> dict[str, str]:
        return {g["name"]: g["state"] for g in (await self.supervisor.status())["guests"]}

    async def client(self) -> Client:
        return await Client.connect(f"unix:{self.layout.native_socket}")


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 20.0) -> None:
    """Wait until the condition holds; what is asked gives no event of its own."""
    async with asyncio.timeout(seconds):
        while True:
            result = condition()
            if await result if isinstance(result, Awaitable) else result:
                return
            await asyncio.sleep(0.02)


def plan(directory: Path, **settings: Any) -> Layout:
    layout = Layout(directory)
    layout.prepare()
    values: dict[str, Any] = {"http": "127.0.0.1:0", "allow_faults": True}
    given = Settings(**values | settings)
    names = tuple(f"uuid-{number}" for number in range(given.guests + 1))
    layout.write(
        NodeRecord(
            uuids=names, settings=given, kernel="-", initrd="-", image="-", manifest="-",
            accel="tcg", accel_reason="no guests at all",
        )
    )  # fmt: skip
    return layout


@pytest_asyncio.fixture
async def node(scratch: Path) -> AsyncIterator[Running]:
    """Give a node of three that is up and allows faults."""
    running = Running(plan(scratch))
    await running.start()
    assert not running.done(), running.reports
    yield running
    await running.stop()


async def test_it_comes_up_serves_and_leaves_nothing(scratch: Path) -> None:
    running = Running(plan(scratch))
    await running.start()
    status = running.reports[-1]["ready"]
    assert status["standing"] == "ready"
    assert [guest["state"] for guest in status["guests"]] == ["active"] * 3
    assert running.layout.read_running().processes.keys() == {"supervisor", "voter", "proxy"}
    pids = [status["voter"]["pid"], *(guest["pid"] for guest in status["guests"])]
    async with await running.client() as client:
        assert (await client.request("PUT", "/kv/a", b"1")).status == 201
    await running.stop()
    assert [identify(pid) for pid in pids] == [None] * 4
    assert not running.layout.own_sockets()
    assert running.layout.read_running().processes == {}


async def test_a_guest_that_dies_is_put_back_and_no_request_fails(node: Running) -> None:
    async with await node.client() as client:
        await client.request("PUT", "/kv/a", b"1")
        await node.node.machines["g2"].kill()
        for number in range(50):
            assert (await client.request("PUT", "/kv/a", b"%d" % number)).status == 204
        await until(lambda: all_active(node))
        answer = await client.request("GET", "/kv/a")
    assert (answer.body, answer.vote.dissent) == (b"49", 0)
    events = node.supervisor.history.after(0)
    assert [e["guest"] for e in events if e["what"] == "repaired"] == ["g2"]


async def test_a_guest_that_comes_back_yields_until_it_votes(node: Running) -> None:
    guests = node.node.machines
    async with await node.client() as client:
        for number in range(40):  # so that it has something to catch up with
            await client.request("PUT", f"/kv/{number}", bytes(60_000))
    await guests["g2"].kill()
    await until(lambda: guests["g2"].put_backs > 0)
    await until(lambda: all_active(node))
    await until(lambda: not guests["g2"].yields)
    assert guests["g2"].yielded == [True, False]
    assert [guests["g1"].yielded, guests["g3"].yielded] == [[], []], "nobody voted when they came"


async def all_active(node: Running) -> bool:
    return set((await node.states()).values()) == {"active"}


@pytest.mark.parametrize(
    "kind,state,named",
    [
        ("crash", "dead", False),
        ("hang", "paused", False),
        ("corrupt-reply", "expelled", True),
        ("garbage", "expelled", False),
        ("stale-reply", "expelled", True),
        ("wrong-seq", "expelled", False),
    ],
)
async def test_an_injected_fault_is_masked_and_holds_until_healed(
    node: Running, kind: str, state: str, named: bool
) -> None:
    record = await node.supervisor.inject(kind, "g2", None)
    assert record.proof
    async with await node.client() as client:
        for number in range(20):
            answer = await client.request("PUT", f"/kv/{number}", b"%d" % number)
            assert answer.status == 201
        await until(lambda: has_state(node, "g2", state))
        await asyncio.sleep(2.0)  # longer than repair would take: it must not touch this guest
        guest = (await node.supervisor.status())["guests"][1]
        assert (guest["state"], guest["fault"]["kind"]) == (state, kind)
        assert guest["repairs"]["count"] == node.node.machines["g2"].put_backs == 0
        assert (guest["replica"]["dissents"] > 0) == named
        said = await node.supervisor.heal("g2")
        assert said["fault"] == kind
        assert await all_active(node)
        assert node.node.machines["g2"].put_backs == 1  # by `heal` alone, repair kept out of it
        assert (await client.request("GET", "/kv/7")).body == b"7"


async def has_state(node: Running, guest: str, state: str) -> bool:
    return (await node.states())[guest] == state


async def test_a_slow_guest_delays_nobody_and_goes_on_by_itself(node: Running) -> None:
    await node.supervisor.inject("slow", "g3", None)
    async with await node.client() as client:
        agreed = [
            (await client.ask(encode_request("PUT", "/kv/a", [], b"%d" % number)))[0].agreed
            for number in range(50)
        ]
        assert agreed.count(2) > 25, "released before the third has spoken"
    await node.supervisor.heal("g3")
    assert await all_active(node)


async def test_a_fault_with_an_end_heals_by_itself(node: Running) -> None:
    record = await node.supervisor.inject("crash", "g1", 0.5)
    assert record.until is not None
    await until(lambda: not node.supervisor._book.held("g1"))
    await until(lambda: all_active(node))


async def test_faults_that_cannot_be_are_refused(node: Running) -> None:
    with pytest.raises(DeployError, match="no guest 'g9'"):
        await node.supervisor.inject("crash", "g9", None)
    with pytest.raises(FaultRefused, match="corrupt-reply"):
        await node.supervisor.inject("nonsense", "g1", None)
    await node.supervisor.inject("hang", "g1", None)
    with pytest.raises(FaultRefused, match="held by hang"):
        await node.supervisor.inject("garbage", "g1", None)
    # A fault that could not be applied is not in the book: repair may look after the guest.
    with pytest.raises(DeployError, match="no RAM file"):
        await node.supervisor.inject("corrupt-state", "g2", None)
    assert node.supervisor._book.holds.keys() == {"g1"}


async def test_two_liars_are_refused_and_the_sound_guest_is_rebuilt(node: Running) -> None:
    async with await node.client() as client:
        await client.request("PUT", "/kv/a", b"kept")
        await node.supervisor.inject("corrupt-reply", "g2", None)
        await node.supervisor.inject("corrupt-reply", "g3", None)
        with pytest.raises(RequestError):
            await client.request("GET", "/kv/a", timeout=5.0)
        await until(lambda: has_state(node, "g1", "active"))
        assert node.node.machines["g1"].put_backs == 1
        with pytest.raises(NotExecuted):
            await client.request("GET", "/kv/a", timeout=2.0)
        await node.supervisor.heal("g2")
        assert (await client.request("GET", "/kv/a")).body == b"kept"
        assert (await node.supervisor.status())["standing"] == "degraded"


async def test_a_voter_that_is_killed_starts_again_and_refuses_nobody(node: Running) -> None:
    before = (await node.supervisor.status())["voter"]["pid"]
    os.kill(before, signal.SIGKILL)
    async with asyncio.timeout(20):
        async with await node.client() as client:  # waits in the socket's queue meanwhile
            while True:
                with contextlib.suppress(NotExecuted):
                    await client.request("PUT", "/kv/a", b"1")
                    break
                await asyncio.sleep(0.05)
    voter = (await node.supervisor.status())["voter"]
    assert voter["pid"] not in (None, before)
    assert voter["restarts"] == 1


async def nothing() -> None:
    """There is no fault to undo."""


async def test_a_guest_that_votes_is_not_put_back_if_it_is_needed(node: Running) -> None:
    await node.supervisor.inject("crash", "g1", None)
    await until(lambda: has_state(node, "g1", "dead"))
    with pytest.raises(DeployError, match="last 2 that vote"):
        await node.supervisor._repairer.heal("g2", undo=nothing, must=True)
    assert node.node.machines["g2"].put_backs == 0


async def test_a_guest_that_was_only_slow_is_not_put_back(node: Running) -> None:
    await node.supervisor.inject("crash", "g1", None)
    await node.supervisor.inject("slow", "g2", None)
    await until(lambda: has_state(node, "g1", "dead"))
    await node.supervisor.heal("g2")
    assert node.node.machines["g2"].put_backs == 0
    await node.supervisor.heal("g1")
    assert await all_active(node)


async def test_a_repair_that_fails_is_tried_again_and_told(node: Running) -> None:
    guest = node.node.machines["g3"]
    guest.refuse = True
    await guest.kill()
    await until(lambda: node.supervisor._repairer.last_error.get("g3") is not None)
    assert (
        "cannot be put back"
        in (await node.supervisor.status())["guests"][2]["repairs"]["last_error"]
    )
    guest.refuse = False
    await until(lambda: all_active(node))
    assert (await node.supervisor.status())["guests"][2]["repairs"]["last_error"] is None


async def test_with_repair_off_nothing_is_put_back_but_by_hand(scratch: Path) -> None:
    running = Running(plan(scratch, repair="off"))
    await running.start()
    await running.node.machines["g1"].kill()
    await asyncio.sleep(2.0)  # longer than repair would take
    assert (await running.states())["g1"] == "dead"
    await running.supervisor.heal("g1")
    assert await all_active(running)
    await running.stop()


async def test_without_allow_faults_there_is_no_proxy_and_no_fault(scratch: Path) -> None:
    running = Running(plan(scratch, allow_faults=False))
    await running.start()
    assert "proxy" not in running.layout.read_running().processes
    with pytest.raises(FaultRefused, match="does not allow faults"):
        await running.supervisor.inject("crash", "g1", None)
    await running.stop()


class _Broken(FakeNode):
    async def up(self, progress: Progress, *, take_over: bool) -> None:
        await self.machines["g1"].start()
        raise DeployError("g2 never became ready")


async def test_a_start_that_fails_leaves_nothing(scratch: Path) -> None:
    layout = plan(scratch)
    node = _Broken(layout, layout.read_node())
    running = Running(layout, node)
    await running.start()
    assert running.task is not None
    with pytest.raises(DeployError, match="never became ready"):
        await running.task
    await running.control.stop()
    assert node.machines["g1"].pid is None
    assert not layout.own_sockets()


async def test_a_port_in_use_is_told_before_any_guest_starts(node: Running, scratch: Path) -> None:
    http = (await node.supervisor.status())["http"]
    other = scratch / "other"
    running = Running(plan(other, http=http))
    await running.start()
    assert running.task is not None
    with pytest.raises(DeployError, match=f"cannot listen on {http}"):
        await running.task
    await running.control.stop()
    assert not any("ready" in str(report) for report in running.reports)


async def test_the_next_supervisor_adopts_what_a_killed_one_left(scratch: Path) -> None:
    first = Running(plan(scratch))
    await first.start()
    async with await first.client() as client:
        await client.request("PUT", "/kv/a", b"kept")
    await first.supervisor.inject("corrupt-reply", "g3", None)
    before = (await first.supervisor.status())["voter"]["pid"]
    proxy = first.layout.read_running().processes["proxy"]
    assert first.task is not None
    first.task.cancel()
    await asyncio.gather(first.task, return_exceptions=True)
    await first.control.stop()
    assert first.node.let_gone
    async with await first.client() as client:  # the vote goes on with nobody watching
        assert (await client.request("GET", "/kv/a")).body == b"kept"
    second = Running(first.layout, first.node)
    await second.start()
    status = await second.supervisor.status()
    assert status["voter"]["pid"] == before
    assert second.layout.read_running().processes["proxy"] == proxy
    assert status["guests"][2]["fault"]["kind"] == "corrupt-reply"
    async with await second.client() as client:
        assert (await client.request("GET", "/kv/a")).body == b"kept"
    # A voter that dies now has its sockets made anew, at the same address.
    os.kill(before, signal.SIGKILL)
    await until(lambda: has_state(second, "g1", "active"))
    assert (await second.supervisor.status())["http"] == status["http"]
    await second.supervisor.heal("g3")
    await second.stop()
    assert identify(proxy.pid) is None


async def test_the_control_socket_answers_in_words_and_codes(node: Running) -> None:
    def refused(path: str, body: dict[str, Any]) -> CommandError:
        with pytest.raises(CommandError) as caught:
            ask(node.layout, "POST", path, body)
        return caught.value

    status = await asyncio.to_thread(ask, node.layout, "GET", "/status")
    assert status["vote"] == "2/3"
    error = await asyncio.to_thread(refused, "/inject", {"kind": "nonsense", "guest": "g1"})
    assert error.code is ExitCode.NOT_ALLOWED
    error = await asyncio.to_thread(refused, "/inject", {"kind": "crash"})
    assert error.code is ExitCode.USAGE
    error = await asyncio.to_thread(refused, "/heal", {"guest": "g9"})
    assert "it has g1, g2, g3" in str(error)
    lines = await asyncio.to_thread(ask, node.layout, "GET", "/logs/g1?lines=5")
    assert lines["lines"] == ["g1 is a process"]
    mode = node.layout.supervisor_socket.stat().st_mode & 0o777
    assert mode == 0o600


def test_without_a_supervisor_the_client_says_so(scratch: Path) -> None:
    with pytest.raises(NotUp, match="no node runs"):
        ask(Layout(scratch), "GET", "/status")

"""A supervisor in the test's event loop, with a real voter, on guests that are processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from deploy.host.child import Child
from deploy.node.records import Layout, NodeRecord, Settings
from deploy.supervisor.control_server import SupervisorControlServer
from deploy.supervisor.shown_node import open_dashboard
from deploy.supervisor.supervisor import Supervisor
from deploy.watchdog.client import WatchdogClient
from faultinject.faults.node_injector import FaultInjector
from tests.deploy.fake_node import FakeGuest, FakeNode
from tests.waiting import until
from voter.client import Client

__all__ = ["Running", "plan", "running"]


def plan(directory: Path, **settings: Any) -> Layout:
    """Make a node's directory and its record; ``spares`` is the number of its spare slots."""
    layout = Layout(directory)
    layout.prepare()
    values: dict[str, Any] = {"http": "127.0.0.1:0", "allow_faults": True, "dashboard": "off"}
    spares = settings.pop("spares", 1)
    given = Settings(**values | settings)
    slots = range(given.guests + 1 + spares)
    layout.write(
        NodeRecord(
            uuids=tuple(f"uuid-{number}" for number in slots), settings=given,
            kernel="-", initrd="-", image="-", manifest="-", accel="tcg", accel_reason="no VM",
        )
    )  # fmt: skip
    return layout


class Running:
    """A supervisor that serves in the background, and what tests do with it."""

    def __init__(
        self, layout: Layout, node: FakeNode | None = None, watchdog: WatchdogClient | None = None
    ) -> None:
        self.layout = layout
        self.node = FakeNode(layout, layout.read_node()) if node is None else node
        self.reports: list[dict[str, Any]] = []
        self.supervisor = Supervisor(
            layout,
            make_node=lambda layout, record: self.node,
            make_faults=FaultInjector,
            report=self.reports.append,
            watchdog=watchdog,
        )
        self.dashboard = open_dashboard(self.supervisor)
        self.control = SupervisorControlServer(self.supervisor, self.dashboard)
        self.task: asyncio.Task[None] | None = None

    @property
    def guests(self) -> dict[str, FakeGuest]:
        return self.node.guests

    def restores(self) -> list[int]:
        """How often each guest was restored, but for the spare slots."""
        used = [guest for name, guest in self.guests.items() if name not in self.node.spares]
        return [guest.restores for guest in used]

    async def start(self) -> None:
        """Serve; return when the node is ready or the supervisor has failed."""
        await self.control.start()
        if self.dashboard is not None:
            await self.dashboard.start()
        self.task = asyncio.create_task(self.supervisor.serve())
        await until(lambda: "ready" in (self.reports or [{}])[-1] or self.done())

    async def start_ready(self) -> None:
        """Serve; return when the node is ready."""
        await self.start()
        assert not self.done(), self.reports

    async def start_and_fail(self) -> None:
        """Serve; raise what the supervisor raises."""
        await self.start()
        assert self.task is not None
        try:
            await self.task
        finally:
            await self.control.stop()

    def done(self) -> bool:
        return self.task is not None and self.task.done()

    async def stop(self) -> None:
        """End everything, also what a failed supervisor has left."""
        self.supervisor.stop()
        try:
            if self.task is not None:
                await self.task
        finally:
            if self.dashboard is not None:
                await self.dashboard.stop()
            await self.control.stop()
            for name, identity in self.layout.read_running().processes.items():
                child = Child.adopt(identity) if name != "supervisor" else None
                if child is not None:
                    await child.end(1.0)
            await self.node.down()

    async def cut_off(self) -> None:
        """End the supervisor as if it were killed: everything else continues."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.control.stop()

    async def client(self) -> Client:
        return await Client.connect(f"unix:{self.layout.native_socket}")

    async def status(self) -> dict[str, Any]:
        return await self.supervisor.status()

    async def voter_pid(self) -> int:
        pid = (await self.status())["voter"]["pid"]
        assert isinstance(pid, int)
        return pid

    async def states(self) -> dict[str, str]:
        return {guest["name"]: guest["state"] for guest in (await self.status())["guests"]}

    async def has_state(self, guest: str, state: str) -> bool:
        return (await self.states())[guest] == state

    async def all_active(self) -> bool:
        return set((await self.states()).values()) == {"active"}

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events of this name so far."""
        return [event for event in self.supervisor.history.after(0) if event["event"] == name]


@asynccontextmanager
async def running(scratch: Path, **settings: Any) -> AsyncIterator[Running]:
    """Run a node whose guests all vote."""
    node = Running(plan(scratch, **settings))
    await node.start_ready()
    try:
        yield node
    finally:
        await node.stop()

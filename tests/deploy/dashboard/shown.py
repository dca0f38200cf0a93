"""A node that is data, for tests of what the dashboard does with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from deploy.dashboard.access import REQUEST_HEADER
from deploy.dashboard.dashboard import Dashboard
from deploy.errors import DeployError

__all__ = ["FakeSource", "Browser", "browser", "dashboard", "make_status"]

BOUNDS = [0.001, 0.01, 0.1]


def make_status(
    *,
    states: tuple[str, ...] = ("active", "active", "active"),
    released: int = 0,
    masked: int = 0,
    failures: Mapping[str, int] | None = None,
    latency: tuple[int, ...] = (0, 0, 0, 0),
    pid: int = 10,
) -> dict[str, Any]:
    """Return a supervisor's status with what the dashboard reads."""
    guests = [
        {
            "name": f"g{number}", "state": state, "vm": "ready", "pid": None, "fault": None,
            "role": "voter",
            "replica": {"state": state, "reason": "votes", "lag": 0, "dissents": 0},
            "repairs": {
                "count": 0, "in_progress": False, "abandoned": False, "last_error": None,
            },
        }
        for number, state in enumerate(states, 1)
    ]  # fmt: skip
    return {
        "phase": "up", "status": "ready", "vote": "2/3", "service": "kv", "http": "127.0.0.1:8080",
        "dir": "/node", "uuid": "u", "accel": "tcg", "storage": None, "connect_problem": None,
        "repair": "auto", "allow_faults": True, "guests": guests,
        "supervisor": {"restarts": 0}, "rejuvenation": {"done": 0, "failed": 0},
        "durability": {"kind": "fsync", "journal": {"bytes": 1, "position": 1, "synced": 1}},
        "voter": {
            "pid": pid, "seq": 1, "compiled": False, "pending": 0, "restarts": 0,
            "counters": {
                "released": released, "masked": masked, "failures": dict(failures or {}),
            },
            "latency": {"bounds": BOUNDS, "counts": list(latency)},
        },
    }  # fmt: skip


class FakeSource:
    """A node without machines (implements dashboard.collector.NodeSource)."""

    def __init__(self) -> None:
        self.shown = make_status()
        self.events: list[dict[str, Any]] = []
        self.asked = 0
        self.orders: list[tuple[Any, ...]] = []
        self.healing = asyncio.Event()
        self.healing.set()

    def add(self, event: str, guest: str, **details: Any) -> None:
        number = len(self.events) + 1
        self.events.append({"id": number, "time": 0.0, "event": event, "guest": guest, **details})

    async def status(self) -> dict[str, Any]:
        self.asked += 1
        return self.shown

    def events_after(self, since: int) -> list[dict[str, Any]]:
        return [event for event in self.events if event["id"] > since]

    @property
    def fault_kinds(self) -> Mapping[str, str]:
        return {"crash": "it ends"}

    @property
    def faults_hint(self) -> str:
        return "allow them"

    async def inject(self, kind: str, guest: str, seconds: float | None) -> None:
        if guest not in ("g1", "g2", "g3"):
            raise DeployError(f"no guest {guest}", remedy="name another")
        self.orders.append(("inject", kind, guest, seconds))

    async def heal(self, guest: str) -> dict[str, Any]:
        await self.healing.wait()
        self.orders.append(("heal", guest))
        return {"guest": guest, "fault": None, "seconds": 0.5}


class Browser:
    """What a browser does: it keeps cookies, and sends the headers that a page's script sends."""

    def __init__(self, shown: Dashboard) -> None:
        self.dashboard = shown
        self.base = f"http://{shown.address}"
        self.session = aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))

    @property
    def own(self) -> dict[str, str]:
        """The headers of the page's own requests."""
        return {REQUEST_HEADER: "dashboard", "Origin": self.base, "Sec-Fetch-Site": "same-origin"}

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        async with self.session.get(self.base + path, headers=headers) as answer:
            return answer.status, await answer.text()

    async def post(
        self, path: str, body: object, headers: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        sent = self.own if headers is None else headers
        async with self.session.post(self.base + path, json=body, headers=sent) as answer:
            return answer.status, await answer.text()

    def token(self) -> str:
        return self.dashboard.new_link().partition("#")[2]

    async def log_in(self) -> None:
        assert await self.post("/api/login", {"token": self.token()}) == (204, "")


@asynccontextmanager
async def dashboard(node: FakeSource, wanted: str = "127.0.0.1:0") -> AsyncIterator[Dashboard]:
    """Serve a node's dashboard."""
    shown = Dashboard(node, wanted=wanted, before=None, uuid="u")
    await shown.start()
    try:
        yield shown
    finally:
        await shown.stop()


@asynccontextmanager
async def browser(shown: Dashboard) -> AsyncIterator[Browser]:
    """Open a browser."""
    opened = Browser(shown)
    try:
        yield opened
    finally:
        await opened.session.close()

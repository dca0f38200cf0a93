"""The story of ``trivisor demo``: fault masking on three real guests, every claim checked.

The demo uses what a user uses: a node as ``trivisor up`` starts it, the supervisor's control socket
and the native client.  It records each claim with what it observed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from deploy.commands.control_client import ask
from deploy.commands.launch import follow_start, prepare_node
from deploy.host.identity import ProcessIdentity, identify
from deploy.node.records import Layout, NodeRecord, Settings
from faultinject.history.workload import (
    CallOutcome,
    CheckedHistory,
    WorkloadCall,
    check,
    mixed_calls,
    run_calls,
)
from faultinject.load import percentile
from voter.client import Client

__all__ = ["DemoClaim", "Demo", "DemoSummary"]

KEYS = 40
IN_FLIGHT = 4
STALL = 2.0
"""A request that takes longer than so many seconds counts as stalled."""
TIMEOUT = 30.0
"""Seconds that a guest has to leave the vote, and processes to end; then a claim fails."""


class DemoClaim(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the demo claims, whether it holds, and what was observed."""

    claim: str
    held: bool
    seen: str


class DemoSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The demo's result.  Latencies in seconds."""

    seed: int
    requests: int
    correct: int
    masked: int  # released while a guest was dead or lying
    refused: int  # by the voter, before execution
    wrong: int
    unanswered: int
    p50: float
    p99: float
    claims: list[DemoClaim]
    seconds: float

    @property
    def held(self) -> bool:
        """Whether every claim held."""
        return all(claim.held for claim in self.claims)


class Narrator:
    """Prints progress for a person; nothing if ``quiet``."""

    def __init__(self, *, quiet: bool) -> None:
        from voter.commands.terminal import console  # noqa: PLC0415 - rich, only when shown

        self.began = time.monotonic()
        self.console = console(stderr=quiet)
        self._quiet = quiet

    def step(self, text: str) -> None:
        """Print one step, with the seconds since the start."""
        if not self._quiet:
            from rich.markup import escape  # noqa: PLC0415

            took = time.monotonic() - self.began
            self.console.print(f"[dim]{took:6.1f} s[/]  {escape(text)}")

    def chapter(self, text: str) -> None:
        """Print a heading."""
        if not self._quiet:
            self.console.print(f"\n[bold]{text}[/]")


class Demo:
    """One run of the demo.  ``run`` does all of it."""

    def __init__(self, directory: Path, *, seed: int, requests: int, narrator: Narrator) -> None:
        self._layout = Layout(directory / "node")
        self._seed = seed
        self._requests = requests
        self._say = narrator
        self._calls: Iterator[WorkloadCall] = mixed_calls(seed, keys=KEYS)
        self._outcomes: list[CallOutcome] = []
        self._claims: list[DemoClaim] = []
        self._faulty: list[tuple[float, float]] = []  # monotonic times with a faulty guest

    def run(self, settings: Settings) -> DemoSummary:
        """Show everything; leave no process behind, also after an error."""
        began = time.monotonic()
        self._say.chapter("1. Boot three guests")
        record = prepare_node(self._layout, settings, self._say.step)
        self._describe_image(record)
        status = follow_start(self._layout, self._say.step)
        processes = self._processes(status)
        try:
            asyncio.run(self._story(status))
            self._say.chapter("7. Stop everything")
        finally:
            processes |= self._stop_node()
        self._claim_stopped(processes)
        return self._summarize(time.monotonic() - began)

    async def _story(self, status: dict[str, Any]) -> None:
        async with await Client.connect(f"unix:{status['native_unix']}") as client:
            await self._vote(client)
            with self._faulty_guest():
                await self._crash(client)
            with self._faulty_guest():
                await self._lie(client)
                await self._refuse(client)
            await self._heal(client)

    @contextlib.contextmanager
    def _faulty_guest(self) -> Iterator[None]:
        """Count replies released inside the block as masked."""
        since = time.monotonic()
        yield
        self._faulty.append((since, time.monotonic()))

    async def _vote(self, client: Client) -> None:
        self._say.chapter(f"2. Make {self._requests} requests, each answered by a vote of three")
        outcomes = await self._make(client, self._requests)
        kinds = Counter(outcome.call.kind for outcome in outcomes)
        self._say.step(", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items())))
        self._claim_answered("every request is answered", outcomes)

    async def _crash(self, client: Client) -> None:
        self._say.chapter("3. Kill guest 2 under load, then repair it")
        before = self._guest("g2")
        async with self._load(client) as load:
            said = await self._call("POST", "/inject", {"kind": "crash", "guest": "g2"})
            self._say.step(f"crash of g2 injected: {said['proof']}")
            gone = not Path(f"/proc/{before['pid']}").exists()
            self._claim("guest 2 is dead", gone, f"its QEMU, process {before['pid']}, has ended")
            await self._wait_inactive("g2", "g2 no longer votes")
            await load.more(self._requests // 3)
            healed = await self._call("POST", "/heal", {"guest": "g2"})
            self._say.step(f"g2 repaired: votes again after {healed['seconds']:.2f} s")
            await load.more(self._requests // 6)
        again = self._guest("g2")
        self._claim(
            "guest 2 votes again",
            again["state"] == "active" and again["pid"] != before["pid"],
            f"state {again['state']}, process {again['pid']}",
        )
        self._claim_answered("no request failed or stalled meanwhile", load.outcomes)

    async def _lie(self, client: Client) -> None:
        self._say.chapter("4. Let guest 3 return wrong replies")
        async with self._load(client) as load:
            said = await self._call("POST", "/inject", {"kind": "corrupt-reply", "guest": "g3"})
            self._say.step(f"corrupt-reply on g3 injected: {said['proof']}")
            await self._wait_inactive("g3", "the voter excludes g3")
            await load.more(self._requests // 6)
        replica = await self._dissenter("g3")
        self._claim(
            "the voter names the lying guest",
            replica["state"] == "expelled" and (replica["dissents"] or 0) >= 1,
            f"g3 is {replica['state']} after {replica['dissents']} dissenting reply",
        )
        self._claim_answered("no client notices", load.outcomes)

    async def _refuse(self, client: Client) -> None:
        self._say.chapter("5. Kill guest 1 as well: no majority is left")
        await self._call("POST", "/inject", {"kind": "crash", "guest": "g1"})
        await self._wait_inactive("g1", "g1 no longer votes")
        outcomes = await self._make(client, 20)
        failures = Counter(outcome.failure or "released" for outcome in outcomes)
        self._claim(
            "the voter refuses requests instead of guessing",
            set(failures) == {"not-executed"},
            ", ".join(f"{number} {what}" for what, number in failures.items()),
        )

    async def _heal(self, client: Client) -> None:
        self._say.chapter("6. Repair all guests")
        for name in ("g1", "g3"):
            healed = await self._call("POST", "/heal", {"guest": name})
            self._say.step(f"{name} repaired: votes again after {healed['seconds']:.2f} s")
        outcomes = await self._make(client, self._requests // 3)
        status = await self._call("GET", "/status")
        states = {guest["name"]: guest["state"] for guest in status["guests"]}
        self._claim(
            "all three vote again",
            set(states.values()) == {"active"},
            ", ".join(f"{name} {state}" for name, state in states.items()),
        )
        self._claim_answered("every request is answered again", outcomes)

    async def _make(self, client: Client, number: int) -> list[CallOutcome]:
        outcomes = await run_calls(client, islice(self._calls, number), in_flight=IN_FLIGHT)
        self._outcomes += outcomes
        return outcomes

    @contextlib.asynccontextmanager
    async def _load(self, client: Client) -> AsyncIterator[_Load]:
        """Make requests in the background."""
        load = _Load(client, self._calls)
        try:
            await load.more(IN_FLIGHT)
            yield load
        finally:
            await load.stop()
            self._outcomes += load.outcomes

    async def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return await asyncio.to_thread(ask, self._layout, method, path, body, timeout=60.0)

    def _guest(self, name: str) -> dict[str, Any]:
        guests = ask(self._layout, "GET", "/status")["guests"]
        return next(guest for guest in guests if guest["name"] == name)

    async def _dissenter(self, name: str) -> dict[str, Any]:
        """Return a replica's status once its dissent is counted; the count follows the state."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            replica: dict[str, Any] = (await asyncio.to_thread(self._guest, name))["replica"]
            if replica["dissents"] or time.monotonic() > deadline:
                return replica
            await asyncio.sleep(0.02)  # the supervisor is another process: poll

    async def _wait_inactive(self, name: str, text: str) -> None:
        """Wait until the supervisor reports that a guest does not vote."""
        began = time.monotonic()
        while True:
            guest = await asyncio.to_thread(self._guest, name)
            if guest["state"] != "active":
                self._say.step(f"{text} (after {time.monotonic() - began:.2f} s)")
                return
            if time.monotonic() - began > TIMEOUT:
                self._claim(text, held=False, seen=json.dumps(guest, allow_nan=False))
                return
            await asyncio.sleep(0.02)  # the supervisor is another process: poll

    def _claim(self, claim: str, held: bool, seen: str) -> None:
        self._claims.append(DemoClaim(claim=claim, held=held, seen=seen))
        self._say.step(f"{'✓' if held else '✗'} {claim}: {seen}")

    def _claim_answered(self, claim: str, outcomes: list[CallOutcome]) -> None:
        failed = [outcome for outcome in outcomes if outcome.failure]
        slowest = max((outcome.latency for outcome in outcomes), default=0.0)
        held = not failed and slowest < STALL and len(outcomes) > 0
        text = f"{len(outcomes) - len(failed)} of {len(outcomes)}, slowest {slowest * 1e3:.0f} ms"
        if failed:
            text += f"; failed: {dict(Counter(outcome.failure for outcome in failed))}"
        self._claim(claim, held, text)

    def _describe_image(self, record: NodeRecord) -> None:
        manifest = json.loads(Path(record.manifest).read_text())
        versions = {package["name"]: package["version"] for package in manifest["packages"]}
        self._say.step(
            f"guests run Linux {versions['linux-image-cloud-amd64']}, Python "
            f"{versions['python3.11-minimal']} and the key-value service; "
            f"initrd {Path(record.initrd).stat().st_size / 1e6:.1f} MB"
        )

    @staticmethod
    def _processes(status: dict[str, Any]) -> set[ProcessIdentity]:
        pids = [status["voter"]["pid"], status["supervisor"]["pid"]]
        pids += [guest["pid"] for guest in status["guests"]]
        return {found for pid in pids if pid and (found := identify(pid)) is not None}

    def _stop_node(self) -> set[ProcessIdentity]:
        processes = self._processes(ask(self._layout, "GET", "/status"))
        ask(self._layout, "POST", "/down", timeout=60.0)
        deadline = time.monotonic() + TIMEOUT
        while any(process.alive for process in processes) and time.monotonic() < deadline:
            time.sleep(0.05)  # they are not our children: poll
        return processes

    def _claim_stopped(self, processes: set[ProcessIdentity]) -> None:
        alive = sorted(process.pid for process in processes if process.alive)
        sockets = sorted(
            path.name for path in self._layout.directory.rglob("*") if path.is_socket()
        )
        self._claim(
            "nothing is left running",
            not alive and not sockets,
            f"{len(processes) - len(alive)} processes ended"
            + (f"; alive: {alive}" if alive else "")
            + (f"; sockets: {sockets}" if sockets else ""),
        )

    def _summarize(self, seconds: float) -> DemoSummary:
        verdicts: CheckedHistory = check(self._outcomes)
        released = [outcome for outcome in self._outcomes if not outcome.failure]
        refused = sum(not outcome.executed for outcome in self._outcomes)
        seen = f"{verdicts.correct} correct, {verdicts.wrong} wrong, {verdicts.unknown} unknown"
        self._claim(
            "every reply equals that of a single correct service",
            verdicts.wrong == 0 and verdicts.unknown == 0 and verdicts.correct == len(released),
            "; ".join([seen, *verdicts.complaints]),
        )
        latencies = [outcome.latency for outcome in released]
        return DemoSummary(
            seed=self._seed,
            requests=len(self._outcomes),
            correct=verdicts.correct,
            masked=sum(
                any(since <= o.ended and o.started <= until for since, until in self._faulty)
                for o in released
            ),
            refused=refused,
            wrong=verdicts.wrong,
            unanswered=len(self._outcomes) - len(released) - refused,
            p50=percentile(latencies, 0.5),
            p99=percentile(latencies, 0.99),
            claims=self._claims,
            seconds=seconds,
        )


class _Load:
    """Requests in the background, until ``stop``."""

    def __init__(self, client: Client, calls: Iterator[WorkloadCall]) -> None:
        self.outcomes: list[CallOutcome] = []
        self._client = client
        self._calls = calls
        self._stopping = False
        self._task = asyncio.create_task(self._run(), name="demo load")

    async def _run(self) -> None:
        while not self._stopping:
            self.outcomes += await run_calls(
                self._client, islice(self._calls, IN_FLIGHT * 4), in_flight=IN_FLIGHT
            )

    async def more(self, number: int) -> None:
        """Wait until ``number`` more requests have ended."""
        wanted = len(self.outcomes) + number
        while len(self.outcomes) < wanted:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.01)  # the load is a task of this loop: poll its count

    async def stop(self) -> None:
        """Stop after the requests in flight."""
        self._stopping = True
        await self._task

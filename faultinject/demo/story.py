"""``trivisor demo``: the main job, shown on three real guests, with every claim checked.

Uses what a user uses: the node of ``trivisor up``, the supervisor's control socket, the native
client.  Each claim is written down with what was seen; the exit code is 0 only if all of them
held.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
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
    ReplyCheck,
    ReplyVerdicts,
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
"""Seconds without any reply that the demo calls a stall."""


class DemoClaim(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the demo says is so, whether it was, and what was seen."""

    claim: str
    held: bool
    seen: str


class DemoSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo found.  Latencies in seconds."""

    seed: int
    requests: int
    correct: int
    masked: int  # released while a guest was bad
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
    """Tells a person how the demo goes on; silent with ``--json``."""

    def __init__(self, *, quiet: bool) -> None:
        from voter.commands.terminal import console  # noqa: PLC0415 - rich, only when shown

        self.began = time.monotonic()
        self.console = console(stderr=quiet)
        self._quiet = quiet

    def step(self, text: str) -> None:
        """One small step, with the seconds since the start."""
        if not self._quiet:
            from rich.markup import escape  # noqa: PLC0415

            took = time.monotonic() - self.began
            self.console.print(f"[dim]{took:6.1f} s[/]  {escape(text)}")

    def chapter(self, text: str) -> None:
        """The next part begins."""
        if not self._quiet:
            self.console.print(f"\n[bold]{text}[/]")


class Demo:
    """One run of the demo.  ``run`` does all of it."""

    def __init__(self, *, seed: int, requests: int, narrator: Narrator) -> None:
        self._seed = seed
        self._requests = requests
        self._say = narrator
        self._calls: Iterator[WorkloadCall] = mixed_calls(seed, keys=KEYS)
        self._outcomes: list[ReplyCheck] = []
        self._claims: list[DemoClaim] = []
        self._layout: Layout | None = None
        self._faulty: list[tuple[float, float]] = []  # steady times between which a guest was bad

    # ----------------------------------------------------------- the story

    def run(self, settings: Settings) -> DemoSummary:
        """Show everything, and leave nothing behind, whatever happens."""
        began = time.monotonic()
        directory = Path(tempfile.mkdtemp(prefix="tv-demo-"))
        layout = self._layout = Layout(directory / "node")
        try:
            self._say.chapter("1. The host, the guest image, three guests side by side")
            record = prepare_node(layout, settings, self._say.step)
            self._tell_image(record)
            status = follow_start(layout, self._say.step)
            processes = self._processes(status)
            try:
                asyncio.run(self._story(status))
            finally:
                self._say.chapter("7. Everything is stopped")
                processes |= self._take_down(layout)
            self._nothing_left(layout, processes)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        return self._summarize(time.monotonic() - began)

    async def _story(self, status: dict[str, Any]) -> None:
        async with await Client.connect(f"unix:{status['native_unix']}") as client:
            await self._voted(client)
            with self._bad_guest():
                await self._crash(client)
            with self._bad_guest():
                await self._lie(client)
                await self._refuse(client)
            await self._heal(client)

    @contextlib.contextmanager
    def _bad_guest(self) -> Iterator[None]:
        """What is released meanwhile is released in spite of a bad guest: masked."""
        since = time.monotonic()
        yield
        self._faulty.append((since, time.monotonic()))

    async def _voted(self, client: Client) -> None:
        self._say.chapter(f"2. {self._requests} requests of mixed kinds, each voted by three")
        outcomes = await self._make(client, self._requests)
        kinds = Counter(outcome.call.kind for outcome in outcomes)
        self._say.step(", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items())))
        self._claim_answered("all requests are answered by a vote", outcomes)

    async def _crash(self, client: Client) -> None:
        self._say.chapter("3. Guest 2's QEMU is killed under load, and put back")
        before = self._guest("g2")
        async with self._load(client) as load:
            said = await self._ask("POST", "/inject", {"kind": "crash", "guest": "g2"})
            self._say.step(f"crash of g2: {said['proof']}")
            gone = not Path(f"/proc/{before['pid']}").exists()
            self._claim("guest 2's QEMU is gone", gone, f"process {before['pid']} has ended")
            await self._until("g2", lambda g: g["state"] != "active", "g2 is out of the vote")
            await load.more(self._requests // 3)
            healed = await self._ask("POST", "/heal", {"guest": "g2"})
            self._say.step(f"g2 put back: votes again {healed['seconds']:.2f} s after heal")
            await load.more(self._requests // 6)
        again = self._guest("g2")
        self._claim(
            "guest 2 is back and votes",
            again["state"] == "active" and again["pid"] != before["pid"],
            f"state {again['state']}, process {again['pid']}",
        )
        self._claim_answered("no request failed or stalled meanwhile", load.outcomes)

    async def _lie(self, client: Client) -> None:
        self._say.chapter("4. Guest 3 starts to lie")
        async with self._load(client) as load:
            said = await self._ask("POST", "/inject", {"kind": "corrupt-reply", "guest": "g3"})
            self._say.step(f"corrupt-reply on g3: {said['proof']}")
            guest = await self._until(
                "g3", lambda g: g["state"] != "active", "g3 is named as the dissenter"
            )
            await load.more(self._requests // 6)
        replica = guest["replica"]
        self._claim(
            "the liar is named",
            replica["state"] == "expelled" and (replica["dissents"] or 0) >= 1,
            f"g3: {replica['state']}, {replica['reason']}, {replica['dissents']} dissent",
        )
        self._claim_answered("the lie is masked: requests go on", load.outcomes)

    async def _refuse(self, client: Client) -> None:
        self._say.chapter("5. Guest 1 is killed too: two of three are bad")
        await self._ask("POST", "/inject", {"kind": "crash", "guest": "g1"})
        await self._until("g1", lambda g: g["state"] != "active", "g1 is out of the vote")
        outcomes = await self._make(client, 20)
        failures = Counter(outcome.failure or "released" for outcome in outcomes)
        self._claim(
            "without a majority the voter refuses rather than guess",
            set(failures) == {"not-executed"},
            ", ".join(f"{number} {what}" for what, number in failures.items()),
        )

    async def _heal(self, client: Client) -> None:
        self._say.chapter("6. All is healed")
        for name in ("g1", "g3"):
            healed = await self._ask("POST", "/heal", {"guest": name})
            self._say.step(
                f"{name}: {healed['fault']} undone, votes again after {healed['seconds']:.2f} s"
            )
        outcomes = await self._make(client, self._requests // 3)
        status = await self._ask("GET", "/status")
        states = {guest["name"]: guest["state"] for guest in status["guests"]}
        self._claim(
            "all three vote again",
            set(states.values()) == {"active"},
            ", ".join(f"{name} {state}" for name, state in states.items()),
        )
        self._claim_answered("requests are answered as before", outcomes)

    # -------------------------------------------------------------- pieces

    async def _make(self, client: Client, number: int) -> list[ReplyCheck]:
        outcomes = await run_calls(client, islice(self._calls, number), in_flight=IN_FLIGHT)
        self._outcomes += outcomes
        return outcomes

    @contextlib.asynccontextmanager
    async def _load(self, client: Client) -> AsyncIterator[_Load]:
        """Have requests made all the while."""
        load = _Load(client, self._calls)
        try:
            await load.more(IN_FLIGHT)
            yield load
        finally:
            await load.stop()
            self._outcomes += load.outcomes

    async def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        assert self._layout is not None
        return await asyncio.to_thread(ask, self._layout, method, path, body, timeout=60.0)

    def _guest(self, name: str) -> dict[str, Any]:
        assert self._layout is not None
        guests = ask(self._layout, "GET", "/status")["guests"]
        return next(guest for guest in guests if guest["name"] == name)

    async def _until(self, name: str, condition: Any, words: str) -> dict[str, Any]:
        """Wait until the supervisor says of a guest what ``condition`` asks for."""
        began = time.monotonic()
        while True:
            guest = await asyncio.to_thread(self._guest, name)
            if condition(guest):
                self._say.step(f"{words} (after {time.monotonic() - began:.2f} s)")
                return guest
            if time.monotonic() - began > 30:
                self._claim(words, held=False, seen=json.dumps(guest))
                return guest
            await asyncio.sleep(0.02)  # the supervisor is another process: ask again

    def _claim(self, claim: str, held: bool, seen: str) -> None:
        self._claims.append(DemoClaim(claim=claim, held=held, seen=seen))
        self._say.step(f"{'✓' if held else '✗'} {claim}: {seen}")

    def _claim_answered(self, claim: str, outcomes: list[ReplyCheck]) -> None:
        failed = [outcome for outcome in outcomes if outcome.failure]
        slowest = max((outcome.latency for outcome in outcomes), default=0.0)
        held = not failed and slowest < STALL and len(outcomes) > 0
        text = f"{len(outcomes) - len(failed)} of {len(outcomes)}, slowest {slowest * 1e3:.0f} ms"
        if failed:
            text += f"; failed: {dict(Counter(outcome.failure for outcome in failed))}"
        self._claim(claim, held, text)

    def _tell_image(self, record: NodeRecord) -> None:
        manifest = json.loads(Path(record.manifest).read_text())
        versions = {package["name"]: package["version"] for package in manifest["packages"]}
        self._say.step(
            f"in it: Linux {versions['linux-image-cloud-amd64']}, Python "
            f"{versions['python3.11-minimal']}, busybox {versions['busybox-static']}, the agent "
            f"and the services; {len(manifest['files'])} files of {len(versions)} Debian packages, "
            f"initrd {Path(record.initrd).stat().st_size / 1e6:.1f} MB; SHA-256 {record.image}"
        )

    @staticmethod
    def _processes(status: dict[str, Any]) -> set[ProcessIdentity]:
        pids = [status["voter"]["pid"], status["supervisor"]["pid"]]
        pids += [guest["pid"] for guest in status["guests"]]
        return {found for pid in pids if pid and (found := identify(pid)) is not None}

    def _take_down(self, layout: Layout) -> set[ProcessIdentity]:
        processes = self._processes(ask(layout, "GET", "/status"))
        ask(layout, "POST", "/down", timeout=60.0)
        deadline = time.monotonic() + 30
        while any(process.alive for process in processes) and time.monotonic() < deadline:
            time.sleep(0.05)  # sessions of their own: there is nothing to wait on
        return processes

    def _nothing_left(self, layout: Layout, processes: set[ProcessIdentity]) -> None:
        alive = sorted(process.pid for process in processes if process.alive)
        sockets = sorted(path.name for path in layout.directory.rglob("*") if path.is_socket())
        self._claim(
            "nothing is left running",
            not alive and not sockets,
            f"{len(processes) - len(alive)} processes ended"
            + (f"; alive: {alive}" if alive else "")
            + (f"; sockets: {sockets}" if sockets else ""),
        )

    def _summarize(self, seconds: float) -> DemoSummary:
        verdicts: ReplyVerdicts = check(self._outcomes)
        released = [outcome for outcome in self._outcomes if not outcome.failure]
        refused = sum(not outcome.executed for outcome in self._outcomes)
        seen = f"{verdicts.correct} correct, {verdicts.wrong} wrong, {verdicts.unknown} unknown"
        self._claim(
            "every released reply is what a single correct service answers",
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
    """Requests that are made all the while something else happens."""

    def __init__(self, client: Client, calls: Iterator[WorkloadCall]) -> None:
        self.outcomes: list[ReplyCheck] = []
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
            await asyncio.sleep(0.01)  # counts of the load's own task, in this loop

    async def stop(self) -> None:
        """End after what is under way."""
        self._stopping = True
        await self._task

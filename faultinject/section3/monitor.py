"""The experiment `monitor`: what a fail-safe monitor prevents, from a flaw's disclosure on.

Each trial is one mission on three real guests behind a real voter: clients of a service with three
planted flaws (``faultinject.services.archive``), and a monitor with one rule for each flaw.

- *exploit*: an attacker sends exploits at random times, RATE a second on average.  The monitor
  decides inline, or it reads the tap on ordered requests, waits as long as a slower detector would
  take, and ends the voter.  Counted are the unsafe replies that were released until then.  These
  arms predict nothing: a first prediction, 1 - exp(-RATE x delay), was refuted for 10 ms, because
  it left out that a reply takes some milliseconds itself.
- *variant*: one exploit that is written in another way, against inline rules.
- *benign*: 20 requests of well-behaved clients, against inline rules.

The monitor's judge, its inline server and the tap's reader are the product's.  To stop the node,
the trial kills the voter by its pidfd, as the action `crash` does first; the guests are kept for
the next trial, which begins with a fresh voter and an empty state.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from deploy.monitor.control import ControlError, lines
from deploy.monitor.inline import InlineServer
from deploy.monitor.requests import Match, RequestJudge, SeenRequest
from deploy.monitor.rule_file import parse_rules
from deploy.monitor.targets import Targets
from faultinject.campaign.mission.node_fixture import NodeFixture
from faultinject.campaign.mission.voters import MissionVoter
from faultinject.campaign.records import NodeSpec
from faultinject.experiment.design import Arm, Experiment, Outcome, Rig, Trial
from faultinject.services import archive
from voter.client import Client
from voter.client.errors import RequestError

__all__ = ["BENIGN_REQUESTS", "EXPERIMENT", "EXPLOITS", "RATE", "RULES", "VARIANTS", "benign"]

RULES = r"""
[[request]]
name = "traversal"
path = '\.\./'
action = "crash"

[[request]]
name = "overflow"
method = ["POST"]
path = '^/points/'
body = '[0-9]{10}'
action = "crash"

[[request]]
name = "injection"
path = '^/search$'
query = "' or '"
action = "crash"
"""
"""One rule for each flaw, written from the exploits below.  The variants were written afterwards,
by the same author; the rules were not changed since."""


class Call(NamedTuple):
    """A request."""

    method: str
    target: str
    body: bytes = b""


EXPLOITS: Mapping[str, Call] = {
    "traversal": Call("GET", "/files/../private/key-1"),
    "overflow": Call("POST", "/points/mallory", b"4294967295"),
    "injection": Call("GET", "/search?q=" + quote("x' or 'a'='a")),
}
"""The exploits that the rules' author knows, by flaw."""

VARIANTS: Mapping[str, tuple[Call, ...]] = {
    "traversal": (
        Call("GET", "/files/%2e%2e%2fprivate%2fkey-1"),
        Call("GET", "/files/..%2fprivate/key-1"),
        Call("GET", "/files/%252e%252e%252fprivate%252fkey-1"),
        Call("GET", "/files/a/.././../private/key-1"),
        Call("GET", "/files/..%252fprivate/key-1"),
    ),
    "overflow": (
        Call("POST", "/points/mallory", b"4_294_967_295"),
        Call("POST", "/points/mallory", b" +4294967295\n"),
        Call("POST", "/points/mallory", b"0000000004294967295"),
        Call("POST", "/points/mallory", "\uff14294967295".encode()),
        Call("POST", "/points/mallory", b"42949672_95"),
    ),
    "injection": (
        Call("GET", "/search?q=" + quote("x' OR 'a'='a")),
        Call("GET", "/search?q=" + quote("x'\tor\t'a'='a")),
        Call("GET", "/search?q=" + quote("x'||'a'='a")),
        Call("GET", "/search?q=x%27+or+%27a%27=%27a"),
        Call("GET", "/search?q=" + quote("x'/**/or/**/'a'='a")),
    ),
}
"""Other forms of the same attacks, by flaw: encodings, white space, signs, case, comments."""

RATE = 20.0
"""Exploits a second after the first one (a Poisson process)."""
INLINE_WINDOW = 0.2
"""Seconds for which the attacker goes on against an inline monitor."""
BENIGN_REQUESTS = 20
LARGE = 0.01
"""Share of legitimate amounts with ten digits, in the arm that has them."""
_WRITES = 0.4
PATIENCE = 30.0
"""Seconds for the guests to vote, and for a reply."""
_DETECTIONS = {"10 ms": 0.01, "50 ms": 0.05, "200 ms": 0.2}
_FLAWS = tuple(EXPLOITS)


def benign(draw: random.Random, *, large: bool) -> Call:
    """Draw a request of a well-behaved client; some look like attacks at a first glance."""
    if draw.random() < _WRITES:
        ten = large and draw.random() < LARGE
        amount = draw.randint(10**9, 2 * 10**9) if ten else draw.randint(1, 999_999_999)
        return Call("POST", f"/points/user-{draw.getrandbits(60):x}", str(amount).encode())
    if draw.random() < 0.5:
        name = draw.choice(("doc-1", "doc-7", "notes..old", "doc..2", "a%20..%20b"))
        return Call("GET", f"/files/{name}")
    terms = ("doc", "O'Brien", "salt or pepper", "rock 'n' roll", "'or'", "either or", "1=1")
    return Call("GET", "/search?q=" + quote(draw.choice(terms)))


class _Stop:
    """The monitor of one trial that is not inline: it ends the voter after a delay."""

    def __init__(self, control: Path, voter: MissionVoter, delay: float) -> None:
        self._control = control
        self._targets = Targets()
        self._targets.hold([voter.pid])
        self._delay = delay
        self._judge = RequestJudge(parse_rules(RULES, "rules").request)
        self.reading = asyncio.Event()
        self.at = 0.0
        """When the voter was ended (steady clock); 0: it was not."""
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        with contextlib.suppress(ControlError):
            async for document in lines(self._control, "/requests"):
                self.reading.set()
                if document and self._judge.judge(_seen(document)):
                    await asyncio.sleep(self._delay)  # it is the quantity that is varied
                    self.at = time.monotonic()
                    for pidfd in self._targets.pidfds:
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    return

    async def wait(self) -> None:
        """Wait until the voter is ended."""
        async with asyncio.timeout(PATIENCE):
            await self._task

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._targets.close()


def _seen(document: dict[str, object]) -> SeenRequest:
    data = base64.b64decode(str(document["request"]))
    return SeenRequest(int(str(document["seq"])), 0.0, str(document["caller"]), False, data)


class _Attack:
    """The attacker of one trial, and what it got."""

    def __init__(self, client: Client, call: Call) -> None:
        self._client = client
        self._call = call
        self._tasks: list[asyncio.Task[None]] = []
        self.unsafe = 0
        self.forbidden = 0

    async def once(self) -> None:
        """Send one exploit."""
        try:
            answer = await self._client.request(*self._call, timeout=PATIENCE)
        except RequestError:
            return  # the voter has ended
        self.unsafe += archive.is_unsafe(answer.body)
        self.forbidden += answer.status == 403

    async def go_on(self, draw: random.Random) -> None:
        """Send exploits at random times until cancelled, none waiting for another."""
        self._tasks.append(asyncio.create_task(self.once()))
        while True:
            await asyncio.sleep(draw.expovariate(RATE))  # the attack's times are the trial
            self._tasks.append(asyncio.create_task(self.once()))

    async def settle(self) -> None:
        """Wait for what was sent."""
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Rig:
    def __init__(self, node: NodeFixture, directory: Path) -> None:
        self._node = node
        self._socket = directory / "m.sock"
        self._matched = 0
        rules = parse_rules(RULES, "rules").request
        self._inline = InlineServer(self._socket, rules, self._count)

    def _count(self, matches: list[Match]) -> None:
        self._matched += len(matches)

    async def open(self) -> None:
        await self._inline.start()

    def close(self) -> None:
        self._inline.stop()

    @property
    def facts(self) -> Mapping[str, str]:
        facts = self._node.facts
        return {
            "accel": facts.accel,
            "guest": "QEMU through libvirt",
            "qemu": facts.qemu,
            "image": facts.image,
            "stopped by": "SIGKILL of the voter; the guests are kept for the next trial",
        }

    async def run(self, trial: Trial) -> Outcome:
        """Run one mission."""
        kind, inline = str(trial.parameters["kind"]), bool(trial.parameters["inline"])
        self._matched = 0
        function = f"unix:{self._socket}" if inline else ""
        voter = await self._node.start_voter("2/3", function=function)
        try:
            await voter.all_vote(PATIENCE)
            if kind == "benign":
                return await self._benign(trial)
            if kind == "variant":
                flaw = str(trial.parameters["flaw"])
                return await self._variant(VARIANTS[flaw][trial.number % len(VARIANTS[flaw])])
            return await self._exploit(trial, voter, inline=inline)
        finally:
            await self._node.end_voter()

    async def _client(self) -> Client:
        return await Client.connect(self._node.client_address, retry=False)

    async def _benign(self, trial: Trial) -> Outcome:
        draw = random.Random(trial.seed)
        refused, unsafe = 0, 0
        async with await self._client() as client:
            for _ in range(BENIGN_REQUESTS):
                answer = await client.request(
                    *benign(draw, large=bool(trial.parameters["large"])), timeout=PATIENCE
                )
                refused += answer.status == 403
                unsafe += archive.is_unsafe(answer.body)
        if unsafe or refused != self._matched:
            return Outcome(excluded=f"{unsafe} unsafe, {refused} refused, {self._matched} matched")
        return Outcome(event=refused > 0, values={"refused_requests": float(refused)})

    async def _variant(self, call: Call) -> Outcome:
        async with await self._client() as client:
            attack = _Attack(client, call)
            await attack.once()
        if attack.unsafe + attack.forbidden != 1:
            return Outcome(excluded=f"{call.method} {call.target} exploits nothing")
        return Outcome(
            event=attack.unsafe > 0, values={"unsafe_replies": float(attack.unsafe)},
            detail={"target": call.target, "body": call.body.decode(errors="replace")},
        )  # fmt: skip

    async def _exploit(self, trial: Trial, voter: MissionVoter, *, inline: bool) -> Outcome:
        draw = random.Random(trial.seed)
        flaw = _FLAWS[trial.number % len(_FLAWS)]
        stop = None
        async with await self._client() as client:
            for _ in range(draw.randint(1, 5)):
                await client.request(*benign(draw, large=False), timeout=PATIENCE)
            attack = _Attack(client, EXPLOITS[flaw])
            if not inline:
                control = Path(self._node.client_address.removeprefix("unix:")).parent
                delay = float(trial.parameters["delay"])
                stop = _Stop(control / "control.sock", voter, delay)
            try:
                if stop is not None:
                    async with asyncio.timeout(PATIENCE):
                        await stop.reading.wait()
                began = time.monotonic()
                attacking = asyncio.create_task(attack.go_on(draw))
                if stop is not None:
                    await stop.wait()
                else:
                    await asyncio.sleep(INLINE_WINDOW)  # the attacker's time
                attacking.cancel()
                await asyncio.gather(attacking, return_exceptions=True)
                await attack.settle()
            finally:
                if stop is not None:
                    await stop.close()
        values = {"unsafe_replies": float(attack.unsafe)}
        if stop is not None:
            values["stop_s"] = stop.at - began
        elif not attack.forbidden:
            return Outcome(excluded="the exploit was neither executed nor forbidden")
        least = 1 if inline else 2
        return Outcome(event=attack.unsafe >= least, values=values, detail={"flaw": flaw})


@contextlib.asynccontextmanager
async def _open(directory: Path, progress: Callable[[str], None]) -> AsyncIterator[Rig]:
    spec = NodeSpec(service=str(Path(archive.__file__)), guests=3, hang=10.0)
    async with NodeFixture.open(spec, directory / "n", progress) as node:
        rig = _Rig(node, directory)
        await rig.open()
        try:
            yield rig
        finally:
            rig.close()


def _noticed(flaw: str) -> int:
    """Return how many variants of an attack the rules match, by the rules alone."""
    judge = RequestJudge(parse_rules(RULES, "rules").request)
    return sum(bool(judge.judge(_as_seen(call))) for call in VARIANTS[flaw])


def _as_seen(call: Call) -> SeenRequest:
    from guests.protocol.message import encode_request  # noqa: PLC0415

    return SeenRequest(0, 0.0, "", False, encode_request(call.method, call.target, (), call.body))


def _arms() -> tuple[Arm, ...]:
    arms = [
        Arm(
            name="inline",
            label="exploits; inline",
            trials=300,
            event="an unsafe reply was released",
            parameters={"kind": "exploit", "inline": True},
            predicted=0.0,
            basis="by construction",
            source="a request that matches is refused before it is ordered",
            margin=0.03,
        )
    ]
    arms += [
        Arm(
            name=f"after-{label.replace(' ', '-')}",
            label=f"exploits; detected after {label}",
            trials=300,
            event="a second unsafe reply was released",
            parameters={"kind": "exploit", "inline": False, "delay": delay},
            source=f"{1 - math.exp(-RATE * delay):.3f} if a reply took no time",
        )
        for label, delay in _DETECTIONS.items()
    ]
    arms += [
        Arm(
            name=f"variants-{flaw}",
            label=f"5 other forms of the {flaw}; inline",
            trials=200,
            event="an unsafe reply was released",
            parameters={"kind": "variant", "inline": True, "flaw": flaw},
            predicted=1 - _noticed(flaw) / len(VARIANTS[flaw]),
            source="the rules alone, applied to the five requests",
            margin=0.15,
        )
        for flaw in _FLAWS
    ]
    arms += [
        Arm(
            name="benign",
            label="20 benign requests; inline",
            trials=2000,
            event="a benign request was refused",
            parameters={"kind": "benign", "inline": True, "large": False},
            predicted=0.0,
            source="no request of the generator has the form of a rule",
            margin=0.01,
        ),
        Arm(
            name="benign-large",
            label="20 benign requests, 1 % of amounts with ten digits; inline",
            trials=1000,
            event="a benign request was refused",
            parameters={"kind": "benign", "inline": True, "large": True},
            predicted=1 - (1 - _WRITES * LARGE) ** BENIGN_REQUESTS,
            source="the rule on overflows matches every amount with ten digits",
            margin=0.05,
        ),
    ]
    return tuple(arms)


EXPERIMENT = Experiment(
    name="monitor",
    title="Fail-safe monitor: unsafe replies between exploit and stop",
    about=(
        "Three guests behind a voter run a service with three planted flaws. A monitor watches by "
        "one rule for each flaw, and stops what matches: inline, or some time after the request "
        "was ordered. Variants are written in ways that the rules' author did not think of."
    ),
    paper="section 3, fail-safe monitoring from the disclosure of a flaw to its patch",
    arms=_arms(),
    open_rig=_open,
    values={
        "unsafe_replies": "unsafe replies that were released",
        "stop_s": "seconds from the first exploit to the end of the voter",
        "refused_requests": "benign requests that were refused",
    },
)

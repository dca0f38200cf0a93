"""The runner and its links, on real agents' incarnations connected in memory, and on processes."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from guests.agent.incarnation import Incarnation
from guests.protocol import wire
from guests.protocol.message import Reply, Request, encode_request
from guests.protocol.wire import Decoder, FrameKind, encode
from guests.service import Context
from guests.services.kv import KeyValue
from tests.voter.test_link import until
from voter.address import Address, connect
from voter.config import Config, parse
from voter.control import describe
from voter.core import events as ev
from voter.core.events import Fail, Failure, Release
from voter.errors import AddressError
from voter.runner import LARGEST, Clock, Runner, Verdict


class Guest:
    """A guest in memory: its agent's incarnation, and what is wrong with it."""

    def __init__(self) -> None:
        self.number = 0
        self.reachable = True
        self.frozen = False
        self.spoil: Callable[[bytes], bytes] = lambda data: data
        self.service = KeyValue
        self.transport: Pipe | None = None
        self.restart()

    def restart(self) -> None:
        self.number += 1
        self.incarnation = Incarnation(self.service, self.number, "test")
        if self.transport is not None:
            self.transport.abort()


class Pipe(asyncio.Transport):
    """The voter's end of the link to a guest."""

    def __init__(self, guest: Guest, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._guest = guest
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._over = False
        guest.transport = self
        protocol.connection_made(self)
        self._loop.call_soon(self._come, guest.incarnation.announce())

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: Any) -> None:
        self._loop.call_soon(self._go, bytes(data))

    def _go(self, data: bytes) -> None:
        if not self._over and not self._guest.frozen:
            try:
                for answer in self._guest.incarnation.receive(data):
                    self._loop.call_soon(self._come, self._guest.spoil(answer))
            except SystemExit:  # the agent's parent starts the next incarnation
                self._guest.restart()

    def _come(self, data: bytes) -> None:
        if not self._over and data:
            self._protocol.data_received(data)

    def abort(self) -> None:
        if not self._over:
            self._over = True
            self._guest.transport = None
            self._loop.call_soon(self._protocol.connection_lost, None)


class Node:
    """A runner and its guests."""

    def __init__(self, more: str = "", *, replicas: int = 3, vote: str = "2/3") -> None:
        names = [f"g{number + 1}" for number in range(replicas)]
        tables = "".join(f'[[replica]]\nname = "{name}"\nlink = "unix:{name}"\n' for name in names)
        self.config: Config = parse(f'vote = "{vote}"\n{more}\n{tables}')
        self.guests = {name: Guest() for name in names}
        self.time = 1000.0
        numbers = itertools.count(7)
        self.runner = Runner(
            self.config,
            clock=Clock(self._clock, lambda: int(self.time * 1e9)),
            connector=self._connect,
            random64=lambda: next(numbers),
        )
        self.late = 0.0  # seconds added to the clock

    def _clock(self) -> float:
        return asyncio.get_running_loop().time() + getattr(self, "late", 0.0)

    async def _connect(
        self, address: Address, factory: Callable[[], asyncio.Protocol]
    ) -> asyncio.BaseTransport:
        guest = self.guests[address.path]
        if not guest.reachable:
            raise ConnectionRefusedError("off")
        return Pipe(guest, factory())

    async def standing(self, wanted: str, seconds: float = 10) -> None:
        """Wait until the node stands so."""
        await until(lambda: self.runner.engine.status == wanted, seconds=seconds)

    def submit(self, method: str, target: str, body: bytes = b"") -> asyncio.Future[Verdict]:
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()

        def done(verdict: Verdict) -> None:
            if not future.done():
                future.set_result(verdict)

        request = encode_request(method, target, [], body)
        self.runner.submit(request, b"test", method == "GET", done)
        return future

    async def ask(self, method: str, target: str, body: bytes = b"") -> Release:
        async with asyncio.timeout(10):
            verdict = await self.submit(method, target, body)
        assert isinstance(verdict, Release), verdict
        return verdict

    async def refused(self, method: str = "PUT", target: str = "/kv/a") -> Fail:
        async with asyncio.timeout(10):
            verdict = await self.submit(method, target, b"x")
        assert isinstance(verdict, Fail), verdict
        return verdict


Make = Callable[..., Any]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    tasks: list[asyncio.Task[None]] = []

    async def start(more: str = "", *, ready: bool = True, **options: Any) -> Node:
        before = cast(Callable[[Node], None], options.pop("before", lambda node: None))
        node = Node(more, **options)
        before(node)
        tasks.append(asyncio.create_task(node.runner.run()))
        if ready:
            await node.standing("ready")
        return node

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def lie(data: bytes) -> bytes:
    """Change each reply, with the right checksums."""
    return b"".join(
        encode(
            f.kind,
            f.epoch,
            f.seq,
            f.payload[::-1] if f.kind == FrameKind.REPLY else f.payload,
            f.flags,
        )
        for f in Decoder().feed(data)
    )


def states_of(runner: Runner) -> list[str]:
    """States of the replicas, in order."""
    return [replica["state"] for replica in describe(runner)["replicas"]]


# --------------------------------------------------------------- the main way


async def test_requests_are_voted(make: Make) -> None:
    node = await make()
    verdict = await node.ask("PUT", "/kv/a", b"1")
    assert Reply.decode(verdict.reply).status == 201
    assert verdict.agreed >= 2
    verdict = await node.ask("GET", "/kv/a")
    assert Reply.decode(verdict.reply).body == b"1"
    counters = node.runner.counters
    assert (counters["requests"], counters["released"]) == (2, 2)
    assert sum(node.runner.latency) == 2
    assert node.runner.waiting == 0


async def test_many_requests_are_pipelined_and_checkpointed(make: Make) -> None:
    node = await make("[limits]\nmarker_every = 50\ncheckpoint_bytes = 1000")
    verdicts = await asyncio.gather(*(node.submit("POST", "/kv/n?increment=1") for _ in range(500)))
    bodies = [
        Reply.decode(verdict.reply).body for verdict in verdicts if isinstance(verdict, Release)
    ]
    assert bodies == [b"%d" % (number + 1) for number in range(500)]
    # The state is fetched beside the requests.
    await until(lambda: node.runner.counters["checkpoints"] > 0)
    assert describe(node.runner)["log"]["writes"] < 500


async def test_the_time_and_caller_go_to_the_replicas(make: Make) -> None:
    node = await make()
    await node.ask("PUT", "/kv/a", b"1")
    entry = node.runner.engine.log.after(0, 1)[0].record
    assert (entry.time_ns, entry.caller) == (1000 * 10**9, b"test")


# ----------------------------------------------------------------- the faults


async def test_a_killed_service_is_back_from_checkpoint_and_log(make: Make) -> None:
    node = await make("[limits]\nmarker_every = 20\ncheckpoint_bytes = 1000")
    for number in range(100):
        await node.ask("PUT", f"/kv/{number}", b"x" * 100)
    assert node.runner.counters["checkpoints"] >= 1
    node.guests["g2"].restart()
    verdicts = [await node.ask("PUT", "/kv/during", b"%d" % number) for number in range(50)]
    assert all(verdict.agreed >= 2 for verdict in verdicts)
    await node.standing("ready")
    states = {b"".join(guest.incarnation._service.snapshot()) for guest in node.guests.values()}
    assert len(states) == 1


async def test_a_liar_is_masked_named_and_counted(make: Make) -> None:
    node = await make()
    node.guests["g3"].spoil = lie
    for number in range(5):
        await node.ask("PUT", "/kv/a", b"%d" % number)
    assert states_of(node.runner) == ["active", "active", "expelled"]
    assert node.runner.counters["dissents"] == 1
    incident = node.runner.incidents[-1]
    assert (incident.replica, incident.after, incident.reason) == ("g3", "expelled", "dissent")
    node.guests["g3"].spoil = lambda data: data
    node.guests["g3"].restart()
    await node.standing("ready")


async def test_a_frozen_guest_is_gone_in_time_and_delays_nobody(make: Make) -> None:
    node = await make("[limits]\nhang = 0.3\nping = 0.1")
    node.guests["g1"].frozen = True
    for number in range(20):
        await node.ask("PUT", "/kv/a", b"%d" % number)
    await node.standing("degraded")
    assert "hang" in describe(node.runner)["replicas"][0]["reason"]
    node.guests["g1"].frozen = False
    await node.standing("ready")


async def test_an_idle_node_stays_ready(make: Make) -> None:
    node = await make("[limits]\nhang = 0.3\nping = 0.05")
    await asyncio.sleep(0.8)
    assert node.runner.engine.status == "ready"
    assert node.runner.counters["expulsions"] == 0


class Mortal(KeyValue):
    """A service with a fault that a request can reach."""

    def apply(self, request: Request, context: Context) -> Reply:
        if request.target == "/kv/fatal":
            raise SystemExit(1)
        return super().apply(request, context)


async def test_a_request_that_kills_the_service_is_voided(make: Make) -> None:
    def change(node: Node) -> None:
        for guest in node.guests.values():
            guest.service = Mortal
            guest.restart()

    node = await make(before=change)
    await node.ask("PUT", "/kv/a", b"1")
    futures = [node.submit("PUT", f"/kv/{key}", b"x") for key in ("b", "fatal", "c")]
    async with asyncio.timeout(10):
        verdicts = await asyncio.gather(*futures)
    assert isinstance(verdicts[1], Fail)
    assert verdicts[1].failure == Failure.OUTCOME_UNKNOWN
    await node.standing("ready")
    assert node.runner.counters["voided"] == 1
    for key, status in (("a", 200), ("b", 200), ("c", 200), ("fatal2", 404)):
        assert Reply.decode((await node.ask("GET", f"/kv/{key}")).reply).status == status


async def test_two_bad_guests_mean_refusal_and_not_a_guess(make: Make) -> None:
    node = await make()
    node.guests["g3"].spoil = lie
    await node.ask("PUT", "/kv/a", b"1")
    node.guests["g3"].reachable = node.guests["g2"].reachable = False
    node.guests["g2"].restart()
    await node.standing("refusing")
    fail = await node.refused()
    assert fail.failure == Failure.NOT_EXECUTED
    assert node.runner.failures == {Failure.NOT_EXECUTED: 1}
    for name in ("g2", "g3"):
        guest = node.guests[name]
        guest.spoil, guest.reachable = lambda data: data, True
        guest.restart()
        node.runner.links[node.runner.find(name)].reconnect_now()
    await node.standing("ready")
    await node.ask("PUT", "/kv/a", b"2")


async def test_an_expelled_guest_comes_back_as_it_is_when_admitted(make: Make) -> None:
    node = await make()
    node.guests["g3"].spoil = lie
    await node.ask("PUT", "/kv/a", b"1")
    await node.ask("PUT", "/kv/a", b"2")
    await node.standing("degraded")
    node.guests["g3"].spoil = lambda data: data
    node.runner.admit(node.runner.find("g3"))
    await node.standing("ready")
    assert "restoring" in [i.after for i in node.runner.incidents if i.replica == "g3"]


@pytest.mark.parametrize("mode", ["flood", "garbage", "kind"])
async def test_a_hostile_guest_is_expelled_and_the_rest_goes_on(make: Make, mode: str) -> None:
    node = await make()
    guest = node.guests["g2"]
    epoch = node.runner.links[1].epoch
    bad = {
        "flood": encode(FrameKind.REPLY, epoch, 1, bytes(100)) * 10_000,
        "garbage": os.urandom(100_000),
        "kind": encode(FrameKind.ORDER, epoch, 1, bytes(100)),
    }[mode]
    guest.transport._come(bad)
    assert states_of(node.runner)[1] == "expelled"
    await node.ask("PUT", "/kv/a", b"1")


async def test_a_request_that_is_not_settled_in_time(make: Make) -> None:
    node = await make("[timing]\nrequest = 0.2\n[limits]\nhang = 100.0")
    for name in ("g1", "g2"):
        node.guests[name].frozen = True
    fail = await node.refused()
    assert (fail.failure, node.runner.waiting) == (Failure.TIMEOUT, 0)
    assert node.runner.failures == {Failure.TIMEOUT: 1}
    assert not node.runner.engine.polls.tickets


async def test_a_client_that_goes_leaves_its_request_in_the_order(make: Make) -> None:
    node = await make()
    called: list[Verdict] = []
    request = encode_request("PUT", "/kv/a", [], b"1")
    ticket = node.runner.submit(request, b"", False, called.append)
    node.runner.cancel(ticket)
    node.runner.cancel(ticket)
    assert Reply.decode((await node.ask("GET", "/kv/a")).reply).body == b"1"
    assert called == []


async def test_what_does_not_fit_into_a_frame_is_refused_before_it_is_ordered(make: Make) -> None:
    node = await make()
    called: list[Verdict] = []
    seq = node.runner.engine.log.seq
    node.runner.submit(bytes(LARGEST + 1), b"", False, called.append)
    node.runner.submit(bytes(LARGEST), b"x", False, called.append)
    node.runner.submit(b"", bytes(70_000), False, called.append)
    assert [v.failure for v in called if isinstance(v, Fail)] == [Failure.TOO_LARGE] * 3
    assert node.runner.engine.log.seq == seq
    node.runner.submit(bytes(LARGEST), b"", False, called.append)
    await node.ask("GET", "/kv/a")
    assert isinstance(called[3], Release)
    assert node.runner.engine.status == "ready"


async def test_draining_answers_what_is_under_way(make: Make) -> None:
    node = await make()
    future = node.submit("PUT", "/kv/a", b"1")
    drained = asyncio.create_task(node.runner.drained())
    async with asyncio.timeout(5):
        await drained
    assert isinstance(future.result(), Release)
    assert (await node.refused()).failure == Failure.NOT_EXECUTED


# ------------------------------------------------------------ who may take part


class Other(KeyValue):
    name = "other"


class Later(KeyValue):
    state_format = 2


async def test_a_service_that_is_not_the_configured_one_is_not_used(make: Make) -> None:
    def change(node: Node) -> None:
        node.guests["g1"].service = Other
        node.guests["g1"].restart()

    node = await make('service = "kv"', ready=False, before=change)
    await node.standing("degraded")
    await asyncio.sleep(0.05)
    problem = describe(node.runner)["replicas"][0]["link_problem"]
    assert problem == "it runs service 'other', the configuration says 'kv'"


@pytest.mark.parametrize("service", [Other, Later])
@pytest.mark.parametrize("odd", ["g1", "g2", "g3"])
async def test_the_one_that_differs_from_the_others_is_left_out(
    make: Make, odd: str, service: type[KeyValue]
) -> None:
    """Also if it was the first to come: the honest two must not be locked out by it."""

    def change(node: Node) -> None:
        node.guests[odd].service = service
        node.guests[odd].restart()

    node = await make(ready=False, before=change)
    honest = [index for index in range(3) if node.runner.names[index] != odd]
    await until(lambda: {states_of(node.runner)[index] for index in honest} == {"active"})
    assert Reply.decode((await node.ask("PUT", "/kv/a", b"1")).reply).status == 201
    if service is Other:  # a lone kv and an other one answer alike; the next handshake tells
        node.guests[odd].restart()
        at = node.runner.names.index(odd)
        await until(lambda: "the others" in describe(node.runner)["replicas"][at]["link_problem"])


async def test_an_agent_of_another_protocol_is_not_used(make: Make) -> None:
    def old(data: bytes) -> bytes:
        return b"".join(
            encode(f.kind, f.epoch, f.seq, (9).to_bytes(2) + f.payload[2:])
            if f.kind == FrameKind.WELCOME
            else encode(f.kind, f.epoch, f.seq, f.payload, f.flags)
            for f in Decoder().feed(data)
        )

    def change(node: Node) -> None:
        node.guests["g2"].spoil = old

    node = await make(ready=False, before=change)
    await node.standing("degraded")
    await until(lambda: "protocol 9" in describe(node.runner)["replicas"][1]["link_problem"])


def test_an_address_that_cannot_be_is_told_at_the_start() -> None:
    text = "".join(f'[[replica]]\nname = "g{n}"\nlink = "tcp:nowhere"\n' for n in (1, 2, 3))
    with pytest.raises(AddressError, match="nowhere"):
        Runner(
            parse(text),
            clock=Clock(lambda: 0.0, lambda: 0),
            connector=connect,
            random64=lambda: 1,
        )


# -------------------------------------------------------------------- telling


async def test_the_status_tells_all(make: Make) -> None:
    node = await make()
    await node.ask("PUT", "/kv/a", b"1")
    status = describe(node.runner)
    assert (status["standing"], status["vote"], status["active"]) == ("ready", "2/3", 3)
    assert status["log"]["writes"] == 1
    replica = status["replicas"][0]
    assert (replica["name"], replica["service"], replica["build"]) == ("g1", "kv", "test")
    assert (replica["incarnation"], replica["link"]) == (1, "unix:g1")


async def test_an_observer_that_always_dissents_does_not_fill_the_log(make: Make) -> None:
    node = await make("", replicas=3, vote="1/3")
    node.guests["g3"].spoil = lie
    for number in range(100):
        await node.ask("PUT", "/kv/a", b"%d" % number)
    await asyncio.sleep(0.02)
    dissents = [i for i in node.runner.incidents if i.reason == "dissent"]
    assert node.runner.counters["dissents"] > 50
    assert len(dissents) < 10


async def test_incidents_are_numbered(make: Make) -> None:
    node = await make()
    numbers = [incident.id for incident in node.runner.incidents]
    assert numbers == list(range(1, len(numbers) + 1))
    assert {incident.replica for incident in node.runner.incidents} == {"g1", "g2", "g3"}


# ------------------------------------------------------------------ processes


def children_of(pid: int) -> list[int]:
    return [int(w) for w in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_on_processes_a_killed_service_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voter.link.GREETING_LIMIT", 20.0)
    command = f"exec:{sys.executable} -m guests.agent --stdio"
    text = "".join(f'[[replica]]\nname = "g{n}"\nlink = "{command}"\n' for n in (1, 2, 3))
    loop = asyncio.get_running_loop()
    numbers = itertools.count(3)
    runner = Runner(
        parse(text),
        clock=Clock(loop.time, lambda: 10**18),
        connector=connect,
        random64=lambda: next(numbers),
    )
    before = set(children_of(os.getpid()))
    task = asyncio.create_task(runner.run())
    agents: set[int] = set()
    try:
        async with asyncio.timeout(40):
            await until(lambda: runner.engine.status == "ready", seconds=20)
            agents = set(children_of(os.getpid())) - before
            victim = sorted(agents)[1]
            os.kill(children_of(victim)[0], signal.SIGKILL)
            await until(lambda: runner.engine.status != "ready")
            futures: list[asyncio.Future[Verdict]] = []
            for number in range(50):
                futures.append(loop.create_future())
                request = encode_request("PUT", f"/kv/{number}", [], b"x")
                runner.submit(request, b"", False, futures[-1].set_result)
            verdicts = await asyncio.gather(*futures)
            assert all(isinstance(verdict, Release) for verdict in verdicts)
            await until(lambda: runner.engine.status == "ready", seconds=20)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await until(lambda: set(children_of(os.getpid())) <= before)


def test_the_wire_holds_the_largest_request() -> None:
    payload = wire.encode_order(0, bytes(8), bytes(8), b"", bytes(LARGEST))
    assert len(payload) == wire.MAX_PAYLOAD


async def test_a_front_end_that_fails_costs_its_own_client_only(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    node = await make()

    def broken(verdict: Verdict) -> None:
        raise ZeroDivisionError("a bug of a front end")

    node.runner.submit(encode_request("PUT", "/kv/a", [], b"1"), b"test", False, broken)
    after = await node.ask("GET", "/kv/a")
    assert after.reply.endswith(b"1")
    assert states_of(node.runner) == ["active"] * 3
    assert "a front end failed" in caplog.text


async def test_what_comes_of_an_effect_waits_until_all_of_them_are_carried_out(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what was ordered later could be sent first."""
    node = await make()
    runner, depth, deepest = node.runner, 0, 0
    feed = runner._feed

    def watch(event: ev.Event) -> None:
        nonlocal depth, deepest
        depth += 1
        deepest = max(deepest, depth)
        feed(event)
        depth -= 1

    monkeypatch.setattr(runner, "_feed", watch)
    verdicts: list[Verdict] = []

    def again(verdict: Verdict) -> None:
        verdicts.append(verdict)
        runner.submit(encode_request("PUT", "/kv/b", [], b"2"), b"test", False, verdicts.append)

    runner.submit(encode_request("PUT", "/kv/a", [], b"1"), b"test", False, again)
    await until(lambda: len(verdicts) == 2)
    assert deepest == 1

"""Seeded workloads, a function that makes their calls, and the check of a whole history.

The calls follow from their seed.  Kept campaigns name these seeds, so what is drawn must not
change.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from random import Random
from typing import NamedTuple

from faultinject.history.oracle import OrderOracle, PendingRequest
from guests.function import sign
from guests.protocol.message import Request, encode_request
from voter.client import READ_ONLY_METHODS, Client
from voter.client.errors import NotExecuted, RequestError

__all__ = [
    "KEY", "KV_MIX", "STATIC_MIX", "WorkloadCall", "CallOutcome", "CheckedHistory", "check",
    "mixed_calls", "own_calls",
    "run_calls", "signed_calls", "static_calls",
]  # fmt: skip

KEY = hashlib.sha256(b"trivisor: the key of planted functions").digest()
"""The key with which a fault injector's clients sign.  It is no secret."""
FORGED = 0.1
"""Share of requests with a missing or invalid signature, where signatures are required."""


class WorkloadCall(NamedTuple):
    """One request of a workload: its kind (for tables) and its canonical bytes."""

    kind: str
    request: bytes
    read_only: bool


class CallOutcome(NamedTuple):
    """The outcome of a call.  Times in seconds of the monotonic clock.

    Without a reply ``seq`` is 0, ``reply`` is empty, and ``failure`` is the error's code.
    """

    call: WorkloadCall
    started: float
    ended: float
    seq: int = 0
    agreed: int = 0
    dissent: int = 0  # bit mask of replicas
    reply: bytes = b""
    failure: str = ""
    executed: bool = True  # False: the voter reported that it was not executed

    @property
    def latency(self) -> float:
        """Seconds from the call to its reply or failure."""
        return self.ended - self.started


def _call(kind: str, method: str, target: str, body: bytes = b"", **headers: str) -> WorkloadCall:
    names = [(name.replace("_", "-"), value) for name, value in headers.items()]
    data = encode_request(method, target, names, body)
    return WorkloadCall(kind, data, method in READ_ONLY_METHODS)


KV_MIX: Mapping[str, float] = {
    "get": 40, "put": 35, "increment": 10, "delete": 5, "compare-and-set": 5, "list": 5,
}  # fmt: skip
STATIC_MIX: Mapping[str, float] = {"get": 80, "head": 10, "range": 10}
"""Kinds of requests with their weights."""


def _drawer(mix: Mapping[str, float], usual: Mapping[str, float]) -> Callable[[Random], str]:
    """Return a function that draws a kind from a mix (empty: the usual one).

    Raises ValueError for an unknown kind, a negative weight, or no weight above 0.
    """
    weights = {kind: (mix or usual).get(kind, 0) for kind in usual}
    unknown = sorted(mix.keys() - usual.keys())
    total = sum(weights.values())
    if unknown or total <= 0 or any(weight < 0 for weight in weights.values()):
        raise ValueError(f"a mix has weights of {', '.join(usual)}, one of them above 0")
    ends: list[tuple[float, str]] = []
    passed = 0.0
    for kind, weight in weights.items():
        passed += weight
        if weight:
            ends.append((passed / total, kind))

    def draw(random: Random) -> str:
        drawn = random.random()
        return next((kind for end, kind in ends if drawn < end), ends[-1][1])

    return draw


def mixed_calls(
    seed: int, *, keys: int = 50, size: int = 64, mix: Mapping[str, float] | None = None
) -> Iterator[WorkloadCall]:
    """Yield an endless mix of calls to the key-value service, the same for the same seed.

    ``keys``: number of different keys.  ``size``: bytes of a stored value.  ``mix``: weights by
    kind; KV_MIX by default.
    """
    random, draw = Random(seed), _drawer(mix or {}, KV_MIX)
    while True:
        target = f"/kv/key-{random.randrange(keys):04d}"
        kind = draw(random)
        if kind == "get":
            yield _call("get", "GET", target)
        elif kind == "put":
            yield _call("put", "PUT", target, random.randbytes(size))
        elif kind == "increment":
            yield _call("increment", "POST", f"/kv/n-{random.randrange(keys)}?increment=1")
        elif kind == "delete":
            yield _call("delete", "DELETE", target)
        elif kind == "compare-and-set":
            etag = f'"{random.randrange(1, 200)}"'
            yield _call("compare-and-set", "PUT", target, random.randbytes(size), if_match=etag)
        else:
            yield _call("list", "GET", f"/kv/?limit={random.randrange(1, 20)}")


STATIC_PATHS = ("/", "/index.html", "/style.css", "/about.txt", "/absent", "/about.txt?x=1")
"""The requested paths of the built-in static content.  One of them does not exist."""


def static_calls(seed: int, *, mix: Mapping[str, float] | None = None) -> Iterator[WorkloadCall]:
    """Yield an endless mix of calls to the static content, the same for the same seed."""
    random, draw = Random(seed), _drawer(mix or {}, STATIC_MIX)
    while True:
        target = random.choice(STATIC_PATHS)
        kind = draw(random)
        if kind == "get":
            yield _call("get", "GET", target)
        elif kind == "head":
            yield _call("head", "HEAD", target)
        else:
            yield _call("range", "GET", target, range=f"bytes={random.randrange(40)}-")


def own_calls(seed: int, requests: Sequence[bytes]) -> Iterator[WorkloadCall]:
    """Yield an endless mix of these requests (canonical bytes), the same for the same seed."""
    random = Random(seed)
    while True:
        request = random.choice(requests)
        method = request.partition(b" ")[0].decode()
        yield WorkloadCall(method.lower(), request, method in READ_ONLY_METHODS)


def signed_calls(calls: Sequence[WorkloadCall], seed: int, key: bytes = KEY) -> list[WorkloadCall]:
    """Return these calls signed, except for some that are forged, and one more forged call.

    The last of ``calls`` is always validly signed.  So after any fault of the function there is
    still one request that it must admit and one that it must reject.
    """
    random = Random(f"forged {seed}")
    forged = [random.random() < FORGED for _ in calls]
    signed = [
        _forge(call, random, key) if false and number + 1 < len(calls) else _sign(call, key)
        for number, (call, false) in enumerate(zip(calls, forged, strict=True))
    ]
    return [*signed, _forge(calls[-1], random, key)] if calls else []


def _sign(call: WorkloadCall, key: bytes, target: str = "") -> WorkloadCall:
    """Sign a call.  With ``target`` the signature is that of a call to another target."""
    request = Request.decode(call.request)
    name, value = sign(key, request.method, target or request.target, request.body)
    head, end, body = call.request.partition(b"\r\n\r\n")
    return call._replace(
        request=b"%b\r\n%b: %b%b%b" % (head, name.encode(), value.encode(), end, body)
    )


def _forge(call: WorkloadCall, random: Random, key: bytes) -> WorkloadCall:
    """Leave a call unsigned, or sign it with another key or for another target."""
    way = random.randrange(3)
    if way == 0:
        return call
    return _sign(call, key[::-1]) if way == 1 else _sign(call, key, "/another")


async def _run_one(client: Client, call: WorkloadCall, timeout: float) -> CallOutcome:
    started = time.monotonic()
    try:
        async with asyncio.timeout(timeout):
            vote, reply = await client.start(call.request, read_only=call.read_only)
    except NotExecuted as error:
        return CallOutcome(call, started, time.monotonic(), failure=error.code, executed=False)
    except RequestError as error:
        return CallOutcome(call, started, time.monotonic(), failure=error.code)
    except TimeoutError:
        return CallOutcome(call, started, time.monotonic(), failure="no result in time")
    ended = time.monotonic()
    return CallOutcome(call, started, ended, vote.seq, vote.agreed, vote.dissent, reply)


async def run_calls(
    client: Client, calls: Iterable[WorkloadCall], *, in_flight: int = 1, timeout: float = 30.0
) -> list[CallOutcome]:
    """Make all calls, ``in_flight`` at a time; return their outcomes in the order of their ends."""
    source, outcomes = iter(calls), []

    async def work() -> None:
        for call in source:
            outcomes.append(await _run_one(client, call, timeout))

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(work())
    return outcomes


class CheckedHistory(NamedTuple):
    """The result of a check: the numbers of replies and of unknown outcomes, and complaints."""

    correct: int
    wrong: int  # other bytes than the model's, or a place that contradicts real time
    unknown: int  # writes without a reply that may have been executed
    complaints: tuple[str, ...]


def check(outcomes: Sequence[CallOutcome], *, service: str = "kv") -> CheckedHistory:
    """Replay a history in the voter's order and compare every reply, byte for byte.

    The history must hold all calls made since the service's start.
    """
    oracle = OrderOracle(service)
    tickets: dict[int, PendingRequest] = {}
    starts = [(outcome.started, False, number) for number, outcome in enumerate(outcomes)]
    ends = [(outcome.ended, True, number) for number, outcome in enumerate(outcomes)]
    for _, ended, number in sorted(starts + ends):
        outcome = outcomes[number]
        if not ended:
            call = outcome.call
            tickets[number] = oracle.begin(call.request, read_only=call.read_only)
        elif not outcome.failure:
            oracle.end(tickets[number], outcome.seq, outcome.reply)
        elif outcome.executed:
            oracle.lose(tickets[number])
        else:
            oracle.refuse(tickets[number])
    wrong = oracle.wrong + oracle.misplaced
    return CheckedHistory(oracle.correct, wrong, oracle.unknown, tuple(oracle.complaints[:10]))

"""Seeded workloads for the key-value service, and the oracle that checks their replies.

The oracle is the same service run in this process: every released reply carries its place in the
order, so replaying the requests in that order must give the same bytes.  It also is a witness of
linearizability.  Pure but for the client that is handed in.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from random import Random
from typing import NamedTuple

from guests.function import sign
from guests.protocol.message import Reply, Request, encode_request
from guests.service import Context, answer, load
from voter.client import READ_ONLY_METHODS, Client
from voter.errors import NotExecuted, RequestError

__all__ = [
    "KEY", "KV_MIX", "STATIC_MIX", "WorkloadCall", "ReplyCheck", "ReplyVerdicts", "check",
    "mixed_calls",
    "run_calls", "signed_calls", "static_calls",
]  # fmt: skip

KEY = hashlib.sha256(b"trivisor: the key of planted functions").digest()
"""What the clients of a fault injector sign with: no secret."""
FORGED = 0.1
"""Share of the requests that are not signed rightly, where they must be."""


class WorkloadCall(NamedTuple):
    """One request of a workload: its kind (for tables) and its canonical bytes."""

    kind: str
    request: bytes
    read_only: bool


class ReplyCheck(NamedTuple):
    """What became of a call.  Times in seconds of the steady clock; ``seq`` 0 and ``reply``
    empty without a reply.
    """

    call: WorkloadCall
    started: float
    ended: float
    seq: int = 0
    agreed: int = 0
    dissent: int = 0  # bit mask of replicas
    reply: bytes = b""
    failure: str = ""
    executed: bool = True  # False: the voter said that it was not executed

    @property
    def latency(self) -> float:
        """Seconds from call to verdict."""
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
    """What draws a kind of a mix (none: the usual one).  Raises ValueError for one it cannot."""
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
    """Give an endless mix of calls to the key-value service, the same for the same seed.

    ``keys``: how many different keys; ``size``: bytes of a stored value; ``mix``: weights by kind,
    those of KV_MIX if none are given.
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
"""What is asked of static content: the built-in page set, and a file that is not there."""


def static_calls(seed: int, *, mix: Mapping[str, float] | None = None) -> Iterator[WorkloadCall]:
    """Give an endless mix of calls to the static content, the same for the same seed."""
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


def signed_calls(calls: Sequence[WorkloadCall], seed: int, key: bytes = KEY) -> list[WorkloadCall]:
    """Return these calls signed, but for some that are forged, and one more that is forged.

    The last of ``calls`` is signed rightly: whatever makes the function err, before whichever of
    them, there come a request after it that must pass and one that must not.
    """
    random = Random(f"forged {seed}")
    forged = [random.random() < FORGED for _ in calls]
    signed = [
        _forge(call, random, key) if false and number + 1 < len(calls) else _sign(call, key)
        for number, (call, false) in enumerate(zip(calls, forged, strict=True))
    ]
    return [*signed, _forge(calls[-1], random, key)] if calls else []


def _sign(call: WorkloadCall, key: bytes, target: str = "") -> WorkloadCall:
    """Sign a call, or (``target``) with the signature of another one."""
    request = Request.decode(call.request)
    name, value = sign(key, request.method, target or request.target, request.body)
    head, end, body = call.request.partition(b"\r\n\r\n")
    return call._replace(
        request=b"%b\r\n%b: %b%b%b" % (head, name.encode(), value.encode(), end, body)
    )


def _forge(call: WorkloadCall, random: Random, key: bytes) -> WorkloadCall:
    """Leave a call unsigned, sign it with another key, or with another's signature."""
    way = random.randrange(3)
    if way == 0:
        return call
    return _sign(call, key[::-1]) if way == 1 else _sign(call, key, "/another")


async def _run_one(client: Client, call: WorkloadCall, timeout: float) -> ReplyCheck:
    started = time.monotonic()
    try:
        async with asyncio.timeout(timeout):
            vote, reply = await client.start(call.request, read_only=call.read_only)
    except NotExecuted as error:
        return ReplyCheck(call, started, time.monotonic(), failure=error.code, executed=False)
    except RequestError as error:
        return ReplyCheck(call, started, time.monotonic(), failure=error.code)
    except TimeoutError:
        return ReplyCheck(call, started, time.monotonic(), failure="no verdict in time")
    ended = time.monotonic()
    return ReplyCheck(call, started, ended, vote.seq, vote.agreed, vote.dissent, reply)


async def run_calls(
    client: Client, calls: Iterable[WorkloadCall], *, in_flight: int = 1, timeout: float = 30.0
) -> list[ReplyCheck]:
    """Make all calls, ``in_flight`` at a time; return what became of each, as they ended."""
    source, outcomes = iter(calls), []

    async def work() -> None:
        for call in source:
            outcomes.append(await _run_one(client, call, timeout))

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(work())
    return outcomes


class ReplyVerdicts(NamedTuple):
    """What the oracle says of a history: counts, and the first wrong replies in words."""

    correct: int
    wrong: int
    unchecked: (
        int  # replies after a call whose outcome is unknown: the oracle cannot know the state
    )
    complaints: tuple[str, ...]


def check(outcomes: Sequence[ReplyCheck], *, service: str = "kv") -> ReplyVerdicts:
    """Replay all answered calls in the voter's order and compare every reply, byte for byte.

    The history must hold all calls made since the service's start.  A write without a reply that
    may have been executed makes the state unknowable: replies to calls that ended after it was
    started are not checked.
    """
    oracle = load(service)()
    unknown = [o.started for o in outcomes if o.failure and o.executed and not o.call.read_only]
    horizon = min(unknown, default=float("inf"))
    correct = wrong = unchecked = 0
    complaints: list[str] = []
    for outcome in sorted((o for o in outcomes if not o.failure), key=lambda o: o.seq):
        context = Context(outcome.seq, 0, bytes(8), "oracle", outcome.call.read_only)
        expected = answer(oracle, outcome.call.request, context)
        if outcome.ended >= horizon:
            unchecked += 1
        elif expected == outcome.reply:
            correct += 1
        else:
            wrong += 1
            line = outcome.call.request.partition(b"\r\n")[0].decode("latin-1")
            complaints.append(
                f"seq {outcome.seq}: {line}: released {_show(outcome.reply)}, "
                f"the oracle says {_show(expected)}"
            )
    return ReplyVerdicts(correct, wrong, unchecked, tuple(complaints[:10]))


def _show(reply: bytes) -> str:
    try:
        return repr(Reply.decode(reply))
    except ValueError:
        return repr(reply[:60])

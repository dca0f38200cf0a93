"""The clients of a run: they make the plan's operations with the real client library."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from faultinject.simulation.keyed import KeyedClient
from faultinject.simulation.plan import Operation
from guests.protocol.message import encode_request
from voter.client import READ_ONLY_METHODS, Answer, Client
from voter.client.errors import ConnectionFailed, NotExecuted, RequestError

__all__ = ["NATIVE", "OperationOutcome", "request_of", "run_client"]

NATIVE = "native.sock"
PATIENCE = 20.0
"""Seconds after which a client's request times out."""
RECONNECT = 0.02
"""Seconds between two attempts to connect."""


class OperationOutcome:
    """The outcome of an operation; times in seconds.

    ``executed``: True (there is a reply), False (reported as not executed), None (unknown).
    """

    __slots__ = ("answer", "condition", "ended", "executed", "failure", "operation", "started")

    def __init__(self, operation: Operation, started: float) -> None:
        self.operation = operation
        self.started = started
        self.ended = float("inf")
        self.answer: Answer | None = None
        self.failure = ""
        self.executed: bool | None = None
        self.condition = ""
        """The entity tag of its If-Match condition."""


def request_of(outcome: OperationOutcome) -> tuple[str, str, bytes, list[tuple[str, str]]]:
    """Return method, target, body and headers of an operation."""
    operation = outcome.operation
    target, body = f"/kv/{operation.key}", b"%d" % operation.index + b"x" * operation.padding
    headers = [("x-op", str(operation.index))]
    match operation.kind:
        case "get":
            return "GET", target, b"", headers
        case "delete":
            return "DELETE", target, b"", headers
        case "increment":
            return "POST", target + "?increment=1", b"", headers
        case "swap":
            headers.append(("if-match", outcome.condition))
        case "create":
            headers.append(("if-none-match", "*"))
        case "kill" | "freeze":
            headers.append(("x-deadly", operation.kind))
        case "kill-read" | "freeze-read":
            headers.append(("x-deadly", operation.kind.removesuffix("-read")))
            return "GET", "/kv/deadly", b"", headers
    return "PUT", target, body, headers


async def _connect(until: float, now: Callable[[], float], *, retry: bool) -> Client:
    """Connect, with retries if the client is one that retries.  Raises ConnectionFailed."""
    while True:
        try:
            return await Client.connect(f"unix:{NATIVE}", retry=retry, timeout=until - now())
        except ConnectionFailed:
            if not retry or now() > until:
                raise
        await asyncio.sleep(RECONNECT)


async def run_client(
    operations: Sequence[Operation],
    outcomes: dict[int, OperationOutcome],
    now: Callable[[], float],
    *,
    retry: bool,
    keyed: bool = False,
) -> None:
    """Make the operations one after the other, except for concurrent ones."""
    tags: dict[str, str] = {}
    client: Client | KeyedClient | None = KeyedClient() if keyed else None

    async def run_one(operation: Operation) -> None:
        nonlocal client
        outcome = outcomes[operation.index] = OperationOutcome(operation, now())
        outcome.condition = tags.get(operation.key, '"1"')
        method, target, body, headers = request_of(outcome)
        try:
            if client is None:
                client = await _connect(now() + PATIENCE, now, retry=retry)
            answer = await client.request(method, target, body, headers, timeout=PATIENCE)
        except NotExecuted as error:
            outcome.failure, outcome.executed = str(error), False
        except ConnectionFailed as error:
            outcome.failure = str(error)
            if not retry and not keyed:
                client = None
        except (RequestError, TimeoutError) as error:
            outcome.failure = f"{type(error).__name__} {error}"
        else:
            outcome.answer, outcome.executed = answer, True
            for name, value in answer.headers:
                if name == "etag":
                    tags[operation.key] = value
        outcome.ended = now()

    async with asyncio.TaskGroup() as group:
        for operation in operations:
            if operation.pause or not operation.concurrent:
                await asyncio.sleep(operation.pause)
            task = group.create_task(run_one(operation))
            if not operation.concurrent:
                await task
    if client is not None:
        await client.close()


def encode(outcome: OperationOutcome) -> tuple[bytes, bool]:
    """Return an operation's canonical bytes and whether it only reads."""
    method, target, body, headers = request_of(outcome)
    return encode_request(method, target, headers, body), method in READ_ONLY_METHODS

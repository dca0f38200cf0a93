"""The interface a replicated service implements, and how one is loaded.

A service is a deterministic state machine: what it answers, and what it holds afterwards,
depends only on its state, the request and the context.  Time and randomness come from the
context, never from the machine.  The least a service must have is ``apply``; one with state
also has ``snapshot`` and ``restore``.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from guests.protocol.message import MessageError, Reply, Request, encode_reply
from guests.protocol.wire import MAX_PAYLOAD

__all__ = [
    "MAX_REPLY",
    "Context",
    "Reply",
    "Request",
    "Service",
    "ServiceError",
    "answer",
    "load",
    "load_class",
    "state_digest",
]

T = TypeVar("T")

SHIPPED = {"kv": "guests.services.kv", "static": "guests.services.static"}

MAX_REPLY = MAX_PAYLOAD - (1 << 15)
"""Largest reply in bytes, headers included: 1 MiB and 32 KiB (the rest is for what frames add)."""

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class ServiceError(Exception):
    """A service that cannot be found or loaded."""


class Context:
    """What is agreed about one request besides its bytes: its number, time, seed and caller.

    ``seq``: its place in the order.  ``time_ns``: agreed time, nanoseconds since the epoch, never
    backwards.  ``caller``: who asked, as the voter knows them.  ``read_only``: the request must not
    change state; the voter does not keep it for recovery.
    """

    __slots__ = ("_random", "_seed", "caller", "read_only", "seq", "time_ns")

    def __init__(
        self, seq: int, time_ns: int, seed: bytes, caller: str, read_only: bool = False
    ) -> None:
        self.seq = seq
        self.time_ns = time_ns
        self.caller = caller
        self.read_only = read_only
        self._seed = seed
        self._random: random.Random | None = None

    @property
    def time(self) -> float:
        """Agreed time in seconds since the epoch."""
        return self.time_ns / 1e9

    @property
    def random(self) -> random.Random:
        """The random source of this request, the same in every replica."""
        if self._random is None:
            self._random = random.Random(self._seed)
        return self._random


class Service(ABC):
    """A deterministic service."""

    name = "service"
    state_format = 1
    """Version of what ``snapshot`` gives; replicas of different versions do not share a state."""

    @abstractmethod
    def apply(self, request: Request, context: Context) -> Reply:
        """Answer one request, changing the state if need be.

        An exception becomes a deterministic 500: make changes last, so that a request that
        fails has changed nothing.
        """

    def snapshot(self) -> Iterator[bytes]:
        """Give the whole state as bytes, in pieces, the same for the same state (sort sets)."""
        yield from ()

    def restore(self, state: bytes) -> None:
        """Replace the state by one that ``snapshot`` gave.  Empty bytes: the state at the start."""
        if state:
            raise ServiceError(f"service {self.name} has no state, yet was given one to restore")

    def digest(self) -> bytes:
        """Return the 32-byte BLAKE2b digest of the state, computed from the stored bytes.

        Must equal the digest of what ``snapshot`` gives: voters check a transferred state by it.
        """
        return state_digest(self.snapshot())


def state_digest(pieces: Iterator[bytes]) -> bytes:
    """Return the 32-byte BLAKE2b digest of a state given in pieces."""
    digest = blake2b(digest_size=32)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def answer(service: Service, request_bytes: bytes, context: Context) -> bytes:
    """Apply a request given as canonical bytes; return the reply's bytes, whatever happens.

    What is wrong with the request is a 400, an exception of the service a 500 that names the
    exception's class only (its text may hold addresses, which differ between replicas).  A reply
    over MAX_REPLY is a 500 too.  A request marked read-only must have a safe method: what it
    changed would be missing from every state that is rebuilt from the log.
    """
    try:
        request = Request.decode(request_bytes)
        if context.read_only and request.method not in _SAFE_METHODS:
            raise MessageError(f"method {request.method} in a request that is marked read-only")
    except MessageError as error:
        return encode_reply(Reply(400, f"{error}\n"))
    try:
        reply = service.apply(request, context)
    except MessageError as error:  # headers are taken apart only when the service asks for them
        return encode_reply(Reply(400, f"{error}\n"))
    except Exception as error:  # noqa: BLE001 - the service's own fault must not end the replica
        return encode_reply(Reply(500, f"service failed: {type(error).__name__}\n"))
    try:
        reply_bytes = encode_reply(reply)
    except Exception as error:  # noqa: BLE001 - anything may have been returned
        return encode_reply(Reply(500, f"service's reply is invalid: {type(error).__name__}\n"))
    if len(reply_bytes) > MAX_REPLY:
        return encode_reply(Reply(500, f"service's reply is over {MAX_REPLY} bytes\n"))
    return reply_bytes


def load(name: str) -> type[Service]:
    """Return the service class for a shipped name (``kv``, ``static``) or the path of a Python
    file.

    A file must define exactly one subclass of Service.  Raises ServiceError, saying what is wrong.
    """
    if name in SHIPPED:
        return _only(importlib.import_module(SHIPPED[name]), name, Service)  # type: ignore[type-abstract]
    return load_class(name, Service, known=SHIPPED)  # type: ignore[type-abstract]


def load_class(name: str, base: type[T], known: Iterable[str] = ()) -> type[T]:
    """Return the one subclass of ``base`` that the Python file ``name`` defines.

    ``known``: names that would do as well.  Raises ServiceError, saying what is wrong.
    """
    what = base.__name__.lower()
    path = Path(name)
    if not path.is_file():
        raise ServiceError(
            f"no {what} {name!r}: give one of {', '.join(sorted(known))}, or a Python file"
        )
    spec = importlib.util.spec_from_file_location(f"trivisor_user_{what}", path)
    if spec is None or spec.loader is None:
        raise ServiceError(f"{path} is not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ServiceError(f"{path} cannot be imported: {error!r}") from error
    return _only(module, name, base)


def _only(module: ModuleType, name: str, base: type[T]) -> type[T]:
    """Return the subclass of ``base`` that a module defines.  Raises ServiceError."""
    found = [
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, base) and item.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ServiceError(
            f"{name} must define exactly one subclass of {base.__module__}.{base.__name__}, "
            f"not {len(found)}"
        )
    lacking = sorted(getattr(found[0], "__abstractmethods__", ()))
    if lacking:
        raise ServiceError(
            f"{name}: class {found[0].__name__} must define the method {', '.join(lacking)}"
        )
    return found[0]

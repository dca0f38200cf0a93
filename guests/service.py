"""The interface that a replicated service implements, and the loader of services.

A service is a deterministic state machine: its reply and its next state depend only on its state,
the request and the context.  Time and randomness come from the context, never from the machine.
Every service has ``apply``; a service with state also has ``snapshot`` and ``restore``.
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
"""Largest reply in bytes with its headers: 1 MiB and 32 KiB; frames need the rest."""

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class ServiceError(Exception):
    """A service or function cannot be found or loaded, or cannot take a state."""


class Context:
    """What all replicas agree on for one request, apart from its bytes.

    ``seq``: its number in the order.  ``time_ns``: agreed time in nanoseconds since the epoch; it
    never decreases.  ``caller``: the client's name, as the voter knows it.  ``read_only``: the
    request must not change the state, and the voter does not keep it for recovery.
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
    """Version of the snapshot's format; replicas with different versions do not share a state."""

    @abstractmethod
    def apply(self, request: Request, context: Context) -> Reply:
        """Return the reply to one request; change the state if necessary.

        An exception becomes a deterministic 500.  Change the state last, so that a request that
        fails changes nothing.
        """

    def snapshot(self) -> Iterator[bytes]:
        """Yield the whole state as bytes, in pieces: equal states give equal bytes (sort sets)."""
        yield from ()

    def restore(self, state: bytes) -> None:
        """Replace the state by one from ``snapshot``.  Empty bytes: the initial state."""
        if state:
            raise ServiceError(f"service {self.name} has no state, yet was given one to restore")

    def digest(self) -> bytes:
        """Return the 32-byte BLAKE2b digest of the state, computed from the stored bytes.

        It must equal the digest of the snapshot: voters check a transferred state with it.
        """
        return state_digest(self.snapshot())


def state_digest(pieces: Iterator[bytes]) -> bytes:
    """Return the 32-byte BLAKE2b digest of a state in pieces."""
    digest = blake2b(digest_size=32)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def answer(service: Service, request_bytes: bytes, context: Context) -> bytes:
    """Apply a request in canonical bytes; return the reply's bytes.  Never raises.

    An invalid request gives a 400.  An exception of the service gives a 500 that names only its
    class: its text may hold addresses, which differ between replicas.  A reply over MAX_REPLY gives
    a 500.  A request marked read-only must have a safe method: its changes would be missing from
    every state that is rebuilt from the log.
    """
    try:
        request = Request.decode(request_bytes)
        if context.read_only and request.method not in _SAFE_METHODS:
            raise MessageError(f"method {request.method} in a request that is marked read-only")
    except MessageError as error:
        return encode_reply(Reply(400, f"{error}\n"))
    try:
        reply = service.apply(request, context)
    except MessageError as error:  # headers are decoded only when the service uses them
        return encode_reply(Reply(400, f"{error}\n"))
    except Exception as error:  # noqa: BLE001 - an error of the service must not end the replica
        return encode_reply(Reply(500, f"service failed: {type(error).__name__}\n"))
    try:
        reply_bytes = encode_reply(reply)
    except Exception as error:  # noqa: BLE001 - the service may return anything
        return encode_reply(Reply(500, f"service's reply is invalid: {type(error).__name__}\n"))
    if len(reply_bytes) > MAX_REPLY:
        return encode_reply(Reply(500, f"service's reply is over {MAX_REPLY} bytes\n"))
    return reply_bytes


def load(name: str) -> type[Service]:
    """Return the class of a shipped service (``kv``, ``static``), or the one in a Python file.

    A file must define exactly one subclass of Service.  Raises ServiceError that names the problem.
    """
    if name in SHIPPED:
        return _only(importlib.import_module(SHIPPED[name]), name, Service)  # type: ignore[type-abstract]
    return load_class(name, Service, known=SHIPPED)  # type: ignore[type-abstract]


def load_class(name: str, base: type[T], known: Iterable[str] = ()) -> type[T]:
    """Return the one subclass of ``base`` that the Python file ``name`` defines.

    ``known``: other names that the caller accepts.  Raises ServiceError that names the problem.
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
    sys.modules[spec.name] = module  # dataclasses find their module there
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
    missing = sorted(getattr(found[0], "__abstractmethods__", ()))
    if missing:
        raise ServiceError(
            f"{name}: class {found[0].__name__} must define the method {', '.join(missing)}"
        )
    return found[0]

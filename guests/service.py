"""The interface that a replicated service implements, and the loader of services.

A service is a deterministic state machine: its reply and its next state depend only on its state,
the request and the context.  Time and randomness come from the context, never from the machine.
Every service has ``apply``; a service with state also has ``snapshot`` and ``restore``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from guests.context import Context
from guests.errors import CodedError
from guests.protocol.message import Reply, Request

__all__ = [
    "Context",
    "Reply",
    "Request",
    "Service",
    "ServiceError",
    "load",
    "load_class",
    "state_digest",
]

T = TypeVar("T")

SHIPPED = {"kv": "guests.services.kv", "static": "guests.services.static"}


class ServiceError(CodedError):
    """A service or function cannot be found or loaded, or cannot take a state."""

    error_code = "TV0404"


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
            f"no {what} {name!r}: give one of {', '.join(sorted(known))}, or a Python file",
            error_code="TV0401",
        )
    spec = importlib.util.spec_from_file_location(f"trivisor_user_{what}", path)
    if spec is None or spec.loader is None:
        raise ServiceError(
            f"{path} is not a Python file (its name must end in .py)", error_code="TV0402"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses find their module there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        line = _line_of(error, path)
        where = f"{path}, line {line}," if line else str(path)
        why = f"SyntaxError: {error.msg}" if isinstance(error, SyntaxError) else repr(error)
        raise ServiceError(f"{where} cannot be imported: {why}", error_code="TV0402") from error
    return _only(module, name, base)


def _line_of(error: BaseException, path: Path) -> int | None:
    """Return the line of a file at which its import failed, or None if that is not known."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    line, place = None, error.__traceback__
    while place is not None:
        if place.tb_frame.f_code.co_filename == str(path):
            line = place.tb_lineno
        place = place.tb_next
    return line


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
            f"not {len(found)}",
            error_code="TV0403",
        )
    missing = sorted(getattr(found[0], "__abstractmethods__", ()))
    if missing:
        raise ServiceError(
            f"{name}: class {found[0].__name__} must define the method {', '.join(missing)}",
            error_code="TV0403",
        )
    return found[0]

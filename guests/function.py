"""The function f of the paper's Figure 5: something that every guest does before its service.

Here f is request authentication: it says of each request whether the service may see it.  The same
code runs in each guest (configuration C1: ``guarded`` wraps the service) or once on the host, as
F, before requests are ordered (C2: ``deploy.authorizer``).  Whoever runs it answers REFUSAL to what
it does not admit, so that the reply does not tell the two from each other.  What it was voted by
does (in C2 nobody voted on it), and so does a retry with the Idempotency-Key of a request before
it: in C1 the voter answers it, from the reply that it keeps, without asking f.  There whoever has a
key of the same caller gets its reply unsigned, and what was refused once stays refused under it.

A request has the header ``authorization: HMAC-SHA256 HEX``, over its method, target and body under
a key that is shared with the clients.  Other headers are not signed, and nothing in it is used up:
one who listens can send a request again.  Deterministic: the same request and key, the same word.
"""

from __future__ import annotations

import hmac
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, cast

from guests.protocol.function import REFUSAL_REPLY, SCHEME
from guests.protocol.message import MessageError, Reply, Request
from guests.service import Context, Service, ServiceError, load_class

__all__ = [
    "AUTHENTICATION",
    "Authentication",
    "Function",
    "guarded",
    "load_function",
    "read_key",
    "sign",
]

AUTHENTICATION = "hmac-sha256"
"""The shipped function's name."""
HEADER = "authorization"
LEAST_KEY = 16
"""Bytes of a key, at least."""


class Function(ABC):
    """f.  ``key`` is what the image or the command hands it."""

    def __init__(self, key: bytes) -> None:
        self.key = key

    @abstractmethod
    def admits(self, request: Request) -> bool:
        """Whether the service may see this request."""


class Authentication(Function):
    """Admits what somebody signed who has the key."""

    def admits(self, request: Request) -> bool:
        """Whether the request's signature is right."""
        try:
            given = request.headers.get(HEADER, "")
        except MessageError:  # headers that are not headers sign nothing
            return False
        _, right = sign(self.key, request.method, request.target, request.body)
        return hmac.compare_digest(given.encode("latin-1"), right.encode())


def sign(key: bytes, method: str, target: str, body: bytes = b"") -> tuple[str, str]:
    """Return the header, as (name, value), that makes a request pass."""
    # Neither a method nor a target holds a space or the end of a line: no two requests are alike.
    text = f"{method} {target}\n".encode("utf-8", "surrogatepass") + body
    return HEADER, f"{SCHEME} {hmac.digest(key, text, 'sha256').hex()}"


def guarded(service_class: type[Service], function: Function) -> type[Service]:
    """Return the service with f before it; its state, name and formats are the service's own."""

    def apply(self: Service, request: Request, context: Context) -> Reply:
        if not function.admits(request):
            return REFUSAL_REPLY
        return service_class.apply(self, request, context)

    members: dict[str, Any] = {"apply": apply, "__doc__": service_class.__doc__}
    return cast(type[Service], type(service_class.__name__, (service_class,), members))


def load_function(name: str, key: bytes) -> Function:
    """Return f by its name (``hmac-sha256``), or from a Python file that defines one Function.

    Raises ServiceError, saying what is wrong.
    """
    if name == AUTHENTICATION:
        return Authentication(key)
    return load_class(name, Function, known=(AUTHENTICATION,))(key)  # type: ignore[type-abstract]


def read_key(path: Path) -> bytes:
    """Return the key in a file: hexadecimal digits, two a byte (``openssl rand -hex 32``).

    Raises ServiceError, saying what is wrong.
    """
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise ServiceError(f"the key {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ServiceError(f"the key {path} is not hexadecimal digits: make one with "
                           "`openssl rand -hex 32`") from error  # fmt: skip
    if len(key) < LEAST_KEY:
        raise ServiceError(f"the key {path} has {len(key)} bytes: it takes {LEAST_KEY} or more")
    return key

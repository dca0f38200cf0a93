"""The function f of the paper's Figure 5: a step that every guest runs before its service.

Here f is request authentication: it decides whether the service may see a request.  The same code
runs in each guest (configuration C1: ``guarded`` wraps the service), or once on the host, as F,
before requests are ordered (C2: ``deploy.authorizer``).  Both reply REFUSAL to a request that is
not admitted.  A client can distinguish the two by the result of the vote: in C2 nobody voted on a
refusal.  It can also send a retry with the Idempotency-Key of an earlier request.  In C1 the
voter answers that retry from its cache, without f.  So any client with the same caller name and key
gets the cached reply, even unsigned, and a refused request stays refused under that key.

A signed request has the header ``authorization: HMAC-SHA256 HEX``, over method, target and body,
with a key shared with the clients.  Other headers are not signed.  There is no protection against
replay: an eavesdropper can send a request again.  f is deterministic in request and key.
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
"""Shortest key in bytes; a shorter one is an error."""


class Function(ABC):
    """The function f.  ``key``: from the image, or from the command line."""

    def __init__(self, key: bytes) -> None:
        self.key = key

    @abstractmethod
    def admits(self, request: Request) -> bool:
        """Return whether the service may see this request."""


class Authentication(Function):
    """Admits requests that are signed with the key."""

    def admits(self, request: Request) -> bool:
        """Return whether the request's signature is valid."""
        try:
            given = request.headers.get(HEADER, "")
        except MessageError:  # malformed headers contain no signature
            return False
        scheme, _, signature = given.partition(" ")
        _, right = sign(self.key, request.method, request.target, request.body)
        # The scheme's case and the spaces behind it have no meaning (RFC 9110, section 11).
        text = f"{scheme.upper()} {signature.strip(' ').lower()}"
        return hmac.compare_digest(text.encode("latin-1", "replace"), right.encode())


def sign(key: bytes, method: str, target: str, body: bytes = b"") -> tuple[str, str]:
    """Return the header, as (name, value), that signs a request."""
    # Method and target contain no space and no line end: different requests give different texts.
    text = f"{method} {target}\n".encode("utf-8", "surrogatepass") + body
    return HEADER, f"{SCHEME} {hmac.digest(key, text, 'sha256').hex()}"


def guarded(service_class: type[Service], function: Function) -> type[Service]:
    """Return the service with f before it; state, name and formats stay the service's."""

    def apply(self: Service, request: Request, context: Context) -> Reply:
        if not function.admits(request):
            return REFUSAL_REPLY
        return service_class.apply(self, request, context)

    members: dict[str, Any] = {"apply": apply, "__doc__": service_class.__doc__}
    return cast(type[Service], type(service_class.__name__, (service_class,), members))


def load_function(name: str, key: bytes) -> Function:
    """Return f by its name (``hmac-sha256``), or from a Python file that defines one Function.

    Raises ServiceError that names the problem.
    """
    if name == AUTHENTICATION:
        return Authentication(key)
    return load_class(name, Function, known=(AUTHENTICATION,))(key)  # type: ignore[type-abstract]


def read_key(path: Path) -> bytes:
    """Return the key in a file of hexadecimal digits (``openssl rand -hex 32``).

    Raises ServiceError that names the problem.
    """
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise ServiceError(
            f"the key {path} cannot be read: {error.strerror}", error_code="TV0406"
        ) from error
    except ValueError as error:
        raise ServiceError(f"the key {path} is not hexadecimal digits: make one with "
                           "`openssl rand -hex 32`", error_code="TV0406") from error  # fmt: skip
    if len(key) < LEAST_KEY:
        raise ServiceError(
            f"the key {path} has {len(key)} bytes: it takes {LEAST_KEY} or more",
            error_code="TV0406",
        )
    return key

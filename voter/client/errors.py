"""Why a request got no reply, as the client library raises it::

RequestError
├── NotExecuted        the voter rejected it before it was ordered: safe to retry
│   └── Overload       ... because too many requests wait already
├── OutcomeUnknown     ordered, and no majority is possible now: it may have been executed
├── TimedOut           ordered, and not settled in time: it may have been executed
├── SessionExpired     retried too late to know whether it was executed
├── KeyReused          its number or key was used for another request: not executed
├── Unauthorized       no token, or not a valid one: not executed; a retry would not help
├── Blocked            an operator or the monitor blocked this client: not executed
├── TooLarge           over the largest payload: never sent
└── ConnectionFailed   no voter there, or the connection broke: it may have been executed
"""

from __future__ import annotations

from voter.core.events import Failure
from voter.errors import VoterError

__all__ = [
    "Blocked", "ConnectionFailed", "KeyReused", "NotExecuted", "OutcomeUnknown", "Overload",
    "RequestError", "SessionExpired", "TimedOut", "TooLarge", "Unauthorized", "failure_error",
]  # fmt: skip


class RequestError(VoterError):
    """A request got no reply.

    ``request_id``: what `trivisor trace` takes, SESSION:NUMBER; empty for reads and without retry.
    """

    code = "error"
    error_code = "TV0300"
    request_id = ""


class NotExecuted(RequestError):
    """Refused before it was ordered; safe to retry."""

    code = Failure.NOT_EXECUTED
    error_code = "TV0301"


class Overload(NotExecuted):
    """Refused before it was ordered, because too much waits; safe to retry later."""

    code = Failure.OVERLOAD
    error_code = "TV0302"


class OutcomeUnknown(RequestError):
    """Ordered, but no majority can be had now; it may have been executed."""

    code = Failure.OUTCOME_UNKNOWN
    error_code = "TV0303"


class TimedOut(RequestError):
    """Not settled in time; it may have been executed."""

    code = Failure.TIMEOUT
    error_code = "TV0304"


class SessionExpired(RequestError):
    """The voter no longer knows the session; a request sent before may have been executed."""

    code = Failure.SESSION_EXPIRED
    error_code = "TV0305"


class KeyReused(RequestError):
    """The request's number or key was used for another request; this one was not executed."""

    code = Failure.KEY_REUSED
    error_code = "TV0306"


class Unauthorized(RequestError):
    """No token, or not a valid one; this request was not executed."""

    code = "unauthorized"
    error_code = "TV0971"


class Blocked(RequestError):
    """An operator or the monitor blocked this client; this request was not executed."""

    code = "blocked"
    error_code = "TV0250"


class TooLarge(RequestError):
    """Over the largest payload."""

    code = Failure.TOO_LARGE
    error_code = "TV0307"


class ConnectionFailed(RequestError):
    """The connection to the voter failed."""

    code = "connection"
    error_code = "TV0309"


_BY_CODE = {
    error.code: error
    for error in (
        NotExecuted, Overload, OutcomeUnknown, TimedOut, SessionExpired, KeyReused, TooLarge,
        Unauthorized, Blocked,
    )
}  # fmt: skip


def failure_error(code: str, detail: str) -> RequestError:
    """Return the exception for a failure code as the voter sends it."""
    return _BY_CODE.get(code, RequestError)(f"{code}: {detail}")

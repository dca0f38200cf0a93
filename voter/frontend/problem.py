"""Problems: what a client gets in place of a reply (RFC 9457, application/problem+json).

=================================== ======= ======================================================
type                                status  meaning
=================================== ======= ======================================================
urn:trivisor:not-executed           503     refused before it had an effect: safe to retry
urn:trivisor:overload               503     the same, because too many requests wait
urn:trivisor:outcome-unknown        502     ordered, no majority possible: may have been executed
urn:trivisor:timeout                504     ordered, not settled in time: may have been executed
urn:trivisor:bad-reply              502     the majority's reply is not an HTTP message
urn:trivisor:key-reused             422     the Idempotency-Key was used for another request
urn:trivisor:session-expired        410     executed under this key; its reply is no longer kept
urn:trivisor:too-large              413     the body is over the limit
urn:trivisor:bad-request            400     not HTTP, or HTTP that can be read in two ways
urn:trivisor:unauthorized           401     no token, or not a valid one
urn:trivisor:forbidden              403     (control socket) not a user who may use it
urn:trivisor:blocked                403     an operator, or the monitor, blocked this client
urn:trivisor:slow-request           408     request line, headers or body came too late
urn:trivisor:target-too-long        414     the request target is too long
urn:trivisor:expectation            417     an Expect other than 100-continue
urn:trivisor:headers-too-large      431     the headers are over the limit
urn:trivisor:not-implemented        501     CONNECT: the voter makes no tunnels
urn:trivisor:version                505     not HTTP/1.0 or HTTP/1.1
urn:trivisor:not-found              404     (control socket) no such path, replica or role
urn:trivisor:roles                  409     (control socket) no such change of roles is possible now
urn:trivisor:stale-roles            409     (control socket) the roles have another version
urn:trivisor:method                 405     not a method of this reserved path
=================================== ======= ======================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, inf

import msgspec

from guests.protocol.message import Reply
from voter.core.events import Fail, Failure

__all__ = ["RETRY_AFTER", "problem", "problem_of_failure", "problem_of_status"]

RETRY_AFTER = 1
"""Seconds after which a client may retry a refused request: about the time of a repair.

It is used where the cause passes without help.  Where the voter knows a later time, it says that
time; where an operator must act (a full disk, a draining node), it says none.
"""

_FAILURES: dict[str, tuple[str, int, str]] = {
    Failure.NOT_EXECUTED: ("TV0301", 503, "The request was not executed"),
    Failure.OVERLOAD: ("TV0302", 503, "Too many requests wait; this one was not executed"),
    Failure.OUTCOME_UNKNOWN: ("TV0303", 502, "No majority: the request may have been executed"),
    Failure.TIMEOUT: ("TV0304", 504, "No majority in time: the request may have been executed"),
    Failure.TOO_LARGE: ("TV0307", 413, "The request is too large"),
    Failure.KEY_REUSED: ("TV0306", 422, "The Idempotency-Key was used for another request"),
    Failure.SESSION_EXPIRED: ("TV0305", 410, "The request was executed, and its reply is gone"),
}

_STATUSES: dict[int, tuple[str, str, str]] = {
    400: ("TV0312", "bad-request", "The request is malformed"),
    401: ("TV0971", "unauthorized", "A valid token is needed"),
    403: ("TV0972", "forbidden", "This user may not use the control socket"),
    404: ("TV0316", "not-found", "No such path or replica"),
    405: ("TV0317", "method", "Method not allowed"),
    408: ("TV0313", "slow-request", "The request did not come in time"),
    413: ("TV0307", "too-large", "The request is too large"),
    414: ("TV0314", "target-too-long", "The request target is too long"),
    417: ("TV0315", "expectation", "The expectation cannot be met"),
    431: ("TV0314", "headers-too-large", "The request's headers are too large"),
    501: ("TV0315", "not-implemented", "Not implemented"),
    502: ("TV0311", "bad-reply", "The voted reply cannot be passed on"),
    503: ("TV0302", "overload", "Too much is under way; this request was not executed"),
    505: ("TV0315", "version", "HTTP version not supported"),
}


def problem(
    kind: str,
    code: str,
    title: str,
    status: int,
    detail: str,
    seq: int = 0,
    wait: float = 0.0,
    extra: Mapping[str, object] | None = None,
) -> Reply:
    """Return a problem as a reply; without ``seq`` if the request was not ordered.

    ``code`` is the error's code, as TV0301.  ``wait``: seconds until a retry can succeed, for 503.
    ``extra`` holds more members of the document.
    """
    document: dict[str, object] = {"type": f"urn:trivisor:{kind}", "title": title}
    document |= {"status": status, "detail": detail, "code": code} | ({"seq": seq} if seq else {})
    document |= extra or {}
    headers = [("content-type", "application/problem+json"), ("cache-control", "no-store")]
    if status == 503 and wait < inf:
        headers.append(("retry-after", str(max(RETRY_AFTER, ceil(wait)))))
    return Reply(status, msgspec.json.encode(document) + b"\n", headers)


def problem_of_failure(fail: Fail) -> Reply:
    """Return the problem for a failure of the engine."""
    code, status, title = _FAILURES.get(fail.failure, ("TV0300", 502, "The request got no reply"))
    return problem(fail.failure, code, title, status, fail.detail, fail.seq, fail.wait)


def problem_of_status(status: int, detail: str, seq: int = 0) -> Reply:
    """Return the problem for an error found before or after the vote."""
    code, kind, title = _STATUSES[status]
    return problem(kind, code, title, status, detail, seq)

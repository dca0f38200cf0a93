"""Paths that the voter answers itself, without a vote (GET and HEAD only).

======== =========================================================================================
/livez   200 while the voter's event loop runs
/readyz  200 if requests are taken (``ready`` or ``degraded``), else 503; the body is the state;
         with ``?verbose`` it is JSON that also holds each replica's state
/metrics Prometheus' text format, or OpenMetrics 1.0 if the client's Accept asks for it
======== =========================================================================================
"""

from __future__ import annotations

import msgspec

from guests.protocol.message import Reply
from voter.frontend.problem import RETRY_AFTER, problem_of_status
from voter.frontend.request import HttpRequest
from voter.metrics import Metrics
from voter.runner import Runner

__all__ = ["Reserved"]

_TEXT = ("content-type", "text/plain; charset=utf-8")
_UNCACHED = ("cache-control", "no-store")


class Reserved:
    """Answers the reserved paths of one voter."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._metrics = Metrics(runner)
        self._answers = {"/livez": self._live, "/readyz": self._ready, "/metrics": self._measure}

    def __contains__(self, path: str) -> bool:
        """Return whether the voter answers this path itself."""
        return path in self._answers

    def answer(self, request: HttpRequest) -> Reply:
        """Return the reply to a request for a path that is contained here."""
        path = request.target.partition("?")[0]
        if request.method not in ("GET", "HEAD"):
            reply = problem_of_status(405, f"{path} is the voter's own: GET and HEAD only")
            return Reply(405, reply.body, [*reply.headers, ("allow", "GET, HEAD")])
        return self._answers[path](request)

    def _live(self, request: HttpRequest) -> Reply:
        return Reply(200, "live\n", (_TEXT, _UNCACHED))

    def _ready(self, request: HttpRequest) -> Reply:
        engine = self._runner.engine
        status = engine.status
        takes = status in ("ready", "degraded")
        headers: tuple[tuple[str, str], ...] = (_TEXT, _UNCACHED)
        body = f"{status}\n".encode()
        query = request.target.partition("?")[2]
        if any(part.partition("=")[0] == "verbose" for part in query.split("&")):
            headers = (("content-type", "application/json"), _UNCACHED)
            replicas = {replica.name: str(replica.state) for replica in engine.members}
            document = {
                "status": status,
                "vote": str(self._runner.policy),
                "active": len(engine.members.active),
                "replicas": replicas,
            }
            body = msgspec.json.encode(document) + b"\n"
        if status == "refusing":
            headers = (*headers, ("retry-after", str(RETRY_AFTER)))
        return Reply(200 if takes else 503, body, headers)

    def _measure(self, request: HttpRequest) -> Reply:
        accept = b",".join(value for name, value in request.headers if name == b"accept")
        body, kind = self._metrics.render(accept)
        return Reply(200, body, (("content-type", kind), ("vary", "accept"), _UNCACHED))

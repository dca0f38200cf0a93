"""The control socket: what operators and the supervisor may ask of the voter (HTTP on a unix one).

============================= ===================================================================
GET /status                   everything, as JSON
GET /events?since=ID          incidents with an id over ID (0: all that are kept), one JSON object a
                              line, then each new one as it comes; an empty line every 15 s
GET /differences?since=ID     replies of replicas without a vote that differ from the released
                              ones, in the same form (``voter.reports.Difference``)
GET /requests                 each request as it is ordered, one JSON object a line
                              (``voter.request_tap``); an empty line every 15 s
POST /clients/block           refuse a client's requests, and close its connections; body
                              ``{"caller": NAME, "seconds": NUMBER or null, "reason": TEXT}``
POST /clients/unblock         serve it again; body ``{"caller": NAME}``
GET /trace/ID                 what happened to a recent request (``voter.trace``), as JSON
POST /roles                   change roles (below); answers once the change is durable
POST /checkpoint              compare the states of all replicas soon, and shorten the log
POST /drain                   take no new requests; answers once nobody waits for a result
POST /stop                    end the voter as SIGTERM does: it first answers its open requests
POST /replicas/NAME/admit     allow a replica to come back, and connect to it at once
POST /replicas/NAME/expel     take a replica out of the vote; body ``{"reason": "..."}``
GET /livez, /readyz, /metrics as on the HTTP front end
============================= ===================================================================

A change of roles is ``{"version": V, "roles": {NAME: ROLE, ...}, "reason": TEXT}``.  Only the named
replicas change, and only if the table has version V (``roles`` in the status).  The roles are
voter, learner, observer and retired.  409 if the table has another version, or if the change is
impossible now (``voter.core.roles``); the answer holds the table.  With ``"active": N``, at least N
voters must be active after the change.  With ``"voters": N`` there are to be N voters, m to n.

Only root, the voter's user, the owner of the socket's file and a group to which it is open may use
it; others get 403.  Errors are problems (``voter.frontend.problem``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from guests import compiled
from guests.protocol.message import Reply
from voter import log
from voter.config import Timing
from voter.core import events as ev
from voter.core.events import Fail, RolesChanged
from voter.core.replica import CAUGHT_UP
from voter.frontend.connection import HttpConnection, HttpFrontEnd
from voter.frontend.problem import problem, problem_of_failure, problem_of_status
from voter.frontend.request import HttpRequest
from voter.frontend.reserved import Reserved
from voter.reports import EventLog
from voter.runner import RolesResult, Runner
from voter.sockets import Trusted
from voter.trace import LATENCY_BOUNDS, UnknownRequest

if TYPE_CHECKING:
    from voter.access import Access

__all__ = ["VoterControlServer", "describe"]

_STARTED = time.time()  # before the configuration is read
HEARTBEAT = 15.0
"""Seconds without an event after which an event stream carries an empty line."""
BODY_LIMIT = 64 << 10
"""Largest body of a request, in bytes; a larger one is answered 413."""

_PARTS = {"replicas": 3, "trace": 2, "clients": 2}
"""Parts of a path that has more than one."""


_ROLE_PROBLEMS = {
    "not-found": ("TV0316", 404), "stale-roles": ("TV0242", 409), "roles": ("TV0241", 409),
    "not-executed": ("TV0301", 503),
}  # fmt: skip
"""Code and status of each reason why a change of roles is refused."""


class _RoleRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of a change of roles."""

    version: int
    roles: dict[str, str]
    active: int = 0
    voters: int = 0
    reason: str = ""


class _Expulsion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of an expel request."""

    reason: str = "expelled by the operator"


class _Client(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of a request to block a client or to serve it again."""

    caller: str
    seconds: Annotated[float, msgspec.Meta(gt=0, le=1e9)] | None = None
    reason: str = "blocked by the operator"


def _json(document: object) -> Reply:
    body = msgspec.json.encode(document) + b"\n"
    return Reply(200, body, (("content-type", "application/json"),))


class VoterControlServer(HttpFrontEnd):
    """Serves the control socket of one voter."""

    def __init__(
        self,
        runner: Runner,
        stop: Callable[[], object],
        listening: Sequence[tuple[str, object]] = (),
        access: Access | None = None,
    ) -> None:
        """``stop`` ends the voter; ``listening`` are names and addresses of its sockets.

        ``access`` is that of the front ends, to be described: this socket's is by user.
        """
        super().__init__(Timing(), BODY_LIMIT)
        self._listening = listening
        self._described = access
        self._trusted = Trusted(frozenset(), None)
        self._stop = stop
        self._runner = runner
        self._reserved = Reserved(runner)

    async def serve(self, sock: socket.socket) -> None:
        """Serve one listening socket, for those whom its file admits now (``Trusted``)."""
        self._trusted = Trusted.of(sock)
        await super().serve(sock)

    def handle(self, connection: HttpConnection, request: HttpRequest) -> None:
        """Answer one call."""
        peer = connection.peer
        if peer is not None and not self._trusted.admits(peer):
            log.info("control refused", pid=peer.pid, uid=peer.uid, path=request.target[:200])
            text = f"uid {peer.uid} may not use this socket: only {self._trusted} may"
            connection.refuse(403, text)
            return
        method = request.method
        path, _, query = request.target.partition("?")
        parts = path.split("/")[1:]
        allowed = {
            "status": "GET, HEAD", "events": "GET", "differences": "GET", "drain": "POST",
            "stop": "POST", "roles": "POST", "replicas": "POST", "trace": "GET", "requests": "GET",
            "clients": "POST", "checkpoint": "POST",
        }.get(parts[0])  # fmt: skip
        if path in self._reserved:
            connection.answer(self._reserved.answer(request))
        elif allowed is None or len(parts) != _PARTS.get(parts[0], 1):
            connection.answer(problem_of_status(404, f"{path}: no such path"))
        elif method not in allowed.split(", "):
            problem = problem_of_status(405, f"{path}: the methods are {allowed}")
            connection.answer(Reply(405, problem.body, [*problem.headers, ("allow", allowed)]))
        elif parts[0] == "status":
            voter = {
                "pid": os.getpid(),
                "started": _STARTED,
                "listening": self._listening,
                "waiting": self._runner.waiting,
                "security": self._described.describe() if self._described is not None else None,
                "compiled": compiled.COMPILED,
                "not_compiled_because": compiled.REASON,
            }
            connection.answer(_json(voter | describe(self._runner)))
        elif parts[0] == "trace":
            connection.answer(self._trace(parts[1]))
        elif parts[0] == "events":
            self._stream(connection, query, self._runner.reports.incidents)
        elif parts[0] == "differences":
            self._stream(connection, query, self._runner.reports.differences)
        elif parts[0] == "roles":
            self._change_roles(connection, request.body)
        elif parts[0] == "checkpoint":
            self._runner.receive(ev.TakeCheckpoint())
            connection.answer(_json({"requested": True}))
        elif parts[0] == "requests":
            connection.start_stream("application/x-ndjson")
            self._run(connection, self._send_requests(connection))
        elif parts[0] == "clients":
            connection.answer(self._change_client(parts[1], request.body))
        elif parts[0] == "stop":
            connection.answer(_json({"stopping": True}))
            self._stop()
        elif parts[0] == "drain":
            self._run(connection, self._drain(connection))
        else:
            connection.answer(self._change_replica(parts[1], parts[2], request.body))

    def _trace(self, name: str) -> Reply:
        try:
            return _json(self._runner.trace(name))
        except UnknownRequest as error:
            return problem_of_status(404, str(error))

    def _run(self, connection: HttpConnection, work: Coroutine[None, None, None]) -> None:
        """Answer by a task, which ends with its connection."""
        task = asyncio.ensure_future(work)
        connection.on_lost = task.cancel

    async def _drain(self, connection: HttpConnection) -> None:
        await self._runner.drained()
        connection.answer(_json({"pending": self._runner.waiting}))

    def _change_roles(self, connection: HttpConnection, body: bytes) -> None:
        """Change roles; answer once that is durable."""
        try:
            wanted = msgspec.json.decode(body, type=_RoleRequest)
        except msgspec.DecodeError as error:
            text = f'expected {{"version": V, "roles": {{NAME: ROLE}}}}: {error}'
            connection.answer(problem_of_status(400, text))
            return

        def answer(result: RolesResult) -> None:
            table = describe_roles(self._runner)
            if isinstance(result, Fail):
                connection.answer(problem_of_failure(result))
            elif isinstance(result, RolesChanged):
                connection.answer(_json({"version": result.version, "seq": result.seq} | table))
            else:
                code, status = _ROLE_PROBLEMS[result.problem]
                title, kind = "The roles were not changed", result.problem
                connection.answer(problem(kind, code, title, status, result.detail, extra=table))

        change = ev.ChangeRoles(ticket=0, **msgspec.structs.asdict(wanted))
        self._runner.change_roles(change, answer)

    def _stream(self, connection: HttpConnection, query: str, events: EventLog[Any]) -> None:
        fields = dict(part.partition("=")[::2] for part in query.split("&"))
        since = fields.get("since", "0")
        if since.isascii() and since.isdigit() and len(since) <= 18:
            connection.start_stream("application/x-ndjson")
            self._run(connection, self._send_events(connection, events, int(since)))
        else:
            text = f"since={since!r} is not the id of an event"
            connection.answer(problem_of_status(400, text))

    async def _send_events(
        self, connection: HttpConnection, events: EventLog[Any], after: int
    ) -> None:
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT):
                    found = await events.after(after)
            except TimeoutError:
                connection.write(b"\n")
                continue
            lines = [msgspec.json.encode(event._asdict()) + b"\n" for event in found]
            connection.write(b"".join(lines))
            after = found[-1].id

    async def _send_requests(self, connection: HttpConnection) -> None:
        """Send each request that is ordered from now on.  A slow client misses some."""
        from voter.request_tap import RequestTap, TapReader  # noqa: PLC0415 - loaded if needed

        tracer, reader = self._runner.tracer, TapReader()
        tracer.tap = tap = tracer.tap if isinstance(tracer.tap, RequestTap) else RequestTap()
        tap.readers.add(reader)
        try:
            while True:
                lines = b"\n"
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HEARTBEAT):
                        lines = await reader.next()
                connection.write(lines)
                await connection.drained()
        finally:
            tap.readers.discard(reader)
            if not tap.readers:
                tracer.tap = None

    def _change_client(self, action: str, body: bytes) -> Reply:
        """Block a client or serve it again."""
        from voter.blocked_clients import blocked_of  # noqa: PLC0415 - loaded if needed

        try:
            order = msgspec.json.decode(body, type=_Client)
            caller = order.caller.encode(errors="surrogateescape")
            if action == "block":
                blocked_of(self._runner).block(caller, order.seconds, order.reason[:200])
            elif action == "unblock":
                blocked_of(self._runner).unblock(caller)
            else:
                return problem_of_status(404, f"{action}: the actions are block and unblock")
        except ValueError as error:  # also what msgspec raises
            return problem_of_status(400, f'expected {{"caller": NAME}}: {error}')
        return _json({"caller": order.caller, "blocked": action == "block"})

    def _change_replica(self, name: str, action: str, body: bytes) -> Reply:
        """Admit or expel a replica."""
        try:
            index = self._runner.find(name)
            expulsion = msgspec.json.decode(body or b"{}", type=_Expulsion)
        except msgspec.DecodeError as error:
            return problem_of_status(400, f'expected {{"reason": TEXT}}: {error}')
        except ValueError:
            names = ", ".join(self._runner.names)
            return problem_of_status(404, f"{name}: no such replica; there are {names}")
        if action == "admit":
            self._runner.readmit(index)
        elif action == "expel":
            self._runner.receive(ev.Expel(index, expulsion.reason[:200]))
        else:
            return problem_of_status(404, f"{action}: the actions are admit and expel")
        replica = self._runner.engine.members[index]
        return _json({"name": replica.name, "state": replica.state, "reason": replica.reason})


def describe_roles(runner: Runner) -> dict[str, Any]:
    """Return the table of roles and its version, as plain data."""
    members = runner.engine.members
    return {"roles": {"version": members.roles_version, "table": members.roles}}


def describe(runner: Runner) -> dict[str, Any]:
    """Return everything an operator may ask, as plain data."""
    engine, replicas = runner.engine, []
    for replica, link in zip(engine.members, runner.links, strict=True):
        welcome = link.welcome
        replicas.append(
            {
                "name": replica.name,
                "role": str(replica.role),
                "state": str(replica.state),
                "caught_up": replica.state in CAUGHT_UP,
                "reason": replica.reason,
                "link": link.address.text,
                "link_problem": link.problem,
                "epoch": f"{replica.epoch:016x}",
                "incarnation": replica.incarnation,
                "service": welcome.service if welcome else None,
                "build": welcome.build.removesuffix(compiled.MARK) if welcome else None,
                "compiled": welcome.build.endswith(compiled.MARK) if welcome else None,
                "lag": replica.requests,
                "dissents": replica.dissents,
                "compared": replica.compared,
                "differed": replica.differed,
                "behind_seconds": replica.behind,
                "digest_seq": replica.digest_seq,
                "incarnations_ended": replica.incarnations_ended,
            }
        )
    return {
        "status": engine.status,
        "vote": str(runner.policy),
        "active": len(engine.members.active),
        "seq": engine.log.seq,
        "pending": engine.pending,
        "throttled": engine.throttle.on,
        "durability": runner.config.durable,
        "follow": {
            "setting": runner.config.follow,
            "on": engine.followers.enabled,
            "later": [engine.members[index].name for index in engine.followers.later],
        },
        "journal": runner.journal.status() if runner.journal is not None else None,
        "once": {
            "sessions": engine.dedup.sessions,
            "keys": engine.dedup.keys,
            "bytes": engine.dedup.size,
        },
        "log": {"writes": len(engine.log), "bytes": engine.log.bytes},
        "checkpoint": {
            "seq": engine.log.checkpoint.seq,
            "size": len(engine.log.checkpoint.state),
            "digest": (engine.log.checkpoint.digest or b"").hex() or None,
        },
        "blocked": getattr(runner.blocked, "reasons", {}),
        "replicas": replicas,
        **describe_roles(runner),
        "latency": {"bounds": LATENCY_BOUNDS, "counts": runner.latency},  # of seconds
        "counters": runner.counters
        | {"incarnations_ended": engine.members.incarnations_ended, "failures": runner.failures},
    }

"""The supervisor's control socket: HTTP with JSON on a unix socket that only its owner can open.

(For the node that systemd runs, also the group trivisor can: see ``share_socket``.)  The user of
the process that connects is checked too (``voter.sockets.Trusted``): others get 403.

    GET  /status
    GET  /events?lines=N             {"events": the last ones}; /logs/NAME: {"lines"} of a guest
    GET  /events?follow=1&since=ID   each event, /logs/NAME: {"line"}, as a line of JSON
    GET  /metrics                    Prometheus' text format, or OpenMetrics
    GET  /trace/ID                   what happened to a recent request
    POST /inject                     {"kind", "guest", "seconds": number or null}
    POST /heal                       {"guest"}
    POST /rejuvenate                 {"guest", "by": clone, boot, in-place or null, "share"}
    POST /dashboard                  {"url": a link that logs a browser in, "seconds": its life}
    POST /campaign                   a running campaign's figures, for the dashboard
    GET, POST /patch...              patches (``patch_routes``)
    POST /monitor                    a match of a rule of `trivisor monitor`, for the events
    POST /revert                     {"before", "rule", "detail"}: undo a request and all after it
    POST /down                       answered at once; the process ends when the node is down

The answer to a failed request is {"error", "remedy", "error_code", "code"}: ``error_code`` is for
`trivisor explain`, ``code`` is the CLI's exit code.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import msgspec
import structlog
from aiohttp import web

from deploy.dashboard.dashboard import TOKEN_LIFE, Dashboard
from deploy.dashboard.server import HealOrder, InjectOrder
from deploy.errors import DeployError, UnknownGuest
from deploy.host.files import share_socket
from deploy.machine.console import Console
from deploy.monitoring.supervisor_metrics import SupervisorMetrics
from deploy.strict_toml import SpecError
from deploy.supervisor.active_faults import FaultRefused
from deploy.supervisor.observer import HISTORY_LENGTH
from deploy.supervisor.patch_orders import NoPatch
from deploy.supervisor.patch_routes import PatchRoutes
from deploy.supervisor.rejuvenation import Method
from deploy.supervisor.reverting import Reverter, RevertOrder
from deploy.supervisor.supervisor import Supervisor
from deploy.supervisor.voter_control import VoterControl, VoterRefused, VoterUnreachable
from voter.commands.terminal import ExitCode, code_of
from voter.sockets import Trusted, listen_unix, peer_of

__all__ = ["SupervisorControlServer"]

_log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


_BAD_REQUEST = "TV0734"


class RejuvenateOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What POST /rejuvenate gets.  None: as the node's settings say."""

    guest: str
    by: Method | None = None
    share: Annotated[int, msgspec.Meta(ge=0, le=100)] | None = None


class _RuleMatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A match of a rule of the monitor, as the monitor reports it."""

    rule: str
    action: str
    outcome: str
    detail: str
    guest: str | None = None
    caller: str | None = None
    seq: int | None = None
    seconds: float = 0.0
    not_reported: int | None = None


class SupervisorControlServer:
    """Serves one supervisor's control socket."""

    def __init__(self, supervisor: Supervisor, dashboard: Dashboard | None = None) -> None:
        self._supervisor = supervisor
        self._voter = VoterControl(supervisor.layout.voter_control)
        self._metrics = SupervisorMetrics()
        self._reverter = Reverter(supervisor.layout, supervisor.guests, supervisor.history)
        self._dashboard = dashboard
        self._trusted: Trusted | None = None  # once it listens
        app = web.Application(middlewares=[self._check_peer, _errors])
        app.router.add_get("/status", self._status)
        app.router.add_get("/events", self._events)
        app.router.add_get("/logs/{name}", self._logs)
        app.router.add_get("/metrics", self._measure)
        app.router.add_get("/trace/{name}", self._trace)
        app.router.add_post("/inject", self._inject)
        app.router.add_post("/heal", self._heal)
        app.router.add_post("/rejuvenate", self._rejuvenate)
        app.router.add_post("/dashboard", self._link)
        app.router.add_post("/campaign", self._campaign)
        app.router.add_post("/monitor", self._matched)
        app.router.add_post("/revert", self._revert)
        app.router.add_post("/down", self._down)
        PatchRoutes(supervisor.patcher, supervisor.layout.journal).add_to(app)
        # No access log: it would only displace other lines in the supervisor's log.
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=1.0, handler_cancellation=True
        )

    async def start(self) -> None:
        """Serve.  Raises voter.errors.AddressError."""
        await self._runner.setup()
        path = self._supervisor.layout.supervisor_socket
        sock = listen_unix(str(path))
        share_socket(path)
        self._trusted = Trusted.of(sock)
        await web.SockSite(self._runner, sock).start()

    async def stop(self) -> None:
        """Stop serving and remove the socket."""
        await self._runner.cleanup()
        await self._voter.close()
        path = self._supervisor.layout.supervisor_socket
        self._supervisor.storage.write(path.name, lambda: path.unlink(missing_ok=True))

    @web.middleware
    async def _check_peer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Reject processes of users who may not operate this node."""
        sock = request.transport.get_extra_info("socket") if request.transport else None
        peer = peer_of(sock) if sock is not None else None
        if peer is None or self._trusted is None or not self._trusted.admits(peer):
            uid = "a user who has gone" if peer is None else f"uid {peer.uid}"
            _log.info("control refused", uid=uid, pid=peer and peer.pid, path=request.path[:200])
            refused = DeployError(
                f"{uid} may not operate this node: only {self._trusted} may",
                remedy="use sudo, or become that user",
                error_code="TV0972",
            )
            return _problem(403, refused, ExitCode.NOT_ALLOWED)
        return await handler(request)

    async def _status(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await self._supervisor.status())

    async def _events(self, request: web.Request) -> web.StreamResponse:
        history = self._supervisor.history
        if "follow" in request.query:
            since = _number(request, "since", 0)
            return await _send_lines(request, history.follow(since))
        lines = _lines(request)
        return web.json_response({"events": history.after(0)[-lines:] if lines else []})

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        guest = self._supervisor.find(request.match_info["name"])
        if "follow" in request.query:
            return await _send_lines(request, _follow(guest.console))
        return web.json_response({"lines": guest.tail(_lines(request))})

    async def _measure(self, request: web.Request) -> web.StreamResponse:
        accept = ",".join(request.headers.getall("Accept", []))
        status = await self._supervisor.status()
        body, kind = self._metrics.render(status, accept.encode(errors="replace"))
        return web.Response(body=body, headers={"Content-Type": kind, "Vary": "Accept"})

    async def _trace(self, request: web.Request) -> web.StreamResponse:
        try:
            return web.json_response(await self._voter.trace(request.match_info["name"]))
        except VoterRefused as error:
            told = DeployError(error.detail, error_code="TV0951")
            return _problem(404, told, ExitCode.FAILED)
        except VoterUnreachable as error:
            remedy = "`trivisor status` shows when it answers again; ask again then"
            lost = DeployError(error.problem, remedy=remedy, error_code=error.error_code)
            return _problem(503, lost, ExitCode.NOT_UP)

    async def _inject(self, request: web.Request) -> web.StreamResponse:
        order = msgspec.json.decode(await request.read(), type=InjectOrder)
        record = await self._supervisor.inject(order.kind, order.guest, order.seconds)
        return web.json_response({"guest": order.guest} | msgspec.to_builtins(record))

    async def _heal(self, request: web.Request) -> web.StreamResponse:
        order = msgspec.json.decode(await request.read(), type=HealOrder)
        return web.json_response(await self._supervisor.heal(order.guest))

    async def _rejuvenate(self, request: web.Request) -> web.StreamResponse:
        order = msgspec.json.decode(await request.read(), type=RejuvenateOrder)
        done = await self._supervisor.rejuvenate(order.guest, by=order.by, share=order.share)
        return web.json_response(done)

    async def _link(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"url": self._shown.new_link(), "seconds": TOKEN_LIFE})

    async def _campaign(self, request: web.Request) -> web.StreamResponse:
        self._shown.board.post(await request.read())
        return web.json_response({})

    @property
    def _shown(self) -> Dashboard:
        """The dashboard.  Raises DeployError if the node has none."""
        if self._dashboard is None:
            raise DeployError(
                "this node has no dashboard",
                error_code="TV0907",
                remedy=f"start it with {self._supervisor.layout.option('dashboard', 'HOST:PORT')}",
            )
        return self._dashboard

    async def _matched(self, request: web.Request) -> web.StreamResponse:
        match = msgspec.json.decode(await request.read(), type=_RuleMatch)
        facts = {name: getattr(match, name) for name in match.__struct_fields__ if name != "guest"}
        self._supervisor.history.add("rule matched", match.guest, **facts)
        return web.json_response({})

    async def _revert(self, request: web.Request) -> web.StreamResponse:
        order = msgspec.json.decode(await request.read(), type=RevertOrder)
        try:
            return web.json_response(await self._reverter.revert(order))
        finally:
            if self._supervisor.layout.halted.exists():
                self._supervisor.stop()

    async def _down(self, request: web.Request) -> web.StreamResponse:
        self._supervisor.stop()
        return web.json_response({"stopping": True})


def _lines(request: web.Request) -> int:
    return _number(request, "lines", HISTORY_LENGTH)


def _number(request: web.Request, name: str, default: int) -> int:
    """Return a whole number of the query.  Raises ValueError."""
    text = request.query.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise ValueError(f"{name}={text!r} is not a whole number from 0 to {10**15 - 1}")
    return int(text)


async def _follow(console: Console) -> AsyncIterator[dict[str, Any]]:
    """Yield the lines that a guest prints from now on, without end."""
    lines: asyncio.Queue[str] = asyncio.Queue()
    stop = console.listen(lines.put_nowait)
    try:
        while True:
            yield {"line": await lines.get()}
    finally:
        stop()


async def _send_lines(
    request: web.Request, documents: AsyncIterator[dict[str, Any]]
) -> web.StreamResponse:
    """Send documents as lines of JSON as they come, until the client or the supervisor ends."""
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    async for document in documents:
        await response.write(json.dumps(document, allow_nan=False).encode() + b"\n")
    return response


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn errors into answers that the CLI understands."""
    try:
        return await handler(request)
    except FaultRefused as error:
        return _problem(409, error, ExitCode.NOT_ALLOWED)
    except UnknownGuest as error:
        return _problem(404, error, ExitCode.USAGE)
    except (NoPatch, SpecError) as error:
        return _problem(409, error, ExitCode.USAGE)
    except (DeployError, OSError) as error:
        return _problem(500, error, ExitCode.FAILED)
    except (msgspec.MsgspecError, ValueError) as error:
        return _problem(400, error, ExitCode.USAGE)


def _problem(status: int, error: Exception, code: ExitCode) -> web.Response:
    """Return the answer for an error: its text, its remedy, and the codes of it."""
    text = str(getattr(error, "problem", error))
    answer = {"error": text, "remedy": str(getattr(error, "remedy", "")), "code": int(code)}
    answer["error_code"] = _BAD_REQUEST if status == 400 else code_of(error)
    _log.info("request failed", error=text, error_code=answer["error_code"])
    return web.json_response(answer, status=status)

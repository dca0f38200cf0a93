"""The control socket: what operators and the supervisor may ask of the voter (HTTP on a unix one).

============================= ===================================================================
GET /status                   everything, as JSON
GET /events?since=ID          incidents with an id over ID (0: all that are kept), one JSON object a
                              line, then each new one as it comes; an empty line every 15 s
POST /drain                   take no new requests; answers once nobody waits for a verdict
POST /replicas/NAME/admit     vouch for a replica, and connect to it at once
POST /replicas/NAME/expel     take a replica out of the vote; body ``{"reason": "..."}``
GET /livez, /readyz, /metrics as on the HTTP front end
============================= ===================================================================

Errors are problems (``voter.frontend.problem``).  Not on the way of any request: aiohttp as it is.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from guests.protocol.message import Reply
from voter.core import events as ev
from voter.frontend.problem import problem_of_status
from voter.frontend.reserved import Reserved
from voter.runner import Runner
from voter.status import describe

__all__ = ["VoterControlServer"]

HEARTBEAT = 15.0
"""Seconds after which an event stream without news carries an empty line."""
STOP_PATIENCE = 0.5
"""Seconds that answers under way get when the server stops."""
_BODY_LIMIT = 64 << 10

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Expulsion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of an expel request."""

    reason: str = "expelled by the operator"


def _response(reply: Reply) -> web.Response:
    return web.Response(status=reply.status, body=reply.body, headers=dict(reply.headers))


def _json(document: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(document) + b"\n", content_type="application/json")


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Say errors as problems, aiohttp's own (no such path, wrong method) too."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        response = _response(
            problem_of_status(error.status, f"{request.method} {request.path}: {error.reason}")
        )
        if isinstance(error, web.HTTPMethodNotAllowed):
            response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        return response


class VoterControlServer:
    """Serves the control socket of one voter."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._reserved = Reserved(runner)
        self._started = time.time()
        application = web.Application(middlewares=[_problems], client_max_size=_BODY_LIMIT)
        application.add_routes(
            [
                web.get("/status", self._status),
                web.get("/events", self._events, allow_head=False),
                web.post("/drain", self._drain),
                web.post("/replicas/{name}/admit", self._admit),
                web.post("/replicas/{name}/expel", self._expel),
                *(web.get(path, self._probe) for path in ("/livez", "/readyz", "/metrics")),
            ]
        )
        # A listener that goes away must not leave a task that waits for the next incident.
        self._app = web.AppRunner(
            application,
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=STOP_PATIENCE,
        )

    async def serve(self, sock: socket.socket) -> None:
        """Serve one listening socket."""
        if self._app.server is None:
            await self._app.setup()
        await web.SockSite(self._app, sock).start()

    async def stop(self) -> None:
        """Stop listening and close all connections."""
        await self._app.cleanup()

    # --------------------------------------------------------------- handlers

    async def _status(self, request: web.Request) -> web.Response:
        voter = {"pid": os.getpid(), "started": self._started, "waiting": self._runner.waiting}
        return _json(voter | describe(self._runner))

    async def _probe(self, request: web.Request) -> web.Response:
        return _response(self._reserved.answer(request.method, request.path, request.query_string))

    async def _events(self, request: web.Request) -> web.StreamResponse:
        since = request.query.get("since", "0")
        if not (since.isascii() and since.isdigit() and len(since) <= 18):
            return _response(
                problem_of_status(400, f"since={since!r} is not the id of an incident")
            )
        after = int(since)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT):
                    incidents = await self._runner.incidents_after(after)
            except TimeoutError:
                await response.write(b"\n")
                continue
            lines = [msgspec.json.encode(incident._asdict()) + b"\n" for incident in incidents]
            await response.write(b"".join(lines))
            after = incidents[-1].id

    async def _drain(self, request: web.Request) -> web.Response:
        await self._runner.drained()
        return _json({"pending": self._runner.waiting})

    def _replica(self, request: web.Request) -> int:
        try:
            return self._runner.find(request.match_info["name"])
        except KeyError:
            raise web.HTTPNotFound(
                reason=f"no such replica; there are {', '.join(self._runner.names)}"
            ) from None

    def _tell(self, index: int) -> web.Response:
        replica = self._runner.engine.members[index]
        return _json({"name": replica.name, "state": replica.state, "reason": replica.reason})

    async def _admit(self, request: web.Request) -> web.Response:
        index = self._replica(request)
        self._runner.admit(index)
        return self._tell(index)

    async def _expel(self, request: web.Request) -> web.Response:
        index = self._replica(request)
        body = await request.read()
        try:
            expulsion = msgspec.json.decode(body or b"{}", type=_Expulsion)
        except msgspec.DecodeError as error:
            return _response(problem_of_status(400, f'expected {{"reason": TEXT}}: {error}'))
        self._runner.receive(ev.Expel(index, expulsion.reason[:200]))
        return self._tell(index)

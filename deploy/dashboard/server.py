"""The dashboard's web server: static files, one stream of server-sent events, two actions.

=================  =============================================================================
GET /, /NAME       the page and its files; without a session, as they hold nothing of the node
POST /api/login    {"token"}: a link's token for a session cookie
POST /api/logout   end the session
GET /api/session   204 if the browser may open the stream, else why not
GET /api/stream    server-sent events: ``full`` once, then an ``update`` each second
POST /api/inject   {"kind", "guest", "seconds": number or null}
GET /metrics       the supervisor's metrics, for a Prometheus on this host; without a session
POST /api/heal     {"guest"}; answered when the guest votes again
=================  =============================================================================

An error is {"error", "remedy", "error_code"}.  ``Access`` says who may do what.  Nobody can make
memory grow: connections, streams, bodies and what is buffered for one reader are bounded.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Awaitable, Callable
from importlib.resources import files
from ipaddress import ip_address
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
import structlog
from aiohttp import web

from deploy.dashboard.access import Access, Forbidden
from deploy.dashboard.collector import Collector, NodeSource
from deploy.errors import DeployError
from deploy.monitoring.supervisor_metrics import SupervisorMetrics
from voter.commands.terminal import code_of

__all__ = ["MOST_CONNECTIONS", "MOST_STREAMS", "DashboardServer", "HealOrder", "InjectOrder"]

MOST_STREAMS = 100
"""Browsers that can watch at the same time; another one is answered 503."""
MOST_CONNECTIONS = 256
"""Open connections; a further one is answered 503 and closed.  The supervisor needs descriptors for
its guests, and a process has 1,024 of them by default."""
CROWD = 64
"""Further connections that get this answer at the same time; beyond, they are closed without."""
REQUEST_TIMEOUT = 10.0
"""Seconds for a new connection's first request, and for a request's body."""
WRITE_TIMEOUT = 15.0
"""Seconds that a reader may leave a full buffer unread before it is disconnected."""
BODY_LIMIT = 4096
"""Bytes of a request's body."""
MOST_SECONDS = 2_592_000
"""Longest time after which a fault is healed: 30 days."""

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_TYPES = {
    "html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml",
}  # fmt: skip
_TOO_MANY = "too many dashboards of this node are open: close some"

_log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_Name = Annotated[str, msgspec.Meta(max_length=100)]


class _Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what the page and commands post."""


_O = TypeVar("_O", bound=_Order)


class _LogIn(_Order, frozen=True):
    token: _Name


class InjectOrder(_Order, frozen=True):
    """A fault to inject into a guest, for ``seconds`` or until it is healed."""

    kind: _Name
    guest: _Name
    seconds: Annotated[float, msgspec.Meta(gt=0, le=MOST_SECONDS)] | None = None


class HealOrder(_Order, frozen=True):
    """A guest to heal."""

    guest: _Name


class _File(NamedTuple):
    body: bytes
    media_type: str
    tag: str


class DashboardServer:
    """Serves one node's dashboard on a listening socket."""

    def __init__(self, node: NodeSource, collector: Collector, access: Access) -> None:
        self._node = node
        self._collector = collector
        self._access = access
        self._metrics = SupervisorMetrics()
        self._files = _read_files()
        self._streams = 0
        self._crowd = 0
        self._silent: set[Any] = set()  # new connections that have sent no request yet
        app = web.Application(middlewares=[self._guard], client_max_size=BODY_LIMIT)
        app.router.add_get("/api/session", self._session)
        app.router.add_get("/api/stream", self._stream, allow_head=False)
        app.router.add_get("/metrics", self._measure)
        app.router.add_post("/api/login", self._log_in)
        app.router.add_post("/api/logout", self._log_out)
        app.router.add_post("/api/inject", self._inject)
        app.router.add_post("/api/heal", self._heal)
        app.router.add_get("/{name:[a-z.]*}", self._file)
        # No access log: it would only displace other lines in the supervisor's log.
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=1.0, keepalive_timeout=30.0
        )
        self._server: asyncio.Server | None = None
        self._ending = False

    async def start(self, listener: socket.socket) -> None:
        """Serve on a listening socket."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connect, sock=listener)

    async def stop(self) -> None:
        """Stop serving and close all connections."""
        self._ending = True
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()

    def _connect(self) -> asyncio.Protocol:
        """Return what handles a new connection."""
        server = self._runner.server
        assert server is not None
        if len(server.connections) >= MOST_CONNECTIONS:
            return _Rejection(self)
        connection = server()
        self._silent.add(connection)
        asyncio.get_running_loop().call_later(REQUEST_TIMEOUT, self._end_silent, connection)
        return connection

    def _end_silent(self, connection: Any) -> None:
        """Close a connection that has sent no request since it was opened."""
        if connection in self._silent:
            self._silent.discard(connection)
            if connection.transport is not None:
                connection.transport.abort()

    def admit_to_crowd(self, change: int) -> bool:
        """Count a connection that will be rejected; return whether there is room to say why."""
        self._crowd += change
        return self._crowd <= CROWD

    # ---- requests

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Reject what other sites may have caused; turn errors into answers."""
        self._silent.discard(request.protocol)
        try:
            self._access.check_site(request)
            answer = await handler(request)
        except Forbidden as error:
            answer = _problem(error.status, str(error), code=error.error_code)
        except web.HTTPRequestEntityTooLarge:
            answer = _problem(413, f"the request is larger than {BODY_LIMIT} bytes")
        except web.HTTPException as error:
            answer = _problem(error.status, f"{request.method} {request.path[:80]}: {error.reason}")
            if "Allow" in error.headers:
                answer.headers["Allow"] = error.headers["Allow"]
        except TimeoutError:
            answer = _problem(408, f"the request was not complete within {REQUEST_TIMEOUT:g} s")
        except DeployError as error:
            answer = _problem(409, error.problem, error.remedy, code=code_of(error))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            answer = _problem(400, str(error))
        except OSError as error:
            answer = _problem(500, str(error), code=code_of(error))
        if not answer.prepared:
            answer.headers.update(_HEADERS)
        return answer

    async def _file(self, request: web.Request) -> web.StreamResponse:
        file = self._files.get(request.match_info["name"] or "index.html")
        if file is None:
            raise web.HTTPNotFound
        headers = {"ETag": file.tag, "Cache-Control": "no-cache", "Content-Type": file.media_type}
        if file.tag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
        return web.Response(body=file.body, headers=headers)

    async def _measure(self, request: web.Request) -> web.StreamResponse:
        if not ip_address((request.remote or "").partition("%")[0]).is_loopback:
            raise Forbidden(403, "metrics are only for programs on this host", error_code="TV0952")
        accept = ",".join(request.headers.getall("Accept", []))
        status = await self._node.status()
        body, kind = self._metrics.render(status, accept.encode(errors="replace"))
        headers = {"Content-Type": kind, "Vary": "Accept", "Cache-Control": "no-store"}
        return web.Response(body=body, headers=headers)

    async def _log_in(self, request: web.Request) -> web.StreamResponse:
        order = await _read(request, _LogIn)
        session = self._access.log_in(order.token)
        if session is None:
            raise Forbidden(
                403,
                "this link was used already or is too old: `trivisor dashboard` prints another",
                error_code="TV0902",
            )
        answer = web.Response(status=204)
        self._access.set_cookie(answer, session)
        return answer

    async def _log_out(self, request: web.Request) -> web.StreamResponse:
        self._access.log_out(self._access.session_of(request))
        answer = web.Response(status=204)
        answer.del_cookie(self._access.cookie)
        return answer

    async def _session(self, request: web.Request) -> web.StreamResponse:
        self._access.session_of(request)
        self._check_room()
        return web.Response(status=204, headers={"Cache-Control": "no-store"})

    def _check_room(self) -> None:
        if self._streams >= MOST_STREAMS:
            raise Forbidden(503, f"{_TOO_MANY} (at most {MOST_STREAMS})", error_code="TV0905")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        session = self._access.session_of(request)
        self._check_room()
        answer = web.StreamResponse(
            headers=_HEADERS | {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        self._streams += 1
        try:
            await answer.prepare(request)
            async for data in self._collector.follow(request.headers.get("Last-Event-ID", "")):
                if self._ending or not self._access.is_live(session):
                    break
                if data:
                    async with asyncio.timeout(WRITE_TIMEOUT):
                        await answer.write(data)
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass  # the browser has gone
        finally:
            self._streams -= 1
        return answer

    async def _inject(self, request: web.Request) -> web.StreamResponse:
        self._access.session_of(request)
        order = await _read(request, InjectOrder)
        await self._node.inject(order.kind, order.guest, order.seconds)
        _log.info("fault injected from the dashboard", guest=order.guest, kind=order.kind)
        return web.Response(status=204)

    async def _heal(self, request: web.Request) -> web.StreamResponse:
        self._access.session_of(request)
        order = await _read(request, HealOrder)
        return web.json_response(await self._node.heal(order.guest))


class _Rejection(asyncio.Protocol):
    """Answers one connection too many with 503, once it has sent something."""

    def __init__(self, server: DashboardServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: wait for the request, for a while."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not self._server.admit_to_crowd(1):
            transport.abort()
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(REQUEST_TIMEOUT / 2, transport.abort)

    def data_received(self, data: bytes) -> None:
        """asyncio: answer, whatever it is."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        body = msgspec.json.encode({"error": _TOO_MANY, "remedy": "", "error_code": "TV0905"})
        head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Length: {len(body)}\r\n"
        head += "Content-Type: application/json\r\nConnection: close\r\nRetry-After: 30\r\n\r\n"
        transport.write(head.encode() + body)
        transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: make room for another."""
        self._server.admit_to_crowd(-1)
        if self._timer is not None:
            self._timer.cancel()


def _read_files() -> dict[str, _File]:
    """Return the page's files by name."""
    found = {}
    for each in files("deploy.dashboard").joinpath("static").iterdir():
        media_type = _TYPES.get(each.name.rpartition(".")[2])
        if media_type is not None:
            body = each.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            found[each.name] = _File(body, media_type, tag)
    return found


async def _read(request: web.Request, kind: type[_O]) -> _O:
    """Return what a request's body holds.  Raises MsgspecError, TimeoutError."""
    async with asyncio.timeout(REQUEST_TIMEOUT):
        return msgspec.json.decode(await request.read(), type=kind)


def _problem(status: int, text: str, remedy: str = "", code: str = "TV0906") -> web.Response:
    headers = {"Cache-Control": "no-store"}
    document = {"error": text, "remedy": remedy, "error_code": code}
    return web.json_response(document, status=status, headers=headers)

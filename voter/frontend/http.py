"""The HTTP front end: a request with any method and any path goes through the vote.

The voter answers its own paths (``voter.frontend.reserved``) without a vote.  Errors are problems
(``voter.frontend.problem``); header rules are in ``voter.frontend.proxying``; ``voter.frontend.
connection`` serves one client.

A client whose connection breaks gets no reply, but what it asked for stays in the order.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from guests.protocol.message import MessageError, Reply
from voter.core.events import Release
from voter.frontend.connection import HttpConnection, HttpFrontEnd
from voter.frontend.idempotency import REPLAYED, find_key, once_of
from voter.frontend.problem import problem, problem_of_failure, problem_of_status
from voter.frontend.proxying import canonical_request, vote_header
from voter.frontend.request import HttpRequest
from voter.frontend.request_id import HEADER, find_ids
from voter.frontend.reserved import Reserved
from voter.native_protocol import READ_ONLY_METHODS
from voter.runner import Result, Runner

if TYPE_CHECKING:
    from voter.access import Access

__all__ = ["NO_TOKEN", "OPEN_PATHS", "UNCHECKED", "HttpServer"]

OPEN_PATHS = frozenset({"/livez", "/readyz"})
"""Paths that need no token, without a query: load balancers have none.  They show the state."""
NO_TOKEN = "send a valid token: Authorization: Bearer TOKEN (`trivisor token add` makes one)"

BLOCKED = "This client is blocked"

UNCHECKED = ("Cache-Control", "no-cache")
"""Header of a voted reply, unless the service decides: a cache asks again before each use."""


class HttpServer(HttpFrontEnd):
    """Serves HTTP clients by the vote."""

    def __init__(self, runner: Runner, access: Access | None = None) -> None:
        config = runner.config
        super().__init__(config.timing, config.max_body, access, config.clients.connections)
        self._runner = runner
        runner.drop_client.append(self.drop)
        self._reserved = Reserved(runner)
        self._count = 0  # requests without an id of their client's

    def handle(self, connection: HttpConnection, request: HttpRequest) -> None:
        """Answer a request: at once if its path is the voter's own, else by the vote."""
        method, target, caller, once = request.method, request.target, connection.caller, None
        path = target.partition("?")[0]
        if connection.access is not None and target not in OPEN_PATHS:
            from voter.access import token_in  # noqa: PLC0415 - loaded only with tokens

            known = connection.access.caller_of(token_in(request.headers))
            if known is None:
                connection.refuse(401, NO_TOKEN, ("WWW-Authenticate", 'Bearer realm="trivisor"'))
                return
            connection.caller = caller = known
            kept = [header for header in request.headers if header[0] != b"authorization"]
            request = request._replace(headers=kept)  # a guest must not get a client's token
        blocked = self._runner.blocked
        if blocked is not None and (why := blocked(caller)):
            connection.answer(problem("blocked", "TV0250", BLOCKED, 403, why), last=True)
            return
        if path in self._reserved:
            connection.answer(self._reserved.answer(request))
            return
        read_only = method in READ_ONLY_METHODS
        if not read_only:
            try:
                key = find_key(request.headers)
            except MessageError as error:
                connection.refuse(400, str(error))
                return
            if key is not None:
                once = once_of(key, caller, request)
        data = canonical_request(method, target, request.headers, request.authority, request.body)
        ids = find_ids(request.headers)
        if not ids:
            self._count += 1
            ids = (f"{self._runner.instance}-{self._count:x}",)
        # In the next turn of the loop, so that orders to replicas are not delayed by responses.
        loop = asyncio.get_running_loop()
        ticket = self._runner.submit(
            data,
            caller,
            read_only,
            lambda result: loop.call_soon(self._respond, connection, (HEADER, ids[0]), result),
            once,
            ids,
        )
        connection.on_lost = partial(self._runner.cancel, ticket)

    def drop(self, caller: bytes) -> None:
        """Close a client's connections at once; what it has ordered stays in the order."""
        for connection in tuple(self.connections):
            if connection.caller == caller:
                connection.abort()

    def _respond(self, connection: HttpConnection, name: tuple[str, str], result: Result) -> None:
        """Send the response for a result, with the header that names the request."""
        if not isinstance(result, Release):
            connection.answer(problem_of_failure(result), name)
            return
        extra = [vote_header(result, self._runner.policy.of, self._runner.names), name]
        if result.replayed:
            extra.append(REPLAYED)
        try:
            reply = Reply.decode(result.reply)
            if not any(name in ("cache-control", "expires") for name, _ in reply.headers):
                extra.append(UNCHECKED)
            connection.answer(reply, *extra)
        except MessageError as error:
            text = f"the voted reply is not HTTP: {error}"
            connection.answer(problem_of_status(502, text, result.seq), *extra)
        except Exception:
            connection.abort()  # a defect: the client must not wait for ever
            raise

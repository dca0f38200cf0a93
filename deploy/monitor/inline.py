"""The monitor as the function F that the voter asks before it orders a request.

The rules with ``inline = true`` are decided here.  If the monitor does not answer, or fails on a
request, the voter refuses the request (``voter.authorizer``): inline monitoring fails closed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from deploy.authorizer import VoterConnection
from deploy.monitor.requests import Match, RequestJudge, SeenRequest
from deploy.monitor.rules import RequestRule
from guests.protocol.function import BLOCK, FORBID, YES
from voter.sockets import listen_unix

__all__ = ["InlineServer", "decide"]

_log = structlog.get_logger(__name__)


def decide(matches: Sequence[Match]) -> bytes:
    """Return F's answer: the strongest action counts; alert admits the request."""
    actions = {match.rule.action for match in matches}
    if "block" in actions:
        return BLOCK
    return FORBID if actions - {"alert"} else YES


def _failed() -> None:
    _log.exception("the monitor failed on a request", error_code="TV0790")


class InlineServer:
    """Answers voters on a unix socket."""

    def __init__(
        self,
        path: Path,
        rules: Sequence[RequestRule],
        matched: Callable[[list[Match]], None],
    ) -> None:
        """``matched`` gets what a request matches, before its answer is sent."""
        self._path = path
        self._judge = RequestJudge(rules)
        self._matched = matched
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen.  Raises AddressError."""
        loop = asyncio.get_running_loop()
        sock = listen_unix(str(self._path))
        self._server = await loop.create_unix_server(
            lambda: VoterConnection(self._answer, _failed), sock=sock
        )

    def _answer(self, data: bytes) -> bytes:
        matches = self._judge.judge(SeenRequest(0, time.time(), "", False, data))
        if matches:
            self._matched(matches)
        return decide(matches)

    def stop(self) -> None:
        """Answer nothing more, and remove the socket."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

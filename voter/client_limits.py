"""A runner that limits each client: its requests under way and its requests a second.

This is loaded only if ``[clients]`` limits one of them.  A client is the caller that services see.
What is over a limit is rejected with ``overload`` before it is ordered, and with the time after
which a retry can succeed.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from voter.core.entries import Once
from voter.core.events import Fail, Failure
from voter.runner import Result, Runner, SessionResult

__all__ = ["MOST", "LimitingRunner", "limiting"]

MOST = 10_000
"""Clients that are remembered.  Above that, the one seen least recently without a request under way
is forgotten: it starts again with its whole burst."""


class _Client:
    """One client: its bucket, of ``left`` requests at the time ``at``, and how many are open."""

    def __init__(self, left: float, at: float) -> None:
        self.left = left
        self.at = at
        self.in_flight = 0


class LimitingRunner(Runner):
    """Rejects what is over a client's limit, before any other part sees it."""

    def __init__(self, *arguments: object, **more: object) -> None:
        super().__init__(*arguments, **more)  # type: ignore[arg-type]
        self._clients: dict[bytes, _Client] = {}  # the least recently seen first
        self._owners: dict[int, _Client] = {}  # by ticket

    @property
    def remembered(self) -> int:
        """Clients that are remembered."""
        return len(self._clients)

    def submit(
        self,
        request: bytes,
        caller: bytes,
        read_only: bool,
        call: Callable[[Result], object],
        once: Once | None = None,
        ids: tuple[str, ...] = (),
    ) -> int:
        """Order a request, unless its caller is over a limit: see ``Runner.submit``."""
        client = self._find(caller)
        refusal = self._take(client)
        if refusal is not None:
            call(refusal)
            return 0
        client.in_flight += 1
        ticket, answered = 0, False

        def answer(result: Result) -> None:
            nonlocal answered
            answered = True
            client.in_flight -= 1
            self._owners.pop(ticket, None)
            call(result)

        ticket = super().submit(request, caller, read_only, answer, once, ids)
        if not answered:
            self._owners[ticket] = client
        return ticket

    def open_session(self, caller: bytes, call: Callable[[SessionResult], None]) -> None:
        """Open a session, which counts as a request: there is room for a number of them only."""
        refusal = self._take(self._find(caller))
        if refusal is not None:
            call(refusal)
        else:
            super().open_session(caller, call)

    def cancel(self, ticket: int) -> None:
        """Forget a client whose connection is lost."""
        client = self._owners.pop(ticket, None)
        if client is not None:
            client.in_flight -= 1
        super().cancel(ticket)

    def _find(self, caller: bytes) -> _Client:
        """Return the client, now the one seen last."""
        client = self._clients.pop(caller, None)
        if client is None:
            client = _Client(self.config.clients.burst, self._clock.steady())
            if len(self._clients) >= MOST:
                self._forget()
        self._clients[caller] = client
        return client

    def _forget(self) -> None:
        """Forget one client without a request under way; there are more clients than requests."""
        for caller, client in self._clients.items():
            if not client.in_flight:
                del self._clients[caller]
                return

    def _take(self, client: _Client) -> Fail | None:
        """Count one request of a client; return why that cannot be, if it cannot."""
        limits, now = self.config.clients, self._clock.steady()
        if limits.in_flight is not None and client.in_flight >= limits.in_flight:
            text = f"{limits.in_flight} requests of this client are under way: wait for a reply"
            return self._refuse(text, 0.0)
        if limits.rate is not None:
            client.left = min(limits.burst, client.left + (now - client.at) * limits.rate)
            client.at = now
            if client.left < 1:
                wait = (1 - client.left) / limits.rate
                text = f"over {limits.rate:g} requests a second of this client: wait {ceil(wait)} s"
                return self._refuse(text, wait)
            client.left -= 1
        return None

    def _refuse(self, text: str, wait: float) -> Fail:
        self.failures[Failure.OVERLOAD] = self.failures.get(Failure.OVERLOAD, 0) + 1
        return Fail(0, Failure.OVERLOAD, text, 0, wait)


def limiting(base: type[Runner]) -> type[Runner]:
    """Return a runner's class with the limits."""
    return type("LimitingRunner", (LimitingRunner, base), {})

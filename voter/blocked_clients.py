"""Clients whose requests the voter refuses, by the names that it gives them; loaded if one is.

A name is what services get as the caller: ``http:192.0.2.1``, ``tcp:192.0.2.1``, ``uid:1000``,
``cert:NAME`` or ``token:NAME``.  A restarted voter blocks nobody: who had a client blocked must do
it again.
"""

from __future__ import annotations

from math import inf

from voter import log
from voter.runner import Runner

__all__ = ["MOST", "BlockedClients", "blocked_of"]

MOST = 10_000
"""Most clients that are blocked at a time; one more is an error."""


class BlockedClients:
    """The clients that are blocked, each until a time and for a reason.  Calling it finds one."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._blocked: dict[bytes, tuple[float, str]] = {}

    def __call__(self, caller: bytes) -> str:
        """Return why a client is blocked; empty if it is not."""
        until, reason = self._blocked.get(caller, (inf, ""))
        if until <= self._runner.clocks()[0]:
            del self._blocked[caller]
            return ""
        return reason

    def block(self, caller: bytes, seconds: float | None, reason: str) -> None:
        """Refuse a client's requests, and close its connections; what it has ordered stays.

        ``seconds`` None: until ``unblock``.  Raises ValueError if too many are blocked.
        """
        if caller not in self._blocked and len(self.reasons) >= MOST:
            raise ValueError(f"{MOST} clients are blocked already: unblock some first")
        until = inf if seconds is None else self._runner.clocks()[0] + seconds
        self._blocked[caller] = (until, reason or "blocked")
        log.info("client blocked", caller=caller.decode(errors="replace"), reason=reason)
        for drop in self._runner.drop_client:
            drop(caller)

    def unblock(self, caller: bytes) -> None:
        """Serve a client again, if it is blocked."""
        self._blocked.pop(caller, None)

    @property
    def reasons(self) -> dict[str, str]:
        """The reasons by client, without those whose time is over."""
        found = {caller.decode(errors="replace"): self(caller) for caller in tuple(self._blocked)}
        return {caller: reason for caller, reason in found.items() if reason}


def blocked_of(runner: Runner) -> BlockedClients:
    """Return the blocked clients of a voter, which from now on looks them up."""
    if not isinstance(runner.blocked, BlockedClients):
        runner.blocked = BlockedClients(runner)
    return runner.blocked

"""Accounts with a planted flaw, for experiments on exploits that a log has to show.

``POST /transfer`` with the JSON object ``{"to": NAME, "amount": TEXT}`` moves an amount from the
account of the user in the header ``x-user``.  An amount that begins with "-" is rejected.  The
flaw: ``int`` accepts white space before the sign, so " -50" passes the check and takes money from
the other account.  Each account begins with START.

It imports the standard library only, because it runs in a guest (``trivisor up --service FILE``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from guests.service import Reply, Request, Service

if TYPE_CHECKING:
    from guests.service import Context

__all__ = ["START", "Ledger"]

START = 1000
"""Balance of an account at its first use."""


class Ledger(Service):
    """The accounts, by user."""

    name = "ledger"
    state_format = 1

    def __init__(self) -> None:
        self._balances: dict[str, int] = {}

    def apply(self, request: Request, _context: Context) -> Reply:
        """Answer one request."""
        if request.path != "/transfer":
            return Reply(404)
        if request.method == "GET":
            return Reply(200, json.dumps(self._balances, sort_keys=True, allow_nan=False))
        try:
            order = json.loads(request.body)
            user, other, text = request.headers["x-user"], order["to"], order["amount"]
            if not isinstance(other, str) or text.startswith("-"):
                return Reply(400, "an amount is positive\n")
            amount = int(text)  # the flaw: it accepts white space before a minus sign
        except (ValueError, KeyError, TypeError, AttributeError):
            return Reply(400, "not a transfer\n")
        balance = self._balances.get(user, START)
        if balance < amount:
            return Reply(409, "the balance is too low\n")
        self._balances[user] = balance - amount
        self._balances[other] = self._balances.get(other, START) + amount
        return Reply(200, f"{self._balances[user]}\n")

    def snapshot(self) -> Iterator[bytes]:
        """Yield the state as JSON with sorted keys."""
        yield json.dumps(self._balances, sort_keys=True, allow_nan=False).encode()

    def restore(self, state: bytes) -> None:
        """Replace the state."""
        self._balances = json.loads(state) if state else {}

"""A bank: accounts whose balance is never negative, and transfers between them.

    PUT  /accounts/NAME                  open an account with the amount in the body
    GET  /accounts/NAME                  its balance and when (agreed time) it last changed
    GET  /accounts                       all of them, and their sum
    POST /transfers?from=A&to=B&amount=N move whole cents

Time comes from the context, what is listed is sorted, and a request changes the state only once
nothing can fail any more: that is all it takes to be deterministic.  Try ``trivisor service
check examples/bank.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from guests.service import Context, Reply, Request, Service

__all__ = ["CHECK_REQUESTS", "Bank"]

CHECK_REQUESTS = [
    ("PUT", "/accounts/alice", b"100"),
    ("PUT", "/accounts/bob", b"20"),
    ("PUT", "/accounts/bob", b"20"),
    ("POST", "/transfers?from=alice&to=bob&amount=30", b""),
    ("POST", "/transfers?from=bob&to=alice&amount=7", b""),
    ("POST", "/transfers?from=bob&to=alice&amount=1000", b""),
    ("GET", "/accounts/alice", b""),
    ("GET", "/accounts", b""),
]


@dataclass
class Account:
    """Balance in cents; agreed time of the last change, nanoseconds since the epoch."""

    cents: int
    changed_ns: int


class Bank(Service):
    """The accounts by name."""

    name = "bank"

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}

    def apply(self, request: Request, context: Context) -> Reply:
        """Answer one request."""
        path, method = request.path, request.method
        if path.startswith("/accounts/") and method == "PUT":
            return self._open(path.removeprefix("/accounts/"), request.body, context)
        if path.startswith("/accounts/") and method == "GET":
            account = self._accounts.get(path.removeprefix("/accounts/"))
            return _json(200, asdict(account)) if account else Reply(404, "no such account\n")
        if path == "/accounts" and method == "GET":
            balances = {name: account.cents for name, account in sorted(self._accounts.items())}
            return _json(200, {"accounts": balances, "sum": sum(balances.values())})
        if path == "/transfers" and method == "POST":
            return self._transfer(request.query, context)
        return Reply(404, "see /accounts and /transfers\n")

    def _open(self, name: str, body: bytes, context: Context) -> Reply:
        if name in self._accounts:
            return Reply(409, "this account exists\n")
        if not (body.isdigit() and len(body) <= 15):
            return Reply(400, "the body must be the first amount, in whole cents\n")
        self._accounts[name] = Account(int(body), context.time_ns)
        return _json(201, asdict(self._accounts[name]))

    def _transfer(self, query: dict[str, str], context: Context) -> Reply:
        source = self._accounts.get(query.get("from", ""))
        target = self._accounts.get(query.get("to", ""))
        amount = query.get("amount", "")
        if source is None or target is None:
            return Reply(404, "from and to must be accounts\n")
        if not (amount.isascii() and amount.isdigit() and len(amount) <= 15):
            return Reply(400, "amount must be whole cents\n")
        if source.cents < int(amount):
            return Reply(409, "the balance is too low\n")
        source.cents -= int(amount)
        target.cents += int(amount)
        source.changed_ns = target.changed_ns = context.time_ns
        return _json(200, {"from": asdict(source), "to": asdict(target)})

    def snapshot(self) -> Iterator[bytes]:
        """Give one JSON line an account, by name."""
        for name, account in sorted(self._accounts.items()):
            yield json.dumps([name, account.cents, account.changed_ns]).encode() + b"\n"

    def restore(self, state: bytes) -> None:
        """Replace the accounts."""
        accounts = {}
        for line in state.splitlines():
            name, cents, changed_ns = json.loads(line)
            accounts[name] = Account(cents, changed_ns)
        self._accounts = accounts


def _json(status: int, value: object) -> Reply:
    return Reply(status, json.dumps(value) + "\n", (("content-type", "application/json"),))

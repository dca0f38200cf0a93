"""The signature of one known attack on ``services.ledger``: a space before the minus sign."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploy.replay.predicates import RequestContext

__all__ = ["request"]


def request(context: RequestContext) -> str:
    """Return who sent the known attack; "" for every other request."""
    return context.headers["x-user"] if b'"amount": " -' in context.body else ""

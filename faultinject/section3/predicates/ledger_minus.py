"""A wide signature for ``services.ledger``: any amount with a minus sign, accepted or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploy.replay.predicates import RequestContext

__all__ = ["request"]


def request(context: RequestContext) -> str:
    """Return who sent a minus sign; "" for every other request."""
    _, _, amount = context.body.partition(b'"amount"')
    return context.headers["x-user"] if b"-" in amount else ""

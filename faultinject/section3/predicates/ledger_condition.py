"""The condition that a patch of ``services.ledger`` would check: a negative amount was accepted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploy.replay.predicates import ReplyContext

__all__ = ["reply"]


def reply(context: ReplyContext) -> str:
    """Return who took money; "" if nobody did."""
    if context.path != b"/transfer" or context.status != 200:
        return ""
    order = json.loads(context.body)
    return context.headers["x-user"] if int(order["amount"]) < 0 else ""

"""The key-value service with a planted bug: a common cause, since every replica has it.

It answers as ``guests.services.kv``, except that storing one of two values triggers the bug:

``LIES``     while such a value is stored, every reply has the header SIGN, and SIGN at the end of
             its body if it has one.  Each replica is wrong, in the same way.
``CRASHES``  the process ends at once, without a reply.

The correct replies are those of ``kv``, which oracles use.  It imports the standard library only,
because it runs in a guest (``trivisor up --service FILE``).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from guests.protocol.message import Reply, Request
from guests.services import kv

if TYPE_CHECKING:
    from guests.service import Context

__all__ = ["CRASHES", "LIES", "SIGN", "Poisoned"]

LIES = b"poison: lie from now on"
CRASHES = b"poison: end at once"
SIGN = "x-poisoned"
STATUS = 70
"""The process's exit status when it meets CRASHES."""


class Poisoned(kv.KeyValue):
    """The store with the bug.  Its state is kv's, byte for byte."""

    name = "poisoned"

    def apply(self, request: Request, context: Context) -> Reply:
        """Answer one request (see the module's docstring)."""
        if request.method == "PUT" and request.body == CRASHES:
            os._exit(STATUS)
        reply = super().apply(request, context)
        if not self._is_lying():
            return reply
        bare = reply.status == 204 or request.method == "HEAD"
        body = reply.body if bare else reply.body + SIGN.encode()
        return Reply(reply.status, body, (*reply.headers, (SIGN, "yes")))

    def _is_lying(self) -> bool:
        """Return whether a value that triggers the wrong replies is stored."""
        return any(value == LIES for value, _ in self.table.entries.values())

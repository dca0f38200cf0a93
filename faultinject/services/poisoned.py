"""The key-value service with a planted bug: a shared cause, since every replica has it.

It is ``guests.services.kv``, and answers as that does, but for two values that meet the bug when
they are stored (PUT):

``LIES``     from then on, while such a value is stored, every reply has the header SIGN, and SIGN
             at its body's end where it may have one: each replica errs, and all err alike.
``CRASHES``  the process ends at once, without a reply.

What is right is what ``kv`` says: an oracle is that service, not this one.  Standard library only:
it runs in a guest (``trivisor up --service FILE``).
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
        """Answer one request (see the module's text)."""
        if request.method == "PUT" and request.body == CRASHES:
            os._exit(STATUS)
        reply = super().apply(request, context)
        if not self._ill():
            return reply
        bare = reply.status == 204 or request.method == "HEAD"
        body = reply.body if bare else reply.body + SIGN.encode()
        return Reply(reply.status, body, (*reply.headers, (SIGN, "yes")))

    def _ill(self) -> bool:
        """Whether a value that makes it lie is stored."""
        return any(value == LIES for value, _ in self._entries.values())

"""The key-value service with a switch that makes one read wrong: damage that stays hidden.

It answers as ``guests.services.kv`` until the switch is set.  From then on, a GET of PROBE gets a
wrong reply, the same in each damaged guest, and every other reply is right.  State and digest do
not change, so nothing notices the damage before PROBE is read, and no state transfer carries it.
Only a fault injector that writes to the guest's RAM can set the switch.

The switch is a page as that of ``faultinject.services.frail``, found by the same marks.  It belongs
to the agent, and all incarnations of the service share it.  This file runs in guests.
"""

from __future__ import annotations

import hashlib
import mmap
from typing import TYPE_CHECKING

from guests.protocol.message import Reply, Request
from guests.services import kv

if TYPE_CHECKING:
    from guests.service import Context

__all__ = ["HEAD", "MODE", "PROBE", "TAIL", "TAIL_AT", "WRONG", "Latent"]

PROBE = "/kv/probe"
"""The key whose value is returned wrongly."""
WRONG = b"wrong"
"""The wrong value."""
MODE, TAIL_AT = 32, 64
HEAD = hashlib.sha256(b"trivisor: the switch of a planted function").digest()
TAIL = hashlib.sha256(HEAD).digest()
"""As in ``faultinject.services.frail``, which is not in the guest."""

_page = mmap.mmap(-1, mmap.PAGESIZE)
_page[: len(HEAD)] = HEAD
_page[TAIL_AT : TAIL_AT + len(TAIL)] = TAIL


class Latent(kv.KeyValue):
    """The store with the switch.  Its state is kv's, byte for byte."""

    name = "latent"

    def apply(self, request: Request, context: Context) -> Reply:
        """Answer one request (see the module's docstring)."""
        reply = super().apply(request, context)
        if _page[MODE] and request.method == "GET" and request.target == PROBE:
            return Reply(reply.status, WRONG, reply.headers)
        return reply

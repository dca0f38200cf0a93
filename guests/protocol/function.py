"""The protocol between the function F (``guests.function``) and the voter."""

from __future__ import annotations

from guests.protocol.message import Reply, encode_reply

__all__ = ["BLOCK", "FORBID", "FORBIDDEN", "NO", "REFUSAL", "REFUSAL_REPLY", "SCHEME", "YES"]

SCHEME = "HMAC-SHA256"
"""The authentication scheme that a refusal names."""
REFUSAL_REPLY = Reply(401, b"", (("www-authenticate", SCHEME),))
REFUSAL = encode_reply(REFUSAL_REPLY)
"""The reply to a request that F does not authorize: the same wherever F runs."""
FORBIDDEN = encode_reply(Reply(403))
"""The reply to a request that F, as a monitor, forbids."""
YES, NO, FORBID, BLOCK = b"\x01", b"\x00", b"\x02", b"\x03"
"""F's answers on its socket: admitted; not authorized (REFUSAL); forbidden (FORBIDDEN); forbidden,
and its client is blocked, so that its connection is closed without a reply."""

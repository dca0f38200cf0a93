"""Differences for the tests of patches."""

from __future__ import annotations

from deploy.patching.differences import Difference
from guests.protocol.message import Reply, encode_reply, encode_request

__all__ = ["difference", "reply"]


def reply(status: int = 200, body: bytes = b"", **headers: str) -> bytes:
    return encode_reply(Reply(status, body, list(headers.items())))


def difference(
    old: bytes | None = b"",
    new: bytes | None = b"",
    *,
    method: str = "GET",
    target: str = "/orders/7",
    body: bytes = b"",
    seq: int = 1,
    behind: float = 0.01,
    cut: bool = False,
) -> Difference:
    """Return a difference between the replies ``old`` and ``new``."""
    return Difference(
        seq=seq, replica="g4", time=1.0, request=encode_request(method, target, (), body),
        released=old, other=new, behind=behind, cut=cut,
    )  # fmt: skip

"""The client library: requests through the vote, over a native connection."""

from __future__ import annotations

from voter.client.client import READ_ONLY_METHODS, Answer, Client

__all__ = ["READ_ONLY_METHODS", "Answer", "Client"]

"""Front ends: how clients reach the vote.  ``native`` for framed streams, ``http`` for HTTP/1.1."""

from __future__ import annotations

__all__: list[str] = []

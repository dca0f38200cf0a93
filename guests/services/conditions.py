"""Conditional requests: ``If-Match`` and ``If-None-Match`` against an entity tag (RFC 9110,
section 13).

Pure.  Dates (``If-Modified-Since``) are not looked at: what a service answers must not hang on
them.
"""

from __future__ import annotations

from guests.protocol.message import Reply, Request

__all__ = ["check_conditions", "has_conditions"]


def has_conditions(request: Request) -> bool:
    """Whether the request may have a condition: a cheap look before the headers are taken apart."""
    return bool(request.head) and b"if-" in request.head.lower()


def check_conditions(request: Request, etag: str | None) -> Reply | None:
    """Return the reply that a condition of the request demands, or None if the request may go on.

    ``etag`` is the current tag with its quotes, None if there is nothing at the target.
    Replies: 412 (with the current tag), 304 to GET and HEAD only, and 400 for tags that are not
    in quotes.
    """
    headers = request.headers
    wanted = headers.get("if-match")
    unwanted = headers.get("if-none-match")
    for name, value in (("If-Match", wanted), ("If-None-Match", unwanted)):
        if value is not None and not _is_tag_list(value):
            return Reply(400, f'{name} must be * or tags in double quotes, as in "17"\n')
    current = (("etag", etag),) if etag is not None else ()
    if wanted is not None and not _matches(wanted, etag, weakly=False):
        return Reply(412, "precondition failed: If-Match\n", current)
    if unwanted is not None and _matches(unwanted, etag, weakly=True):
        if request.method in ("GET", "HEAD"):
            return Reply(304, b"", current)
        return Reply(412, "precondition failed: If-None-Match\n", current)
    return None


def _tags(value: str) -> list[str]:
    return [tag.strip(" \t") for tag in value.split(",")]


def _is_tag_list(value: str) -> bool:
    if value == "*":
        return True
    opaque = [tag.removeprefix("W/") for tag in _tags(value)]
    return all(len(tag) >= 2 and tag[0] == tag[-1] == '"' for tag in opaque)


def _matches(value: str, etag: str | None, *, weakly: bool) -> bool:
    """Whether a tag list holds ``etag``; a weak tag never matches unless ``weakly``."""
    if etag is None:
        return False
    tags = _tags(value)
    return value == "*" or etag in tags or (weakly and f"W/{etag}" in tags)

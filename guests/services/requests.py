"""Strict parsing of requests, for the shipped services: targets, queries and conditions.

A malformed part is refused, not interpreted.  ``If-Match`` and ``If-None-Match`` follow RFC 9110,
section 13.  Conditions on dates (``If-Modified-Since``) are ignored, because replies must not
depend on them.  Pure.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import unquote_to_bytes

from guests.protocol.message import Reply, Request

__all__ = ["RequestRefused", "check_conditions", "decode_percent", "parse_query"]


class RequestRefused(Exception):
    """The request is answered with ``reply`` and changes nothing."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.reply = Reply(status, text)


def decode_percent(text: str) -> bytes:
    """Return the percent-decoded bytes.  Refuses (400) a % without two digits."""
    if "%" not in text:
        return text.encode()
    raw = unquote_to_bytes(text)
    # Each valid escape makes the text two bytes shorter.  An invalid one would stay as it is, and
    # "%zz" and "%25zz" would be two spellings of one key.
    if len(text) - len(raw) != 2 * text.count("%"):
        raise RequestRefused(400, "a % must be followed by two hexadecimal digits\n")
    return raw


def parse_query(text: str, known: Collection[str]) -> dict[str, bytes]:
    """Return a query's parameters as bytes (``+`` is a space, as in forms; no value is empty).

    Refuses (400) an unknown or repeated parameter, so that a typing error is not ignored.
    """
    parameters: dict[str, bytes] = {}
    for part in text.split("&") if text else ():
        name, _, value = part.partition("=")
        if name not in known or name in parameters:
            allowed = ", ".join(sorted(known)) or "none"
            raise RequestRefused(
                400, f"parameter {name!r} is unknown or repeated; known: {allowed}\n"
            )
        parameters[name] = decode_percent(value.replace("+", " "))
    return parameters


def check_conditions(request: Request, etag: str | None) -> Reply | None:
    """Return the reply that a condition of the request requires, or None if there is none.

    ``etag``: the current tag with its quotes, or None if the target does not exist.  The reply is
    412 with the current tag, 304 (to GET and HEAD only), or 400 for tags without quotes.
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
    """Return whether a tag list contains ``etag``; a weak tag matches only if ``weakly``."""
    if etag is None:
        return False
    tags = _tags(value)
    return value == "*" or etag in tags or (weakly and f"W/{etag}" in tags)

"""Targets of requests taken apart strictly: what is malformed is refused, not guessed at."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import unquote_to_bytes

from guests.protocol.message import Reply

__all__ = ["TargetError", "decode_percent", "parse_query"]


class TargetError(Exception):
    """A request is answered with ``reply`` and changes nothing."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.reply = Reply(status, text)


def decode_percent(text: str) -> bytes:
    """Return the bytes a percent-encoded text stands for.  Refusal: 400 if a % has no two
    digits."""
    if "%" not in text:
        return text.encode()
    raw = unquote_to_bytes(text)
    # Each sound escape makes the text two bytes shorter; a broken one is left as it stands, and
    # would make two spellings of one key out of "%zz" and "%25zz".
    if len(text) - len(raw) != 2 * text.count("%"):
        raise TargetError(400, "a % must be followed by two hexadecimal digits\n")
    return raw


def parse_query(text: str, known: Collection[str]) -> dict[str, bytes]:
    """Return a query's parameters as bytes (``+`` is a space, as in forms; no value is empty).

    Refusal: 400 if a parameter is not in ``known`` or comes twice, so that a slip of the
    keyboard is not silently passed over.
    """
    parameters: dict[str, bytes] = {}
    for part in text.split("&") if text else ():
        name, _, value = part.partition("=")
        if name not in known or name in parameters:
            allowed = ", ".join(sorted(known)) or "none"
            raise TargetError(400, f"parameter {name!r} is unknown or repeated; known: {allowed}\n")
        parameters[name] = decode_percent(value.replace("+", " "))
    return parameters

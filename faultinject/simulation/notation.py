"""Parts of a plan in the notation of the command line."""

from __future__ import annotations

import re
from collections.abc import Collection

__all__ = ["parse_numbers", "write_numbers"]


def write_numbers(numbers: Collection[int]) -> str:
    """Return numbers as text: ``0-3,8``, or ``none`` for no numbers."""
    parts: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1] = parts[-1][0], number
        else:
            parts.append((number, number))
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts) or "none"


def parse_numbers(text: str) -> list[int]:
    """Parse the text of ``write_numbers``.  Raises ValueError."""
    if text == "none":
        return []
    part = "[0-9]{1,6}(-[0-9]{1,6})?"
    if not re.fullmatch(f"{part}(,{part})*", text):
        raise ValueError(f"{text!r} is not like 0-3,8 or none")
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        numbers += range(int(first), int(last if dash else first) + 1)
    return numbers

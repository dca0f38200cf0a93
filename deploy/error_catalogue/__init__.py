"""The catalogue of error codes: for each, what happened, why, and what to do.

The entries are data: one TOML file for each area, named after the first two digits of its codes.
`trivisor explain` prints them, and docs/reference/errors.md shows them all.  Only what explains an
error reads this package: the voter's process does not.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

__all__ = ["AREAS", "Entry", "load", "normalize"]

AREAS = {
    "00": "The command line and this host",
    "01": "Guests, libvirt and QEMU",
    "02": "The voter and its journal",
    "03": "Requests",
    "04": "Services and guest images",
    "05": "Faults and campaigns",
    "06": "The model and statistics",
    "07": "Nodes and deployment",
    "08": "Measuring and simulation",
    "09": "Access, dashboard and monitoring",
}
"""The title of each area, by the first two digits of its codes."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One code.  ``happened``, ``why`` and ``fix`` are Markdown without headings."""

    code: str
    title: str
    severity: Literal["error", "warning"]
    since: str
    happened: str
    why: str
    fix: str
    retired: str = ""
    """The version that stopped to use the code, or empty.  A code is never used again."""

    @property
    def area(self) -> str:
        """The title of the code's area."""
        return AREAS[self.code[2:4]]

    def sections(self) -> list[tuple[str, str]]:
        """Return the entry's sections: title and text."""
        parts = [("What happened", self.happened), ("Why", self.why), ("What to do", self.fix)]
        return [(title, text.strip()) for title, text in parts]


@cache
def load() -> dict[str, Entry]:
    """Return all entries, sorted by code."""
    found = {}
    for area in AREAS:
        path = Path(__file__).with_name(f"{area}.toml")
        for code, fields in tomllib.loads(path.read_text(encoding="utf-8")).items():
            found[code] = Entry(code=code, **fields)
    return dict(sorted(found.items()))


def normalize(text: str) -> str:
    """Return a code as the catalogue writes it: ``tv0123``, ``0123`` and ``123`` are TV0123."""
    digits = re.fullmatch(r"(?:TV)?-?([0-9]{1,4})", text.strip(), re.ASCII | re.IGNORECASE)
    return f"TV{int(digits[1]):04}" if digits else text.strip().upper()

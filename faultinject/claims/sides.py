"""On which side of a claim a measured interval lies, and how it is written.

An interval decides: a claim *holds* if all of the interval is on its side, *does not hold* if all
of it is on the other.
"""

from __future__ import annotations

from collections.abc import Iterable

from faultinject.claims.claim import Says
from faultinject.results.findings import Share

__all__ = ["NEAR", "Span", "above", "below", "higher", "near", "share_words", "span_words", "sums"]

Span = tuple[float, float, float]
"""Low, point, high."""
NEAR = 0.05
"""How near to a formula's R_sys a measured one must be to agree with it."""


def span_words(span: Span) -> str:
    """Point and interval."""
    return f"{span[1]:.4g} [{span[0]:.4g}, {span[2]:.4g}]"


def share_words(share: Share) -> str:
    """A count of a count."""
    return f"{share.count:,} of {share.of:,}"


def sums(sides: Iterable[bool | None]) -> Says:
    """From what each of several points says: True, False, or None for undecided."""
    found = list(sides)
    if False in found:
        return "does not hold"
    if not found or all(side is None for side in found):
        return "undecided"
    return "holds as far as the data reach" if None in found else "holds"


def below(span: Span, limit: float) -> bool | None:
    """Whether it is below the limit; None: the interval holds it."""
    return True if span[2] < limit else False if span[0] > limit else None


def above(span: Span, limit: float) -> bool | None:
    """Whether it is above the limit; None: the interval holds it."""
    return True if span[0] > limit else False if span[2] < limit else None


def higher(one: Span, other: Span) -> bool | None:
    """Whether all of one interval is above all of the other; None: they overlap."""
    return True if one[0] > other[2] else False if one[2] < other[0] else None


def near(span: Span, value: float) -> bool | None:
    """Whether all of the interval is within NEAR of the value; False if none of it is."""
    if span[0] > value + NEAR or span[2] < value - NEAR:
        return False
    return True if span[0] >= value - NEAR and span[2] <= value + NEAR else None

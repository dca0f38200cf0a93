"""Numbers in words: as few digits as count."""

from __future__ import annotations

import math
import time

from faultinject.results.findings import Share

__all__ = [
    "DASH",
    "MINUS",
    "NOTHING",
    "TIMES",
    "around",
    "milliseconds",
    "number",
    "percent",
    "reliability",
    "rest",
    "share",
    "when",
    "whole",
]

AT_LEAST = "\N{GREATER-THAN OR EQUAL TO}"
AT_MOST = "\N{LESS-THAN OR EQUAL TO}"
SMALLEST = 0.001  # of percentages that are told
DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
NOTHING = DASH
TIMES = "\N{MULTIPLICATION SIGN}"


def whole(value: float) -> str:
    """A count, its thousands set apart."""
    return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def number(value: float) -> str:
    """As a paper writes it: no zeros that say nothing."""
    return f"{value:.4f}".rstrip("0").rstrip(".")


def percent(value: float) -> str:
    """As a percentage with two digits that count; near 100 % those of what is missing from it."""
    if not math.isfinite(value):
        return NOTHING
    if value >= 10:
        return f"{whole(value * 100)} %"
    hundredths = round(value * 100, 9)
    if hundredths == int(hundredths):
        return f"{hundredths:.0f} %"
    if 50 < hundredths < 100:
        missing = round(100 - hundredths, 9)
        digits = min(2, _digits(missing))
        return f"{hundredths:.{digits}f} %" if missing >= 0.005 else "> 99.99 %"
    if 0 < hundredths < SMALLEST:
        return f"< {SMALLEST} %"
    return f"{hundredths:.{_digits(hundredths)}f} %"


def _digits(hundredths: float) -> int:
    """Decimals that show two digits that count."""
    return max(0, 1 - math.floor(math.log10(abs(hundredths))))


def reliability(value: float) -> str:
    """Four places, as the paper's own examples."""
    return f"{value:.4f}" if math.isfinite(value) else NOTHING


def share(each: Share) -> str:
    """A share with its interval; nothing where there was no trial."""
    return NOTHING if each.point is None else around(each.low, each.point, each.high)


def around(low: float, point: float, high: float) -> str:
    """A value with its interval; where that ends at 0 or 1 with the value, its other end."""
    if point == low == 0.0:
        interval = f"{AT_MOST} {percent(high)}"
    elif point == high == 1.0:
        interval = f"{AT_LEAST} {percent(low)}"
    else:
        interval = f"{percent(low)} {DASH} {percent(high)}"
    return f"{percent(point)} ({interval})".replace(" %", "\N{THIN SPACE}%")


def rest(each: Share) -> Share:
    """The share of what did not happen."""
    return Share(count=each.of - each.count, of=each.of, low=1 - each.high, high=1 - each.low)


def milliseconds(seconds: float) -> str:
    """A time for a table."""
    if not math.isfinite(seconds):
        return NOTHING
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def when(seconds: float) -> str:
    """A moment, UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))

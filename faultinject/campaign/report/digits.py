"""Numbers in words: as few digits as count."""

from __future__ import annotations

import math
import time

from faultinject.campaign.report.findings import Share

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
    """As a percentage with two digits that count."""
    if not math.isfinite(value):
        return NOTHING
    if value >= 10:
        return f"{value * 100:,.0f} %".replace(",", "\N{NARROW NO-BREAK SPACE}")
    hundredths = round(value * 100, 9)
    if hundredths == int(hundredths):
        return f"{hundredths:.0f} %"
    digits = max(0, 1 - math.floor(math.log10(abs(hundredths))))
    if hundredths > 50:  # what counts there is the distance from 100
        rest_of = round(100 - hundredths, 9)
        digits = 0 if rest_of <= 0 else min(4, max(0, 1 - math.floor(math.log10(rest_of))))
    return f"{hundredths:.{min(digits, 4)}f} %"


def reliability(value: float) -> str:
    """Four places, as the paper's own examples."""
    return f"{value:.4f}" if math.isfinite(value) else NOTHING


def share(each: Share) -> str:
    """A share with its interval; nothing where there was no trial."""
    return NOTHING if each.point is None else around(each.low, each.point, each.high)


def around(low: float, point: float, high: float) -> str:
    """A value with its interval."""
    return f"{percent(point)}  ({percent(low)} {DASH} {percent(high)})".replace(" %", "\u2009%")


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

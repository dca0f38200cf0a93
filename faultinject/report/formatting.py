"""Numbers as text, with as many digits as are significant."""

from __future__ import annotations

import math
import time

from faultinject.estimate.intervals import Interval
from faultinject.results.findings import Proportion

__all__ = [
    "DASH", "MINUS", "NOTHING", "TIMES", "integer", "milliseconds", "number", "percent",
    "proportion", "reliability", "sentence", "signed_percent", "when", "with_interval",
]  # fmt: skip

AT_LEAST = "\N{GREATER-THAN OR EQUAL TO}"
AT_MOST = "\N{LESS-THAN OR EQUAL TO}"
SMALLEST = 0.001  # percent; below it only "< 0.001 %" is shown
DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
NOTHING = DASH
TIMES = "\N{MULTIPLICATION SIGN}"


def integer(value: float) -> str:
    """Format a count with separated thousands."""
    return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def number(value: float) -> str:
    """Format with up to four decimals, without trailing zeros."""
    return f"{value:.4f}".rstrip("0").rstrip(".")


def percent(value: float) -> str:
    """Format as a percentage with two significant digits; near 100 %, of the complement."""
    if not math.isfinite(value):
        return NOTHING
    if value >= 10:
        return f"{integer(value * 100)} %"
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


def signed_percent(value: float) -> str:
    """Format a difference as a percentage with its sign."""
    return f"{MINUS if value < 0 else '+'}{percent(abs(value))}"


def _digits(hundredths: float) -> int:
    """Return the decimals that show two significant digits."""
    return max(0, 1 - math.floor(math.log10(abs(hundredths))))


def reliability(value: float) -> str:
    """Format with four decimals, as the paper's own examples."""
    return f"{value:.4f}" if math.isfinite(value) else NOTHING


def proportion(each: Proportion) -> str:
    """Format a proportion with its interval; a dash where there was no trial."""
    if each.value is None:
        return NOTHING
    return with_interval(Interval(value=each.value, low=each.low, high=each.high))


def with_interval(each: Interval) -> str:
    """Format a value with its interval; where one end equals the value 0 or 1, only the other."""
    if each.value == each.low == 0.0:
        interval = f"{AT_MOST} {percent(each.high)}"
    elif each.value == each.high == 1.0:
        interval = f"{AT_LEAST} {percent(each.low)}"
    else:
        interval = f"{percent(each.low)} {DASH} {percent(each.high)}"
    return f"{percent(each.value)} ({interval})".replace(" %", "\N{THIN SPACE}%")


def milliseconds(seconds: float) -> str:
    """Format a time for a table."""
    if not math.isfinite(seconds):
        return NOTHING
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def when(seconds: float) -> str:
    """Format a moment, UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def sentence(text: str) -> str:
    """Start with a capital and end with a full stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "."

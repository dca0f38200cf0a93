"""How the calculator reads and formats numbers: at least six significant digits."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import click
import msgspec

from faultinject.model.paired import ModelError, Paired

__all__ = ["Chance", "Number", "digits", "number", "plain"]

LARGE = 1e7


class Number(msgspec.Struct, frozen=True, kw_only=True):
    """A reliability or a bound: ``value``, ``complement`` (1 minus it, accurate), and ``text``.

    An infinite value (no number is enough) has None for both.
    """

    value: float | None
    complement: float | None
    text: str


def number(value: float) -> Number:
    """Return a float as a Number; a ``Paired`` with its own complement."""
    pair = value if isinstance(value, Paired) else Paired(value)
    if not math.isfinite(pair):
        return Number(value=None, complement=None, text="infinite")
    return Number(value=float(pair), complement=pair.down, text=digits(pair))


def digits(value: float) -> str:
    """Format with seven significant digits; near one, with six of the complement.

    0.925926, 0.9999885, 1-2e-15: the calculator accepts each as input.
    """
    pair = value if isinstance(value, Paired) else Paired(value)
    up, down = float(pair), pair.down
    if math.isinf(up):
        return "infinite"
    if down == 0.0 or up == 0.0:
        return "1" if up else "0"
    if 0.0 < down < 1e-6:
        return f"1-{plain(down)}"
    if 0.0 < down < 0.1:
        places = 5 - math.floor(math.log10(down))
        return f"{1 - Decimal(repr(down)):.{places}f}".rstrip("0")
    return plain(up)


def plain(value: float) -> str:
    """Format a number of any size with seven significant digits."""
    if not math.isfinite(value):
        return "infinite"
    return f"{value:,.0f}" if LARGE > abs(value) >= 1e6 else f"{value:.7g}"


class Chance(click.ParamType[Paired]):
    """A probability: 0.999, 1e-9, or 1-1e-15, without loss of digits."""

    name = "R"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Paired:
        """Return it with its complement."""
        try:
            return Paired.parse(str(value)) if not isinstance(value, Paired) else value
        except ModelError as error:
            message = str(error).replace("the number is", f"{value} is not possible:", 1)
            _, found, why = message.partition(": a reliability")
            self.fail(f"{value}: a reliability{why}" if found else message, param, ctx)

"""Probabilities with an accurate complement: a float ``x`` together with ``1 - x``.

As a float alone, a reliability of 1 - 1e-15 gives its unreliability to about one digit.  This
package therefore carries both, and computes both as sums of positive terms.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal, InvalidOperation, localcontext

from guests.errors import CodedError

__all__ = ["ModelError", "Paired", "count", "probability"]

_DECIMAL = re.compile(r"(?:1-)?(?:[0-9]+\.?|[0-9]*\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")


class ModelError(CodedError, ValueError):
    """A question that section 4 of the paper does not answer; the message says why."""

    error_code = "TV0601"


class Paired(float):
    """A float with ``down``, 1 minus itself, to full relative accuracy.

    For a reliability ``down`` is the unreliability.  For a bound it is zero or negative where the
    bound is 1 or more.  Arithmetic returns plain floats.
    """

    __slots__ = ("down",)
    down: float

    def __new__(cls, up: float, down: float | None = None) -> Paired:
        """``down`` is taken as 1 - ``up`` where it is not given (exact for ``up`` >= .5)."""
        made = super().__new__(cls, up)
        made.down = 1.0 - float(up) if down is None else float(down)
        return made

    @classmethod
    def failing(cls, down: float) -> Paired:
        """Return the reliability of a part that fails with probability ``down``, exactly."""
        return cls(1.0 - down, down)

    @classmethod
    def sums(cls, up: float, down: float) -> Paired:
        """Return a probability from both sides, summed separately and clipped to [0, 1]."""
        return cls(min(1.0, max(0.0, up)), min(1.0, max(0.0, down)))

    @classmethod
    def parse(cls, text: str) -> Paired:
        """Read a decimal as it is written: ``0.999999999999999``, or ``1-1e-15``.

        Both it and its complement are the nearest floats to what was written.  Raises ModelError
        if it is no number in [0, 1].
        """
        head, dash, tail = text.partition("1-")
        try:
            if not _DECIMAL.fullmatch(text):  # Decimal takes underscores and other scripts' digits
                raise InvalidOperation
            with localcontext() as context:
                context.prec = 400
                value = 1 - Decimal(tail) if dash and not head else Decimal(text)
                down = 1 - value
        except InvalidOperation as error:
            raise ModelError(
                f"{text!r} is no probability from 0 to 1: write 0.999, 1e-9 or 1-1e-15"
            ) from error
        return probability("the number", cls(float(value), float(down)))

    def __repr__(self) -> str:
        return f"Paired({float(self)!r}, down={self.down!r})"

    def __reduce__(self) -> tuple[type[Paired], tuple[float, float]]:
        return Paired, (float(self), self.down)


def probability(name: str, value: float) -> Paired:
    """Return ``value`` with its complement; raise ModelError with ``name`` if not in [0, 1]."""
    up = float(value)
    if math.isnan(up) or not 0.0 <= up <= 1.0:
        raise ModelError(f"{name} is {up:g}: a reliability is a probability, from 0 to 1")
    return value if isinstance(value, Paired) else Paired(up)


def count(name: str, value: int, least: int = 1, most: int = 10_000) -> int:
    """Return ``value``, or raise ModelError naming ``name`` if not in [``least``, ``most``]."""
    if type(value) is not int or not least <= value <= most:
        none = " (a node hosts n >= 1 VMs, section 4)" if name.endswith(" n") and value == 0 else ""
        raise ModelError(
            f"{name} is {value!r}: it must be a whole number from {least} to {most:,}{none}"
        )
    return value

"""Binomial and Poisson-binomial tails, both of them accurate however small they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

from faultinject.model.paired import Paired, count, probability

__all__ = ["all_fail", "binomial_at_least", "exactly", "log_down", "subset_at_least"]


def log_down(chance: Paired) -> float:
    """Natural logarithm of ``1 - chance``: accurate at both ends; -inf at 1."""
    if chance.down == 0.0:
        return -math.inf
    return math.log1p(-float(chance)) if chance < 0.5 else math.log(chance.down)


def all_fail(chance: Paired, n: int) -> Paired:
    """Probability that all of ``n`` independent parts fail, ``(1 - R)^n``; ``down`` is 1-of-n."""
    exponent = n * log_down(chance)
    return Paired(math.exp(exponent), -math.expm1(exponent))


def _scaled_power(base: float, exponent: int) -> tuple[float, int]:
    """``base ** exponent`` as mantissa and power of two: it neither overflows nor underflows."""
    mantissa, shift = 1.0, 0
    square, square_shift = math.frexp(base)
    while exponent:
        if exponent & 1:
            mantissa, extra = math.frexp(mantissa * square)
            shift += square_shift + extra
        square, extra = math.frexp(square * square)
        square_shift = 2 * square_shift + extra
        exponent >>= 1
    return mantissa, shift


def _scaled_choose(n: int, k: int) -> tuple[float, int]:
    """``C(n, k)`` as mantissa and power of two; exact integers until the last rounding."""
    exact = math.comb(n, k)
    shift = max(0, exact.bit_length() - 64)
    return float(exact >> shift), shift


def exactly(k: int, n: int, chance: Paired) -> float:
    """Probability that exactly ``k`` of ``n`` independent parts are up, each with ``chance``."""
    choose, shift = _scaled_choose(n, k)
    ups, up_shift = _scaled_power(float(chance), k)
    downs, down_shift = _scaled_power(chance.down, n - k)
    if not ups or not downs:
        return 0.0
    return math.ldexp(choose * ups * downs, shift + up_shift + down_shift)


def binomial_at_least(m: int, n: int, chance: Paired) -> Paired:
    """Probability that at least ``m`` of ``n`` independent identical parts are up.

    The smaller tail is summed, term by term from the boundary outwards; the other is its
    complement.  0 <= m <= n + 1, relative error about 1e-12 at n = 10,000.
    """
    if m <= 0:
        return Paired(1.0, 0.0)
    if m > n:
        return Paired(0.0, 1.0)
    upper_first = m > n * float(chance)
    small = _tail(m, n, chance, upper_first)
    if small > 0.5:  # the boundary is at the mean, and it was the greater one
        upper_first = not upper_first
        small = _tail(m, n, chance, upper_first)
    return Paired(small, 1.0 - small) if upper_first else Paired(1.0 - small, small)


def _tail(m: int, n: int, chance: Paired, upper: bool) -> float:
    """Sum of the probabilities of m, m + 1, ..., n (``upper``), or of m - 1, m - 2, ..., 0."""
    up, down = float(chance), chance.down
    term = exactly(m if upper else m - 1, n, chance)
    terms = [term]
    for k in range(m, n) if upper else range(m - 1, 0, -1):
        term *= (n - k) * up / ((k + 1) * down) if upper else k * down / ((n - k + 1) * up)
        if term == 0.0:
            break
        terms.append(term)
    return min(1.0, math.fsum(terms))


def subset_at_least(m: int, parts: Sequence[float]) -> Paired:
    """Probability that at least ``m`` of unequal independent parts are up.

    It is the sum over all subsets of the parts, gathered part by part (the generating polynomial),
    so that it is exact and takes len(parts)^2 steps.  Raises ModelError for a part not in [0, 1].
    """
    chances = [probability(f"R_{{M_{i + 1}}}", each) for i, each in enumerate(parts)]
    count("the number of VMs n", len(chances))
    ways = [1.0] + [0.0] * len(chances)  # ways[j]: probability that exactly j are up
    for done, each in enumerate(chances):
        for j in range(done + 1, 0, -1):
            ways[j] = ways[j] * each.down + ways[j - 1] * float(each)
        ways[0] *= each.down
    upper, lower = math.fsum(ways[max(0, m) :]), math.fsum(ways[: max(0, m)])
    # The greater of the two from the smaller one: so that they add up to one.
    return Paired.sums(1.0 - lower, lower) if lower < upper else Paired.sums(upper, 1.0 - upper)

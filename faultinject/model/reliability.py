"""Node reliability of the four designs of section 4, and of m-of-n voting beyond them.

H is the hardware, V the layer under the guests (here host Linux, QEMU and the voter, not a type-1
hypervisor as in the paper), M a guest with its service.  ``rh``, ``rv``, ``rm`` are their
reliabilities, probabilities in [0, 1] of a mission without failure.  Failures are independent.
Every function returns a ``Paired``: a float whose ``down`` is the accurate probability of failure.
All raise ModelError for a probability out of range, and for n out of 1..10,000.
"""

from __future__ import annotations

from collections.abc import Sequence

from faultinject.model.paired import Paired, count, probability
from faultinject.model.tails import all_fail, binomial_at_least, subset_at_least

__all__ = [
    "at_least",
    "m_of_n",
    "moved_c1",
    "moved_c2",
    "nv",
    "one_of_n",
    "series",
    "two_of_three",
]


def series(*parts: float) -> Paired:
    """Return the reliability of parts that must all be up: the product, 1 without parts."""
    up, down = 1.0, 0.0
    for part in parts:
        each = probability("a part of a series", part)
        down += up * each.down
        up *= float(each)
    return Paired.sums(up, down)


def _node(rh: float, rv: float, inner: Paired) -> Paired:
    return series(probability("R_H", rh), probability("R_V", rv), inner)


def nv(rh: float, rm: float) -> Paired:
    """Non-virtualized node (Figure 1): ``R_H R_M``."""
    return series(probability("R_H", rh), probability("R_M", rm))


def one_of_n(rh: float, rv: float, rm: float, n: int) -> Paired:
    """``n`` VMs of which one suffices (Figure 2): ``R_H R_V [1 - (1 - R_M)^n]``."""
    lost = all_fail(probability("R_M", rm), count("the number of VMs n", n))
    return _node(rh, rv, Paired(lost.down, float(lost)))


def two_of_three(rh: float, rv: float, rm: float) -> Paired:
    """VMM-level voting: ``R_H R_V [R_M^3 + 3 R_M^2 (1 - R_M)]``."""
    return m_of_n(rh, rv, rm, 2, 3)


def m_of_n(rh: float, rv: float, rm: float, m: int, n: int) -> Paired:
    """``m``-of-``n``: ``R_H R_V sum_{j>=m} C(n, j) R_M^j (1 - R_M)^(n-j)``; 1 <= m <= n."""
    chance, size = probability("R_M", rm), count("the number of VMs n", n)
    need = count("the number of VMs that must agree m", m, 1, size)
    return _node(rh, rv, binomial_at_least(need, size, chance))


def at_least(m: int, parts: Sequence[float]) -> Paired:
    """Return P(at least ``m`` of unequal guests up), the sum over subsets.  1 <= m <= len(parts).

    Multiply by ``R_H R_V`` with ``series``.
    """
    need = count(
        "the number of VMs that must agree m", m, 1, count("the number of VMs n", len(parts))
    )
    return subset_at_least(need, parts)


def moved_c1(rh: float, rv: float, rf: float, rm_rest: float, n: int) -> Paired:
    """Configuration C1 (Figure 5a), f in each VM: ``R_H R_V [1 - (1 - R_f R_M')^n]``."""
    guest = series(probability("R_f", rf), probability("R_M'", rm_rest))
    return one_of_n(rh, rv, guest, n)


def moved_c2(rh: float, rv: float, r_moved: float, rm_rest: float, n: int) -> Paired:
    """Configuration C2 (Figure 5b), F next to V: ``R_H R_V R_F [1 - (1 - R_M')^n]``."""
    return series(probability("R_F", r_moved), one_of_n(rh, rv, probability("R_M'", rm_rest), n))

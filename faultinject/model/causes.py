"""Shared causes: what becomes of m-of-n voting when guests do not fail independently.

The paper calls its values upper bounds because of dependence.  That is not always so.  With h(x)
the reliability of m-of-n at R_M = x, a cause that fails all guests with probability 1 - c leaves
c h(R_M / c) where R_M stays what it is: more than h(R_M) if R_M is below the x at which h(x) / x is
largest, .75 for 2-of-3.  From there on h is concave and lies above its chord from 0, so that no
mixture of independent guests exceeds it.  One fate shared by all helps below the R_M at which
m-of-n equals one guest, .5: who falls together also stands together.

All functions give the guests' part alone; times ``R_H R_V`` by ``reliability.series``.  Results
are ``Paired``; all raise ModelError.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from faultinject.model.paired import ModelError, Paired, count, probability
from faultinject.model.reliability import series
from faultinject.model.tails import binomial_at_least

__all__ = [
    "beta_factor",
    "binomial_failure_rate",
    "one_shot",
    "shared_cause_helps",
    "shared_draw",
]


def _votes(m: int, n: int) -> tuple[int, int]:
    size = count("the number of VMs n", n)
    return count("the number of VMs that must agree m", m, 1, size), size


def _mix(share: float, first: Paired, other: Paired) -> Paired:
    """``first`` with probability ``share``, else ``other``: sums of positive terms both ways."""
    rest = 1.0 - share
    return Paired.sums(
        share * float(first) + rest * float(other), share * first.down + rest * other.down
    )


def shared_draw(rm: float, share: float, m: int, n: int) -> Paired:
    """All guests share one fate with probability ``share``, else each has its own.

    ``share R_M + (1 - share) P(at least m of n)``.  R_M = .3, share .2: .216 becomes .2328.
    """
    need, size = _votes(m, n)
    r, together = probability("R_M", rm), probability("the share of common draws", share)
    return _mix(float(together), r, binomial_at_least(need, size, r))


def shared_cause_helps(rm: float, m: int, n: int) -> bool:
    """Whether one fate shared by all makes m-of-n *more* reliable than independent guests.

    Of ``shared_draw`` only (see above for causes that fail all).  It does where one guest is better
    than the vote: R_M < .5 for 2-of-3, never for 1-of-n.
    """
    need, size = _votes(m, n)
    r = probability("R_M", rm)
    return float(r) > float(binomial_at_least(need, size, r))


def beta_factor(
    rm: float, beta: float, m: int, n: int, reading: Literal["marginal", "mef"] = "marginal"
) -> Paired:
    """The beta-factor model: the part ``beta`` of a guest's failures are failures of all guests.

    With Q = 1 - R_M the common cause has probability beta Q.  ``marginal``: each guest's own
    failures make up the rest, so that R_M stays what it is.  ``mef``: they have (1 - beta) Q, as
    Open-PSA's engines (SCRAM) expand the model; R_M is then a little greater.
    """
    need, size = _votes(m, n)
    r, part = probability("R_M", rm), float(probability("beta", beta))
    common = Paired.failing(part * r.down)
    if reading == "mef":
        own = (1.0 - part) * r.down
    else:
        own = 0.0 if common == 0.0 else (1.0 - part) * r.down / float(common)
    return series(common, binomial_at_least(need, size, Paired.failing(own)))


def one_shot(rm: float, frequency: float, c: Sequence[float], m: int) -> Paired:
    """At most one shot a mission, with probability ``frequency``, which fails j guests by ``c[j]``.

    ``rm``: a guest's reliability apart from shots; its own failures are independent.
    ``(1 - s) P_n + s sum_j c_j P_{n-j}``, P_i: at least m of i guests up.  ``c`` for j = 0..n adds
    up to 1.
    """
    need, size = _votes(m, len(c) - 1)
    r, s = probability("R_M", rm), probability("the shots' frequency", frequency)
    parts = [float(probability(f"c_{j}", each)) for j, each in enumerate(c)]
    if not math.isclose(math.fsum(parts), 1.0, abs_tol=1e-9):
        raise ModelError(
            f"the c_j add up to {math.fsum(parts):g}: a shot fails 0 to n guests, so 1"
        )
    left = [binomial_at_least(need, size - j, r) for j in range(size + 1)]
    shot = Paired.sums(
        math.fsum(part * float(each) for part, each in zip(parts, left, strict=True)),
        math.fsum(part * each.down for part, each in zip(parts, left, strict=True)),
    )
    return _mix(float(s), shot, left[0])


def binomial_failure_rate(
    rm: float, shots: float, each: float, m: int, n: int, lethal: float = 0.0
) -> Paired:
    """Atwood's binomial failure rate model over one mission.

    Shots come as a Poisson process, ``shots`` a mission on average (0 to 500); each fails every
    guest that is up with probability ``each``, independently.  Lethal shots, ``lethal`` a mission
    (0 to 500), fail all.  ``rm``: a guest's reliability apart from both.  Summed over the number of
    shots N: ``e^-lethal sum_N Poisson(N) P(at least m of n | R_M (1 - each)^N)``.
    """
    need, size = _votes(m, n)
    r, hit = probability("R_M", rm), probability("rho, a shot's chance to fail a guest", each)
    for name, rate in (("shots", shots), ("lethal shots", lethal)):
        if not 0.0 <= rate <= 500.0:
            raise ModelError(f"{name} a mission is {rate:g}: the mean must be from 0 to 500")
    survive = Paired(1.0, 0.0)  # (1 - each)^N
    share, seen = math.exp(-shots), 0.0
    ups: list[float] = []
    downs: list[float] = []
    number = 0
    while True:
        voted = binomial_at_least(need, size, series(r, survive))
        ups.append(share * float(voted))
        downs.append(share * voted.down)
        seen += share
        number += 1
        # Beyond the mean the terms fall; what is left out is below the last one's rounding.
        if number > shots and share < 1e-18 * max(seen, 1e-300):
            break
        share *= shots / number
        survive = series(survive, Paired(hit.down, float(hit)))
    spared = Paired.sums(math.fsum(ups), math.fsum(downs))
    return series(Paired(math.exp(-lethal), -math.expm1(-lethal)), spared)

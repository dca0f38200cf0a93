"""Common causes: m-of-n voting when guests do not fail independently.

The paper calls its values upper bounds under dependence.  This does not hold everywhere.  With h(x)
the reliability of m-of-n at R_M = x, a cause that fails all guests with probability 1 - c leaves
c h(R_M / c) where R_M stays what it is: more than h(R_M) if R_M is below the x at which h(x) / x is
largest, .75 for 2-of-3.  From there on h is concave and lies above its chord from 0, so that no
mixture of independent guests exceeds it.  One fate shared by all guests helps below the R_M at
which m-of-n equals one guest, .5: guests that fail together also survive together.

All functions give the guests' part alone; times ``R_H R_V`` by ``reliability.series``.  Results
are ``Paired``; all raise ModelError.
"""

from __future__ import annotations

from typing import Literal

from faultinject.model.paired import Paired, count, probability
from faultinject.model.reliability import series
from faultinject.model.tails import binomial_at_least

__all__ = [
    "beta_factor",
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
    """Return the reliability if all guests share one fate with probability ``share``.

    ``share R_M + (1 - share) P(at least m of n)``.  R_M = .3, share .2: .216 becomes .2328.
    """
    need, size = _votes(m, n)
    r, together = probability("R_M", rm), probability("the share of common draws", share)
    return _mix(float(together), r, binomial_at_least(need, size, r))


def beta_factor(
    rm: float, beta: float, m: int, n: int, reading: Literal["marginal", "mef"] = "marginal"
) -> Paired:
    """Return the beta-factor model: a share ``beta`` of a guest's failures are failures of all.

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

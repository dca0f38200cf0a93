"""The measured R_M at which the voted and the plain node are equally reliable.

For 2-of-3 with a perfect voter the model puts this crossing at R_M = .5; below it, voting makes the
node less reliable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from faultinject.estimate.counts import Counts
from faultinject.estimate.intervals import Interval, check_alpha, jeffreys_draws, quantiles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Crossing", "find_crossing"]

DRAWS = 4_000


class Crossing(msgspec.Struct, frozen=True, kw_only=True):
    """R_M at which R_sys - R_M changes sign, by linear interpolation between neighbouring doses.

    ``share``: the proportion of posterior draws that cross at all; ``rm`` is the interval of these.
    """

    rm: Interval
    share: float


def find_crossing(
    nv: Sequence[Counts], voted: Sequence[Counts], alpha: float = 0.05, seed: int = 1
) -> Crossing | None:
    """Find the crossing among doses in rising order: the change of sign at the highest dose.

    Returns None where the measured points do not cross, or fewer than two doses were measured on
    both nodes.  The interval is a pointwise Jeffreys posterior interval.
    """
    check_alpha(alpha)
    used = [i for i in range(len(nv)) if nv[i].trials and voted[i].trials]
    if len(used) < 2:
        return None
    import numpy as np  # noqa: PLC0415 - slow to load

    measured = [np.array([[1 - each[i].rate for i in used]]) for each in (nv, voted)]
    seen = float(_cross(*measured)[0])
    if math.isnan(seen):
        return None
    plain = 1.0 - jeffreys_draws([nv[i] for i in used], DRAWS, seed)
    both = 1.0 - jeffreys_draws([voted[i] for i in used], DRAWS, seed + 1)
    crossed = _cross(plain, both)
    crossed = crossed[~np.isnan(crossed)]
    return Crossing(rm=quantiles(crossed, alpha, seen), share=len(crossed) / DRAWS)


def _cross(plain: NDArray[np.float64], voted: NDArray[np.float64]) -> NDArray[np.float64]:
    """R_M of the change of sign at the highest dose, by row of doses; nan where there is none."""
    import numpy as np  # noqa: PLC0415 - slow to load

    gaps = voted - plain
    found = np.full(len(gaps), math.nan)
    for i in range(1, gaps.shape[1]):  # a higher dose replaces a lower one
        worse, better = gaps[:, i], gaps[:, i - 1]
        here = (worse <= 0.0) & (better > 0.0)
        share = -worse[here] / (better[here] - worse[here])
        found[here] = plain[here, i] + share * (plain[here, i - 1] - plain[here, i])
    return found

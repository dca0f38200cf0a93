"""Where voted and plain are equally good: the measured R_M at which R_sys = R_M.

The model has it at R_M = .5 for 2-of-3 (and a voter that does not fail): below, voting makes the
node worse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from faultinject.estimate.counts import Counts
from faultinject.estimate.intervals import JEFFREYS, Interval, check_alpha, jeffreys_draws
from faultinject.estimate.posterior import quantiles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Crossing", "find_crossing"]

DRAWS = 4_000
SURE = 0.995


class Crossing(msgspec.Struct, frozen=True, kw_only=True):
    """R_M where R_sys - R_M changes sign, straight between neighbouring doses.

    ``share``: of the posterior draws, those that cross at all; the interval is over these.
    """

    rm: Interval
    share: float
    words: str


def find_crossing(
    nv: Sequence[Counts], voted: Sequence[Counts], alpha: float = 0.05, seed: int = 1
) -> Crossing | None:
    """The crossing from doses in rising order: from the highest dose down, the first change.

    None where the measured points do not cross, or fewer than two doses were measured on both.
    """
    check_alpha(alpha)
    used = [i for i in range(len(nv)) if nv[i].trials and voted[i].trials]
    if len(used) < 2:
        return None
    import numpy as np  # noqa: PLC0415 - an extra

    measured = [np.array([[1 - each[i].rate for i in used]]) for each in (nv, voted)]
    seen = float(_cross(*measured)[0])
    if math.isnan(seen):
        return None
    plain = 1.0 - jeffreys_draws([nv[i] for i in used], DRAWS, seed)
    both = 1.0 - jeffreys_draws([voted[i] for i in used], DRAWS, seed + 1)
    crossed = _cross(plain, both)
    crossed = crossed[~np.isnan(crossed)]
    share = len(crossed) / DRAWS
    found = quantiles(crossed, alpha, seen)
    rm = msgspec.structs.replace(found, method=f"{JEFFREYS}, straight between doses")
    return Crossing(
        rm=rm,
        share=share,
        words=(
            f"voted and plain are equally good at R_M = {seen:.3f} ({rm.low:.3f} to {rm.high:.3f}"
            + ("" if share > SURE else f"; in {share:.0%} of the data's redraws they cross at all")
            + ")"
        ),
    )


def _cross(plain: NDArray[np.float64], voted: NDArray[np.float64]) -> NDArray[np.float64]:
    """R_M of the change of sign at the highest dose, by row of doses; nan where there is none."""
    import numpy as np  # noqa: PLC0415 - an extra

    gaps = voted - plain
    found = np.full(len(gaps), math.nan)
    for i in range(1, gaps.shape[1]):  # a higher dose takes the place of a lower one
        worse, better = gaps[:, i], gaps[:, i - 1]
        here = (worse <= 0.0) & (better > 0.0)
        share = -worse[here] / (better[here] - worse[here])
        found[here] = plain[here, i] + share * (plain[here, i - 1] - plain[here, i])
    return found

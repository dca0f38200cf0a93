"""The sharper, pointwise estimate: sample each f_k and g_k from its Jeffreys posterior.

Label it so wherever it is shown: it holds at one q at a time, not for all at once, and it can miss
where f_0 matters (its share of U hangs on a handful of missions, or on none).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from faultinject.estimate.counts import EstimateError
from faultinject.estimate.intervals import JEFFREYS, Interval, check_alpha, jeffreys_draws
from faultinject.estimate.strata import Band, Strata, band, check_probability, weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["PosteriorEstimate", "quantiles", "sharp"]


class PosteriorEstimate:
    """Posterior draws of all strata; ``sharp`` makes one.  Its methods mirror ``Band``'s."""

    def __init__(
        self,
        strata: Strata,
        alpha: float,
        failing: NDArray[np.float64],
        saving: NDArray[np.float64],
    ) -> None:
        self.alpha = alpha
        self._failing, self._saving = failing, saving
        self._observed: Band = band(strata, alpha)

    def _down(self, q: float) -> NDArray[np.float64]:
        return self._failing @ _column(weights(q, self._failing.shape[1] - 1))

    def _kept(self, q: float) -> NDArray[np.float64]:
        return self._saving @ _column(weights(q, self._saving.shape[1] - 1))

    def failure(self, q: float) -> Interval:
        """U(q), pointwise."""
        return quantiles(self._down(q), self.alpha, self._observed.failure(q).value)

    def reliability(self, rm: float) -> Interval:
        """S, pointwise."""
        return self.failure(1.0 - check_probability("R_M", rm)).turned()

    def system(self, rm: float, rv: float, rh: float = 1.0) -> Interval:
        """R_sys, pointwise."""
        q = 1.0 - check_probability("R_M", rm)
        drawn = rh * (rv * (1.0 - self._down(q)) + (1.0 - rv) * self._kept(q))
        return quantiles(drawn, self.alpha, self._observed.system(rm, rv, rh).value)

    def bound(self, rm: float) -> Interval:
        """R_V*, pointwise."""
        import numpy as np  # noqa: PLC0415 - an extra

        q = 1.0 - check_probability("R_M", rm)
        up, kept = 1.0 - self._down(q), self._kept(q)
        harmless = up <= kept
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = np.maximum(0.0, (rm - kept) / (up - kept))
        drawn = np.where(harmless, np.where(up > rm, 0.0, math.inf), drawn)
        return quantiles(drawn, self.alpha, self._observed.bound(rm).value)


def _column(values: Sequence[float]) -> NDArray[np.float64]:
    import numpy as np  # noqa: PLC0415 - an extra

    return np.array(values, dtype=np.float64)


def quantiles(drawn: NDArray[np.float64], alpha: float, value: float) -> Interval:
    """Equal-tailed interval of the draws, stretched to hold ``value``, what was observed.

    Without that a stratum without a failure, whose draws are all above 0, would keep the observed
    value and a perfect node's true one out of the interval.
    """
    import numpy as np  # noqa: PLC0415 - an extra

    low, high = np.quantile(drawn, [alpha / 2, 1.0 - alpha / 2], method="nearest")
    if not math.isnan(value):
        low, high = min(low, value), max(high, value)
    return Interval(
        value=value, low=float(low), high=float(high), level=1.0 - alpha, method=JEFFREYS
    )


def sharp(
    strata: Strata, alpha: float = 0.05, draws: int = 20_000, seed: int = 1
) -> PosteriorEstimate:
    """Draw all strata ``draws`` times from their Jeffreys posteriors (repeats exactly by ``seed``).

    A g_k that was not measured is taken as 0 (with none measured: the paper's G).  Raises
    EstimateError for fewer than 100 draws.
    """
    check_alpha(alpha)
    if draws < 100:
        raise EstimateError(f"{draws} draws are too few for an interval: take at least 100")
    failing = jeffreys_draws(strata.guests, draws, seed)
    saving = failing * 0.0
    for k, counts in enumerate(strata.voter):
        if counts is not None:
            saving[:, k] = jeffreys_draws([counts.turned()], draws, seed + 1 + k)[:, 0]
    return PosteriorEstimate(strata, alpha, failing, saving)

"""What counted missions allow one to say: pure statistics, from counts to verdicts.

``counts`` and ``intervals`` are the ground, ``strata`` recombines what was measured by k into
U(q) and R_V*, ``verdicts`` holds it against the paper; ``doses`` and ``shots`` are the two
campaigns in which nothing is forced to fail.  Needs scipy (the extra ``campaign``).
"""

from faultinject.estimate.common_cause import (
    AtFrequency,
    CommonCauseResult,
    CommonCauseTrials,
    Dependence,
    at_frequency,
    estimate_common_cause,
)
from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.crossing import Crossing
from faultinject.estimate.doses import DoseCounts, DosesVerdict, DoseVerdict, Fit, compare_doses
from faultinject.estimate.equivalence import (
    Choice,
    Equivalence,
    EquivalenceMargins,
    PointVerdict,
    VoterVerdict,
    bound_equivalence,
    combined_verdict,
    compare_at_point,
    compare_at_points,
    failure_equivalence,
    missions_for_equivalence,
    paper_failure,
)
from faultinject.estimate.failure_counts import FailureCounts, independence_of_failures
from faultinject.estimate.intervals import (
    Interval,
    clopper_pearson,
    jeffreys,
    success,
    worst_case,
)
from faultinject.estimate.pairs import McNemar, Pair, mcnemar, pair_difference
from faultinject.estimate.posterior import PosteriorEstimate, sharp
from faultinject.estimate.precision import StatisticalPower, expected, lowest_q, reach
from faultinject.estimate.ranges import BetterRange, better_range
from faultinject.estimate.relocation import RelocationEstimate, RelocationPoint, estimate_relocation
from faultinject.estimate.sampling import DesignWidths, compare_designs
from faultinject.estimate.strata import Band, Strata, band, weights
from faultinject.estimate.subsets import SubsetBand, subset_band

__all__ = [
    "Equivalence",
    "AtFrequency",
    "Band",
    "BetterRange",
    "Choice",
    "Counts",
    "Crossing",
    "Dependence",
    "DesignWidths",
    "DoseCounts",
    "DoseVerdict",
    "DosesVerdict",
    "EstimateError",
    "FailureCounts",
    "Fit",
    "Interval",
    "EquivalenceMargins",
    "McNemar",
    "RelocationEstimate",
    "RelocationPoint",
    "Pair",
    "PointVerdict",
    "StatisticalPower",
    "PosteriorEstimate",
    "CommonCauseTrials",
    "CommonCauseResult",
    "Strata",
    "SubsetBand",
    "VoterVerdict",
    "bound_equivalence",
    "failure_equivalence",
    "combined_verdict",
    "at_frequency",
    "band",
    "better_range",
    "clopper_pearson",
    "compare_designs",
    "expected",
    "jeffreys",
    "compare_doses",
    "independence_of_failures",
    "estimate_relocation",
    "compare_at_point",
    "compare_at_points",
    "estimate_common_cause",
    "lowest_q",
    "mcnemar",
    "missions_for_equivalence",
    "pair_difference",
    "paper_failure",
    "reach",
    "sharp",
    "subset_band",
    "success",
    "weights",
    "worst_case",
]

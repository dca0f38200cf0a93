"""What counted missions allow one to say: pure statistics, from counts to verdicts.

``counts`` and ``intervals`` are the ground, ``strata`` recombines what was measured by k into
U(q) and R_V*, ``verdicts`` holds it against the paper; ``doses`` and ``shots`` are the two
campaigns in which nothing is forced to fail.  Needs scipy (the extra ``campaign``).
"""

from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.crossing import Crossing
from faultinject.estimate.doses import DoseCounts, DosesVerdict, DoseVerdict, Fit, judge_doses
from faultinject.estimate.falls import FailureCounts, judge_falls
from faultinject.estimate.intervals import (
    Interval,
    clopper_pearson,
    jeffreys,
    success,
    worst_case,
)
from faultinject.estimate.moved import RelocationEstimate, RelocationPoint, judge_moved
from faultinject.estimate.naive import DesignWidths, compare_designs
from faultinject.estimate.pairs import McNemar, Pair, mcnemar, pair_difference
from faultinject.estimate.posterior import PosteriorEstimate, sharp
from faultinject.estimate.ranges import BetterRange, better_range
from faultinject.estimate.reach import StatisticalPower, expected, lowest_q, reach
from faultinject.estimate.shots import (
    AtFrequency,
    CommonCauseResult,
    CommonCauseTrials,
    Dependence,
    at_frequency,
    judge_shots,
)
from faultinject.estimate.strata import Band, Strata, band, weights
from faultinject.estimate.subsets import SubsetBand, subset_band
from faultinject.estimate.verdicts import (
    Agreement,
    Choice,
    EquivalenceMargins,
    PointVerdict,
    VoterVerdict,
    agree_bound,
    agree_failure,
    agree_overall,
    judge_point,
    judge_points,
    missions_to_agree,
    paper_failure,
)

__all__ = [
    "Agreement",
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
    "agree_bound",
    "agree_failure",
    "agree_overall",
    "at_frequency",
    "band",
    "better_range",
    "clopper_pearson",
    "compare_designs",
    "expected",
    "jeffreys",
    "judge_doses",
    "judge_falls",
    "judge_moved",
    "judge_point",
    "judge_points",
    "judge_shots",
    "lowest_q",
    "mcnemar",
    "missions_to_agree",
    "pair_difference",
    "paper_failure",
    "reach",
    "sharp",
    "subset_band",
    "success",
    "weights",
    "worst_case",
]

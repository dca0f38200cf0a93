"""Section 4 of the paper as formulas: node reliability, its bounds, shared causes, and export.

Pure arithmetic on floats, nothing but the standard library and msgspec.  Failures are independent
unless a function of ``causes`` says otherwise.  Beyond the paper: ``outcomes`` (what a guest that
lies does), ``designs`` (which is best) and ``repairable`` (rates and repair).
"""

from faultinject.model.bounds import (
    Needed,
    breakeven_rf,
    breakeven_rv,
    breakeven_rv_1ofn,
    breakeven_rv_2of3,
    guests_needed,
    guests_to_beat_plain,
    rm_range,
    rm_range_2of3,
)
from faultinject.model.causes import (
    beta_factor,
    binomial_failure_rate,
    one_shot,
    shared_cause_helps,
    shared_draw,
)
from faultinject.model.designs import (
    Chosen,
    Design,
    RankedDesign,
    best_design,
    designs,
    judge,
    judge_all,
)
from faultinject.model.export import NodeDesign, to_galileo, to_open_psa
from faultinject.model.inversions import (
    breakeven_with,
    guests_for_majority,
    guests_when_moved,
    rf_when_moved,
    rm_needed,
    rm_when_moved,
    rv_needed,
)
from faultinject.model.outcomes import FailureMode, Outcomes, guest_outcomes, node_outcomes
from faultinject.model.paired import ModelError, Paired, probability
from faultinject.model.reliability import (
    at_least,
    m_of_n,
    moved_c1,
    moved_c2,
    nv,
    one_of_n,
    plain_through_voter,
    series,
    two_of_three,
)
from faultinject.model.repairable import (
    Repairable,
    SteadyState,
    mean_time_to_failure,
    mission_reliability,
    plain_availability,
    plain_reliability,
    steady_state,
    voter_availability_needed,
    voter_rate_allowed,
)

__all__ = [
    "Chosen",
    "Design",
    "FailureMode",
    "RankedDesign",
    "ModelError",
    "Needed",
    "NodeDesign",
    "Outcomes",
    "Paired",
    "Repairable",
    "SteadyState",
    "at_least",
    "best_design",
    "beta_factor",
    "binomial_failure_rate",
    "breakeven_rf",
    "breakeven_rv",
    "breakeven_rv_1ofn",
    "breakeven_rv_2of3",
    "breakeven_with",
    "designs",
    "guest_outcomes",
    "guests_for_majority",
    "guests_needed",
    "guests_to_beat_plain",
    "guests_when_moved",
    "judge",
    "judge_all",
    "m_of_n",
    "mean_time_to_failure",
    "mission_reliability",
    "moved_c1",
    "moved_c2",
    "node_outcomes",
    "nv",
    "one_of_n",
    "one_shot",
    "plain_availability",
    "plain_reliability",
    "plain_through_voter",
    "probability",
    "rf_when_moved",
    "rm_needed",
    "rm_range",
    "rm_range_2of3",
    "rm_when_moved",
    "rv_needed",
    "series",
    "shared_cause_helps",
    "shared_draw",
    "steady_state",
    "to_galileo",
    "to_open_psa",
    "two_of_three",
    "voter_availability_needed",
    "voter_rate_allowed",
]

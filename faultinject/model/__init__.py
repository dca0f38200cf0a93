"""Section 4 of the paper as formulas: node reliability, its bounds, shared causes, and export.

Pure arithmetic on floats, nothing but the standard library and msgspec.  Failures are independent
unless a function of ``causes`` says otherwise.
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
from faultinject.model.export import NodeDesign, to_galileo, to_open_psa
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

__all__ = [
    "ModelError",
    "Needed",
    "NodeDesign",
    "Paired",
    "at_least",
    "beta_factor",
    "binomial_failure_rate",
    "breakeven_rf",
    "breakeven_rv",
    "breakeven_rv_1ofn",
    "breakeven_rv_2of3",
    "guests_needed",
    "guests_to_beat_plain",
    "m_of_n",
    "moved_c1",
    "moved_c2",
    "nv",
    "one_of_n",
    "one_shot",
    "plain_through_voter",
    "probability",
    "rm_range",
    "rm_range_2of3",
    "series",
    "shared_cause_helps",
    "shared_draw",
    "to_galileo",
    "to_open_psa",
    "two_of_three",
]

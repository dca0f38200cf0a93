"""Guests with repair: a continuous-time Markov chain.  Beyond the paper, which does not model time.

Each guest that is up fails with rate ``fail``.  Each of ``repairers`` repairs one guest at a time,
with rate ``repair``.  The layer under them fails with rate ``voter_fail`` and is repaired with rate
``voter_repair`` (0: never).  Times are exponential and independent.  Guests fail and are repaired
also while the voter is down, so the two chains are separate.  The state of the guests is the number
that is down.  All rates use one unit of time, chosen by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import msgspec

from faultinject.model.paired import ModelError, Paired, count
from faultinject.model.reliability import series
from faultinject.model.tails import binomial_at_least, exactly

__all__ = [
    "Repairable",
    "SteadyState",
    "mean_time_to_failure",
    "mission_reliability",
    "plain_availability",
    "plain_reliability",
    "steady_state",
    "voter_availability_needed",
    "voter_rate_allowed",
]

MOST_STATES = 100
"""Guests that may be down before the node is, for the reliability of a mission: a matrix's size."""


class Repairable(msgspec.Struct, frozen=True, kw_only=True):
    """m-of-n guests with rates; see above.  ``fail`` and ``repair`` are positive and finite.

    ``repairers``: 1 (one at a time) to n (each guest its own).
    """

    m: int
    n: int
    fail: float
    repair: float
    repairers: int = 1
    voter_fail: float = 0.0
    voter_repair: float = 0.0

    def __post_init__(self) -> None:
        size = count("the number of VMs n", self.n)
        count("the number of VMs that must agree m", self.m, 1, size)
        count("the number of repairers", self.repairers, 1, size)
        for name, rate, least in (
            ("the guests' failure rate", self.fail, math.ulp(0.0)),
            ("the guests' repair rate", self.repair, math.ulp(0.0)),
            ("the voter's failure rate", self.voter_fail, 0.0),
            ("the voter's repair rate", self.voter_repair, 0.0),
        ):
            if not least <= rate < math.inf:
                allowed = "positive and finite" if least else "0 or more, and finite"
                raise ModelError(f"{name} is {rate:g}: a rate is {allowed}")

    @property
    def spare(self) -> int:
        """How many guests may be down: n - m."""
        return self.n - self.m

    def failing(self, down: int) -> float:
        """Return the rate of a further failure with ``down`` guests down."""
        return (self.n - down) * self.fail

    def repairing(self, down: int) -> float:
        """Return the rate of a repair with ``down`` guests down."""
        return min(down, self.repairers) * self.repair


class SteadyState(msgspec.Struct, frozen=True, kw_only=True):
    """The long run: availability, and times in the rates' unit (infinite where nothing fails).

    ``guests``: that enough guests are up; ``voter``: that the layer under them is; ``node``: both.
    """

    guests: Paired
    voter: Paired
    node: Paired
    failures: float
    mean_up: float
    mean_down: float


def _weights(model: Repairable) -> list[float]:
    """Steady-state probabilities of 0..n guests down."""
    # Logarithms of the products: at n = 10,000 these themselves leave the floats' range.
    logs = list(
        accumulate(
            (
                math.log(model.failing(down - 1)) - math.log(model.repairing(down))
                for down in range(1, model.n + 1)
            ),
            initial=0.0,
        )
    )
    top = max(logs)
    raw = [math.exp(each - top) for each in logs]
    total = math.fsum(raw)
    return [each / total for each in raw]


def steady_state(model: Repairable) -> SteadyState:
    """Availability and how often and how long the node is down.

    With n repairers the guests are independent and it is m-of-n with R_M = repair/(fail + repair).
    A voter that fails and is never repaired is down in the long run.
    """
    if model.repairers == model.n:
        one = plain_availability(model)
        guests = binomial_at_least(model.m, model.n, one)
        edge = exactly(model.m, model.n, one)  # with one more down the node fails
    else:
        states = _weights(model)
        up, down = states[: model.spare + 1], states[model.spare + 1 :]
        guests, edge = Paired.sums(math.fsum(up), math.fsum(down)), up[-1]
    voter = _share(model.voter_repair, model.voter_fail) if model.voter_fail else Paired(1.0)
    node = series(voter, guests)
    failures = float(voter) * (edge * model.m * model.fail + float(guests) * model.voter_fail)
    return SteadyState(
        guests=guests,
        voter=voter,
        node=node,
        failures=failures,
        mean_up=float(node) / failures if failures else math.inf if node else 0.0,
        mean_down=node.down / failures if failures else 0.0 if node else math.inf,
    )


def _share(repair: float, fail: float) -> Paired:
    return Paired.sums(repair / (fail + repair), fail / (fail + repair))


def plain_availability(model: Repairable) -> Paired:
    """One such guest without a voter: ``repair / (fail + repair)``."""
    return _share(model.repair, model.fail)


def plain_reliability(model: Repairable, mission: float) -> Paired:
    """One such guest without a voter through a mission: ``exp(-fail mission)``."""
    return _lasting(model.fail, mission)


def _lasting(rate: float, mission: float) -> Paired:
    if not 0.0 <= mission < math.inf:
        raise ModelError(f"the mission lasts {mission:g}: a time is 0 or more, and finite")
    return Paired(math.exp(-rate * mission), -math.expm1(-rate * mission))


def voter_availability_needed(model: Repairable) -> Paired:
    """In steady state: the voter's availability above which the node's is better than plain.

    As Inequality (4), with availabilities for reliabilities: 1 or more where none is enough.
    """
    plain, guests = plain_availability(model), steady_state(model).guests
    if guests == 0.0:
        return Paired(math.inf, -math.inf)
    return Paired(float(plain) / float(guests), (plain.down - guests.down) / float(guests))


def voter_rate_allowed(model: Repairable, mission: float) -> float:
    """The voter's failure rate below which the mission is more reliable than on the plain node.

    ``fail + ln(P(enough guests throughout))/mission``; zero or negative where none is enough.  The
    mission must be longer than 0.
    """
    if not 0.0 < mission < math.inf:
        raise ModelError(f"the mission lasts {mission:g}: it must be longer than 0, and finite")
    guests = _guests_throughout(model, mission)
    if guests == 0.0:
        return -math.inf
    logarithm = math.log1p(-guests.down) if guests.down < 0.5 else math.log(float(guests))
    return model.fail + logarithm / mission


def mean_time_to_failure(model: Repairable) -> float:
    """Mean time until the node fails first, all guests up at the start; the voter's end counts.

    First-passage times from each number of guests down to the next, sums of positive terms alone.
    """
    total, reach = 0.0, 1.0
    passage, missed = 0.0, 1.0  # of the state before: mean time in it, chance not to get to here
    for down in range(model.spare + 1):
        ahead, back = model.failing(down), model.repairing(down)
        leave = ahead + model.voter_fail + back * missed
        passage = (1.0 + back * passage) / leave
        total += reach * passage
        reach *= ahead / leave
        missed = (model.voter_fail + back * missed) / leave
    return total


def mission_reliability(model: Repairable, mission: float) -> Paired:
    """Probability that the node does not fail in a mission of that length, all up at the start.

    ``exp(-voter_fail mission)`` times that of the guests.  At most 100 guests may be down before
    the node is (ModelError); relative error of either side about 1e-9 or better.
    """
    return series(_lasting(model.voter_fail, mission), _guests_throughout(model, mission))


def _guests_throughout(model: Repairable, mission: float) -> Paired:
    """Never more than ``spare`` guests down: the chain up to there, all beyond absorbing."""
    if model.spare > MOST_STATES:
        raise ModelError(
            f"{model.spare} guests may be down before the node is: the mission's reliability is "
            f"computed for up to {MOST_STATES} (steady state and mean time are for all)",
            error_code="TV0609",
        )
    _lasting(0.0, mission)
    last = model.spare + 1
    fastest = max(model.failing(down) + model.repairing(down) for down in range(last))
    rate = 2.0 * fastest  # so that no diagonal element is below a half
    if not rate * mission < 1e15:
        raise ModelError(
            f"in this mission a guest could fail and be repaired {rate * mission / 2:.0e} times: "
            "too long to compute; ask for the steady state, or a shorter mission",
            error_code="TV0609",
        )
    jump = [[0.0] * (last + 1) for _ in range(last + 1)]
    for down in range(last):
        ahead, back = model.failing(down) / rate, model.repairing(down) / rate
        jump[down][down + 1] = ahead
        if down:
            jump[down][down - 1] = back
        jump[down][down] = 1.0 - ahead - back
    jump[last][last] = 1.0
    doublings = max(0, math.ceil(math.log2(rate * mission))) if rate * mission > 1.0 else 0
    step = _poisson_sum(jump, rate * mission / 2.0**doublings)
    for _ in range(doublings):
        step = _stochastic(_product(step, step))
    return Paired.sums(math.fsum(step[0][:last]), step[0][last])


Matrix = list[list[float]]


def _poisson_sum(jump: Matrix, mean: float) -> Matrix:
    """``sum_j Poisson(mean; j) jump^j``, mean <= 1: what a Poisson number of jumps does."""
    size = len(jump)
    power = [[float(i == j) for j in range(size)] for i in range(size)]
    share = math.exp(-mean)
    total = [[share * each for each in row] for row in power]
    # size + 25 terms: an entry far off the diagonal has its first terms only there.
    for number in range(1, size + 25):
        power = [_jumped(row, jump) for row in power]
        share *= mean / number
        for row, more in zip(total, power, strict=True):
            for column, each in enumerate(more):
                row[column] += share * each
    return _stochastic(total)


def _jumped(row: Sequence[float], jump: Matrix) -> list[float]:
    """``row`` times ``jump``, which goes one state up or down, or stays."""
    last = len(jump) - 1
    return [
        (row[to - 1] * jump[to - 1][to] if to else 0.0)
        + row[to] * jump[to][to]
        + (row[to + 1] * jump[to + 1][to] if to < last else 0.0)
        for to in range(last + 1)
    ]


def _product(left: Matrix, right: Matrix) -> Matrix:
    columns = list(zip(*right, strict=True))
    return [[sum(map(mul, row, column)) for column in columns] for row in left]


def _stochastic(matrix: Matrix) -> Matrix:
    """Each row adds up to 1 again: else rounding would double with each doubling of the time."""
    return [_scaled(row) for row in matrix]


def _scaled(row: Sequence[float]) -> list[float]:
    total = math.fsum(row)
    return [each / total for each in row]

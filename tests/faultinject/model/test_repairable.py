"""The Markov chain, compared with known formulas, mpmath, and Storm."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faultinject.model.paired import ModelError
from faultinject.model.reliability import m_of_n, one_of_n, two_of_three
from faultinject.model.repairable import (
    Repairable,
    mean_time_to_failure,
    mission_reliability,
    plain_availability,
    plain_reliability,
    steady_state,
    voter_availability_needed,
    voter_rate_allowed,
)

rates = st.floats(1e-6, 1e3)


@given(fail=rates, repair=rates, n=st.integers(1, 9), data=st.data())
def test_steady_state_is_m_of_n_with_one_repairer_per_guest(
    fail: float, repair: float, n: int, data: st.DataObject
) -> None:
    m = data.draw(st.integers(1, n))
    model = Repairable(m=m, n=n, fail=fail, repair=repair, repairers=n)
    expected = m_of_n(1, 1, plain_availability(model), m, n)
    found = steady_state(model).guests
    assert float(found) == pytest.approx(float(expected), rel=1e-10)
    assert found.down == pytest.approx(expected.down, rel=1e-10)


def test_mttf_of_2of3_matches_trivedi() -> None:
    """Trivedi: MTTF of TMR with repair is 5/(6 fail) + repair/(6 fail^2)."""
    fail, repair = 0.01, 2.0
    model = Repairable(m=2, n=3, fail=fail, repair=repair)
    assert mean_time_to_failure(model) == pytest.approx(5 / (6 * fail) + repair / (6 * fail**2))
    x = fail / repair
    total = 1 + 3 * x + 6 * x**2 + 6 * x**3
    state = steady_state(model)
    assert state.node.down == pytest.approx((6 * x**2 + 6 * x**3) / total)
    assert state.failures == pytest.approx(3 * x / total * 2 * fail)
    assert state.mean_up / (state.mean_up + state.mean_down) == pytest.approx(float(state.node))


@given(n=st.integers(1, 8), t=st.floats(0.0, 30.0), data=st.data())
def test_mission_reliability_is_the_papers_with_negligible_repair(
    n: int, t: float, data: st.DataObject
) -> None:
    """Negligible repair: m-of-n with R_M = exp(-fail t)."""
    m = data.draw(st.integers(1, n))
    model = Repairable(m=m, n=n, fail=0.1, repair=1e-30)
    expected = m_of_n(1, 1, plain_reliability(model, t), m, n)
    found = mission_reliability(model, t)
    assert float(found) == pytest.approx(float(expected), rel=1e-10)
    assert found.down == pytest.approx(expected.down, rel=1e-9, abs=1e-300)


CASES = [
    Repairable(m=2, n=3, fail=1e-6, repair=1.0),
    Repairable(m=2, n=3, fail=0.3, repair=0.2, voter_fail=0.01, voter_repair=1.0),
    Repairable(m=3, n=5, fail=0.01, repair=10.0, repairers=2, voter_fail=1e-4),
    Repairable(m=1, n=4, fail=1e-3, repair=1.0),
    Repairable(m=2, n=2, fail=0.2, repair=3.0, repairers=2),
]


def generator(model: Repairable) -> list[list[float]]:
    last = model.spare + 1
    rows = [[0.0] * (last + 1) for _ in range(last + 1)]
    for down in range(last):
        rows[down][down + 1] += model.failing(down)
        if down:
            rows[down][down - 1] += model.repairing(down)
        rows[down][down] = -math.fsum(rows[down])
    return rows


@pytest.mark.parametrize("model", CASES)
@pytest.mark.parametrize("mission", [1e-3, 1.0, 300.0, 1e5])
def test_mission_reliability_matches_mpmath(model: Repairable, mission: float) -> None:
    mpmath: Any = pytest.importorskip("mpmath")
    with mpmath.workdps(80):
        rows = mpmath.matrix(generator(model)) * mpmath.mpf(mission)
        for i in range(rows.rows):  # the diagonal, exactly
            rows[i, i] = 0
            rows[i, i] = -sum(rows[i, j] for j in range(rows.cols))
        halvings = max(0, int(mpmath.ceil(mpmath.log(mpmath.norm(rows, 1) + 1, 2)))) + 8
        step = mpmath.expm(rows / 2**halvings, method="taylor")
        for _ in range(halvings):
            step *= step
        failed = step[0, rows.cols - 1]
        lasting = mpmath.exp(-mpmath.mpf(model.voter_fail) * mission)
        found = mission_reliability(model, mission)
        assert found.down == pytest.approx(float(1 - lasting * (1 - failed)), rel=1e-9)
        if float(found) > 1e-250:
            assert float(found) == pytest.approx(float(lasting * (1 - failed)), rel=1e-8)


def test_long_mission_keeps_its_digits() -> None:
    model = Repairable(m=2, n=3, fail=1e-6, repair=1.0)
    mean = mean_time_to_failure(model)
    # Failures are so rare that the time to the first is exponential, to its order of 1e-6.
    expected = -math.expm1(-1e9 / mean)
    assert mission_reliability(model, 1e9).down == pytest.approx(expected, rel=1e-5)


def test_mttf_includes_failures_of_the_voter() -> None:
    alone = Repairable(m=1, n=1, fail=0.2, repair=1.0, voter_fail=0.3)
    assert mean_time_to_failure(alone) == pytest.approx(1 / 0.5)
    for model in CASES:
        ends = [mission_reliability(model, t / 50).down for t in range(1, 3)]
        assert ends[0] <= ends[1]
    with_voter = mean_time_to_failure(CASES[1])
    # The integral of the mission's reliability, by Simpson's rule.
    step, total = 0.05, 0.0
    for i in range(1200):
        total += float(mission_reliability(CASES[1], i * step)) * (
            1 if i == 0 else 4 if i % 2 else 2
        )
    assert with_voter == pytest.approx(total * step / 3, rel=1e-4)


def test_steady_state_exists_for_ten_thousand_guests() -> None:
    model = Repairable(m=5_001, n=10_000, fail=1.0, repair=1.05, repairers=10_000)
    found = steady_state(model)
    assert float(found.guests) == pytest.approx(
        float(m_of_n(1, 1, plain_availability(model), 5_001, 10_000)), rel=1e-9
    )
    single = steady_state(Repairable(m=1, n=10_000, fail=1e-3, repair=5.0))
    assert 0.0 <= single.node.down <= 1.0
    one = Repairable(m=9_990, n=10_000, fail=1e-9, repair=1.0)
    assert mean_time_to_failure(one) > 1e3


def test_nodes_are_equal_at_the_break_evens() -> None:
    model = Repairable(m=2, n=3, fail=0.01, repair=1.0)
    allowed = voter_rate_allowed(model, 24.0)
    at = Repairable(m=2, n=3, fail=0.01, repair=1.0, voter_fail=allowed)
    assert float(mission_reliability(at, 24.0)) == pytest.approx(math.exp(-0.24), rel=1e-12)
    needed = voter_availability_needed(model)
    assert float(needed) * float(steady_state(model).guests) == pytest.approx(
        float(plain_availability(model)), rel=1e-12
    )
    poor = Repairable(m=3, n=3, fail=0.01, repair=1.0)
    assert voter_rate_allowed(poor, 24.0) < 0.0
    assert voter_availability_needed(poor) > 1.0


def test_short_missions_match_inequality_4() -> None:
    """A mission without repair: R_M = exp(-fail t)."""
    model = Repairable(m=2, n=3, fail=0.1, repair=1e-30)
    plain = plain_reliability(model, 3.0)
    bound = float(plain) / float(two_of_three(1, 1, plain))
    assert math.exp(-voter_rate_allowed(model, 3.0) * 3.0) == pytest.approx(bound, rel=1e-10)
    alone = Repairable(m=1, n=3, fail=0.1, repair=1e-30)
    assert float(mission_reliability(alone, 3.0)) == pytest.approx(float(one_of_n(1, 1, plain, 3)))


def test_voter_without_repair_is_down_in_the_long_run() -> None:
    state = steady_state(Repairable(m=2, n=3, fail=0.1, repair=1.0, voter_fail=0.1))
    assert state.node == 0.0
    assert state.mean_down == math.inf


PROGRAM = """ctmc
const double fail = {fail!r};
const double repair = {repair!r};
const double vfail = {voter_fail!r};
const double vrepair = {voter_repair!r};
module guests
  down : [0..{n}] init 0;
  <> down < {n} -> ({n} - down) * fail : (down' = down + 1);
  <> down > 0 -> min(down, {repairers}) * repair : (down' = down - 1);
endmodule
module voter
  up : bool init true;
  <> up & vfail > 0 -> vfail : (up' = false);
  <> !up & vrepair > 0 -> vrepair : (up' = true);
endmodule
label "failed" = down > {spare} | !up;
"""


# Similar rates: with stiff chains Storm's iterations hardly terminate.
NEAR = [CASES[1], CASES[2], CASES[4], Repairable(m=1, n=4, fail=0.3, repair=1.0, repairers=2)]


@pytest.mark.parametrize("model", NEAR)
def test_storm_agrees(model: Repairable, tmp_path: Path) -> None:
    stormpy: Any = pytest.importorskip("stormpy", reason="stormpy is not installed")
    names = (*model.__struct_fields__, "spare")
    path = tmp_path / "node.prism"
    path.write_text(PROGRAM.format(**{name: getattr(model, name) for name in names}))
    program = stormpy.parse_prism_program(str(path))
    asked = 'P=? [F<=2 "failed"]; LRA=? ["failed"]; T=? [F "failed"]'
    questions = stormpy.parse_properties(asked, program)
    chain = stormpy.build_model(program, questions)
    found = [
        stormpy.model_checking(chain, question).get_value(chain.initial_states[0])
        for question in questions
    ]
    state = steady_state(model)
    assert found[0] == pytest.approx(mission_reliability(model, 2.0).down, rel=1e-4, abs=1e-10)
    assert found[1] == pytest.approx(state.node.down, rel=1e-4, abs=1e-10)
    assert found[2] == pytest.approx(mean_time_to_failure(model), rel=1e-4)


@settings(max_examples=30)
@given(
    n=st.integers(2, 40), fail=st.floats(1e-3, 10), repair=st.floats(1e-3, 10),
    mission=st.floats(0, 1e6),
)  # fmt: skip
def test_mission_reliability_is_a_probability(
    n: int, fail: float, repair: float, mission: float
) -> None:
    found = mission_reliability(Repairable(m=n // 2 + 1, n=n, fail=fail, repair=repair), mission)
    assert 0.0 <= found <= 1.0 and 0.0 <= found.down <= 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Repairable(m=2, n=3, fail=0.0, repair=1.0), "failure rate is 0"),
        (lambda: Repairable(m=2, n=3, fail=1.0, repair=math.inf), "repair rate is inf"),
        (lambda: Repairable(m=2, n=3, fail=1.0, repair=1.0, voter_fail=-1.0), "voter's failure"),
        (lambda: Repairable(m=2, n=3, fail=1.0, repair=1.0, repairers=4), "repairers is 4"),
        (lambda: Repairable(m=4, n=3, fail=1.0, repair=1.0), "m is 4"),
        (lambda: Repairable(m=2, n=0, fail=1.0, repair=1.0), "n is 0"),
        (lambda: mission_reliability(CASES[0], -1.0), "lasts -1"),
        (lambda: mission_reliability(CASES[0], 1e300), "too long to compute"),
        (lambda: voter_rate_allowed(CASES[0], 0.0), "longer than 0"),
        (
            lambda: mission_reliability(Repairable(m=1, n=200, fail=1.0, repair=1.0), 1.0),
            "for up to 100",
        ),
    ],
)  # fmt: skip
def test_invalid_chains_raise(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ModelError, match=message) as caught:
        call()
    too_large = "too long" in message or "for up to" in message
    assert caught.value.error_code == ("TV0609" if too_large else "TV0601")

"""The calculator's answers: the paper's own numbers, every inversion, and error messages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from faultinject.calculator.advice import answer_advice
from faultinject.calculator.bound import BoundAnswer, Given, answer_bound
from faultinject.calculator.designs import parse_design
from faultinject.calculator.reliability import answer_moved, answer_reliability
from faultinject.calculator.repair import BEYOND, Times, answer_repair
from faultinject.calculator.values import digits, number
from faultinject.model.outcomes import FailureMode
from faultinject.model.paired import ModelError, Paired
from tests.errors import raises

ONE = Paired(1.0)


def p(value: float) -> Paired:
    return Paired(value)


def bound(design: str, **known: Any) -> BoundAnswer:
    shown: dict[str, Any] = {
        name: value if name == "n" else Paired.parse(str(value)) for name, value in known.items()
    }
    return answer_bound(Given(design=design, **shown))


def value(answer: BoundAnswer) -> float:
    assert answer.value is not None and answer.value.value is not None
    return answer.value.value


# ------------------------------------------------------------------ formatting


@given(down=st.floats(1e-300, 0.5) | st.integers(1, 300).map(lambda e: 10.0**-e))
def test_formatted_number_parses_back_to_six_digits(down: float) -> None:
    for pair in (Paired.failing(down), Paired(down)):
        back = Paired.parse(digits(pair))
        assert float(back) == pytest.approx(float(pair), rel=1e-6)
        assert back.down == pytest.approx(pair.down, rel=1e-5)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Paired(1.0), "1"), (Paired(0.0), "0"), (Paired.failing(1e-15), "1-1e-15"),
        (Paired(25 / 27), "0.9259259"), (Paired(float("inf")), "infinite"),
        (Paired(1.136363636), "1.136364"), (Paired.failing(0.0005834), "0.9994166"),
    ],
)  # fmt: skip
def test_digits_formats_numbers(value: Paired, text: str) -> None:
    assert digits(value) == text


def test_infinite_number_is_none_in_json() -> None:
    assert number(float("inf")).value is None


# ------------------------------------------------------------------ bounds


def test_inequality_1() -> None:
    assert value(bound("1ofn", rm=0.1, n=4)) == pytest.approx(0.1 / (1 - 0.9**4))
    found = bound("1ofn", rm=0.1, rv=0.3)
    assert (found.unknown, found.guests) == ("n", 4)
    assert bound("1of4", rm=0.1, rv=0.3).met is True
    assert bound("1of3", rm=0.1, rv=0.3).met is False
    single = bound("1ofn", rm=0.9, n=1)
    assert not single.possible and "one more thing that fails" in single.notes[0]


def test_inequality_2() -> None:
    assert bound("1ofn", r=0.98, rv=0.999, rm=0.5).guests == 6
    assert value(bound("1ofn", r=0.98, rv=0.999, n=9)) == pytest.approx(0.3561, abs=5e-5)
    assert value(bound("1ofn", r=0.998, rv=0.999, n=9)) == pytest.approx(0.5358, abs=5e-5)
    assert value(bound("1ofn", r=0.9, rm=0.9, n=2)) == pytest.approx(0.9 / 0.99)
    assert bound("1ofn", r=0.98, rv=0.999, rm=0.5).source == "Inequality 2"


def test_bound_reports_whether_r_is_reached_when_all_is_given() -> None:
    enough, too_few = (bound("1ofn", r=0.98, rv=0.999, rm=0.5, n=n) for n in (6, 5))
    assert (enough.met, too_few.met) == (True, False)
    assert "more reliable than R = 0.98" in enough.notes[-1]
    assert "not more reliable" in too_few.notes[-1]
    assert bound("2of3", r=0.9, rv=0.9999, rm=0.5, n=3).met is False, "the guests alone do not"


def test_inequality_3() -> None:
    assert value(bound("moved", rf=0.75, rm=0.75, n=6)) == pytest.approx(0.9932, abs=5e-5)
    assert value(bound("moved", rf=0.75, rm=0.75, n=9)) == pytest.approx(0.9994, abs=5e-5)
    alone = bound("moved", rf=0.75, rm=0.75, n=1)
    assert value(alone) == 0.75 and "does not matter" in alone.notes[0]
    assert bound("moved", rf=0.75, rm=0.75, r_moved=0.9995).guests == 9
    assert bound("moved", rf=0.75, rm=0.75, r_moved=1).guests is None
    assert bound("moved", rf=0.75, rm=0.75, n=6, r_moved=0.99).met is False
    assert bound("moved", rf=0.75, rm=0.75, n=6, r_moved=0.994).met is True
    assert bound("moved", r_moved=0.99, rm=0.75, n=6).unknown == "R_f"
    assert bound("moved", r_moved=0.99, rf=0.75, n=6).unknown == "R_M'"


def test_inequality_4() -> None:
    assert value(bound("2of3", rm=0.75)) == pytest.approx(8 / 9)
    assert not bound("2of3", rm=0.5).possible
    wide = bound("2of3", rv=0.98)
    assert wide.high is not None and wide.high.value is not None
    assert (value(wide), wide.high.value) == pytest.approx((0.5213, 0.9787), abs=5e-5)
    assert not bound("2of3", rv=0.88).possible
    near = bound("2of3", rm="1-1e-15").value
    assert near is not None and near.complement == pytest.approx(1e-15, rel=1e-12)


def test_bounds_of_other_policies() -> None:
    assert value(bound("3of5", rm=0.9)) < value(bound("2of3", rm=0.9))
    assert not bound("2of2", rm=0.9).possible
    assert "fail-safe" in bound("2of2", rm=0.9).notes[0]
    assert not bound("2of2", rv=0.999).possible
    assert bound("majority", r=0.98, rv=0.999, rm=0.9).guests == 5
    assert value(bound("2of3", rm=0.9, beta=0.2)) > value(bound("2of3", rm=0.9))


def test_beta_factor_lowers_the_bound_for_a_poor_vm() -> None:
    assert value(bound("2of3", rm=0.3, beta=0.2)) < value(bound("2of3", rm=0.3))


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"design": "2of3"}, "give --rm and --n"),
        ({"design": "2of3", "rm": 0}, "R_M = 0"),
        ({"design": "1ofn", "n": 0, "rm": 0.5}, "n is 0"),
        ({"design": "1ofn", "r": 0.98, "rv": 0.98, "rm": 0.5}, "requires R < R_V"),
        ({"design": "1ofn", "r": 0.9, "rv": 0.98, "rm": 0}, "R_M = 0.*Inequality 2"),
        ({"design": "1ofn", "r": 0.9, "rv": 0.98, "rm": 1}, "R_M = 1"),
        ({"design": "1ofn", "rv": 0.5, "rm": 0.5}, "more reliable than the individual VM"),
        ({"design": "1ofn", "r": 0.9}, "give two of"),
        ({"design": "3ofn", "r": 0.9, "rv": 0.99, "rm": 0.5}, "for 1ofn and majority"),
        ({"design": "nv", "rm": 0.5}, "has no bound"),
        ({"design": "moved", "rf": 0.5}, "give three of"),
        ({"design": "moved", "rf": 0.5, "rm": 0, "n": 3}, "R_M' = 0.*Inequality 3"),
        ({"design": "moved", "rf": 0.9, "rm": 0.9, "r_moved": 0.5}, "loses even at n = 1"),
        ({"design": "moved", "rf": 0.5, "r": 0.5}, "does not contain"),
        ({"design": "2of3", "rf": 0.5}, "--design moved"),
        ({"design": "2of3", "rv": 0.9, "beta": 0.1}, "give --rm and --n"),
        ({"design": "2of3", "n": 4, "rm": 0.5}, "has 3 VMs; --n says 4"),
        ({"design": "4of3", "rm": 0.5}, "m is 4"),
        ({"design": "cluster", "rm": 0.5}, "is no design"),
    ],
)  # fmt: skip
def test_unanswerable_questions_raise_with_the_reason(known: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        bound(**known)


def test_designs_are_parsed_by_name() -> None:
    assert parse_design("2-of-3", None).sized() == (2, 3)
    assert parse_design("1ofN", 7).name == "1-of-7"
    assert parse_design("majority", 5).sized() == (3, 5)
    assert parse_design("nv", None).name == "NV"
    with raises("TV0601", match="give --n"):
        parse_design("1ofn", None).sized()
    with raises("TV0601", match="one machine"):
        parse_design("nv", 3)


# ------------------------------------------------------------------ reliability


def test_reliability_of_the_papers_example() -> None:
    found = answer_reliability("1ofn", 4, [p(0.1)], p(0.3), ONE, FailureMode())
    assert found.node.value == pytest.approx(0.10317)
    assert found.better
    assert not answer_reliability("1ofn", 3, [p(0.1)], p(0.3), ONE, FailureMode()).better
    assert not answer_reliability("nv", None, [p(0.1)], None, ONE, FailureMode()).better


def test_lying_vms_split_outcomes() -> None:
    split = answer_reliability(
        "2of2", None, [p(0.9)], p(0.98), ONE, FailureMode(lying=1.0)
    ).outcomes
    assert split is not None
    assert split.silent == pytest.approx(0.98 * 0.01)
    assert split.detected == pytest.approx(0.98 * 0.18)
    assert split.lost == pytest.approx(0.02)
    first = answer_reliability("1of3", None, [p(0.9)], p(0.98), ONE, FailureMode(lying=0.1))
    assert first.outcomes is not None and "is released" in first.notes[0]


def test_reliability_of_unequal_vms() -> None:
    found = answer_reliability("majority", None, [p(0.9), p(0.8), p(0.7)], ONE, ONE, FailureMode())
    assert found.design == "2-of-3"
    assert found.node.value == pytest.approx(0.902)
    assert found.plain.value == 0.9
    assert (
        answer_reliability("1ofn", None, [p(0.9), p(0.8)], ONE, ONE, FailureMode()).design
        == "1-of-2"
    )


def test_relocation_answer_compares_c1_and_c2() -> None:
    found = answer_moved(6, p(0.75), p(0.75), p(0.99), ONE, ONE)
    assert found.relocation_loses is True
    assert found.c2 is not None and found.c1.value is not None and found.c2.value is not None
    assert found.c2.value < found.c1.value
    assert answer_moved(1, p(0.75), p(0.75), None, ONE, ONE).notes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: answer_reliability("2of3", None, [], ONE, ONE, FailureMode()), "--rm"),
        (lambda: answer_reliability("2of3", None, [p(0.9)], None, ONE, FailureMode()), "--rv"),
        (
            lambda: answer_reliability("2of3", None, [p(0.9)] * 2, ONE, ONE, FailureMode()),
            "2 times",
        ),
        (
            lambda: answer_reliability(
                "2of3", None, [p(0.9), p(0.8), p(0.7)], ONE, ONE, FailureMode(lying=0.1)
            ),
            "for equal VMs",
        ),
        (
            lambda: answer_reliability("2of4", None, [p(0.9)], ONE, ONE, FailureMode(lying=0.1)),
            "m > n/2",
        ),
    ],
)
def test_missing_options_raise(call: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        call()


# ------------------------------------------------------------------ advice


def advise(rm: float, rv: float, most: int = 9, r: float | None = None, **how: float) -> Any:
    return answer_advice(p(rm), p(rv), ONE, most, FailureMode(**how), None if r is None else p(r))


def test_advice_is_a_vote_when_vms_lie() -> None:
    found = advise(0.95, 0.999, 3, lying=0.5)
    assert (found.recommended, found.guests) == ("2-of-3", 3)
    assert any("R_V > 0.9569378" in each for each in found.conditions)
    assert any("(beta)" in each for each in found.conditions)


def test_advice_is_one_of_n_when_vms_stop() -> None:
    found = advise(0.9, 0.999)
    assert found.recommended == "1-of-3"
    assert any("wrong replies" in each for each in found.conditions)
    assert any("compares nothing" in each for each in found.reasons)


def test_advice_is_nv_with_conditions_when_nothing_is_better() -> None:
    found = advise(0.1, 0.3, 3)
    assert found.recommended == "NV"
    assert any("n = 4" in each for each in found.conditions)
    assert any("for 2-of-3: no R_V < 1" in each for each in found.conditions)
    assert any("Inequality 1" in each for each in advise(0.9, 0.5).conditions)
    assert advise(1.0, 0.99).conditions == (
        "R_M strictly between 0 and 1: at R_M = 0 or 1 there is nothing to gain",
    )


def test_advice_reports_whether_the_target_is_reached() -> None:
    assert "is reached" in advise(0.9, 0.999, r=0.95).target[0]
    poor = advise(0.4, 0.999, 3, r=0.99).target
    assert any("1-of-n reaches it with 10 VMs" in each for each in poor)
    assert any("not above .5" in each for each in poor)
    assert any("no design reaches it" in each for each in advise(0.9, 0.999, r=0.9999).target)


@example(rm=5e-324, rv=1.0, lying=0.0)
@example(rm=5e-324, rv=5.6e-295, lying=0.0)
@example(rm=5e-324, rv=1e-310, lying=0.0)
@given(rm=st.floats(0.0, 1.0), rv=st.floats(0.0, 1.0), lying=st.floats(0.0, 1.0))
def test_advice_exists_for_every_probability(rm: float, rv: float, lying: float) -> None:
    found = advise(rm, rv, 4, r=0.9, lying=lying)
    assert found.recommended in {each.design for each in found.candidates}
    assert found.conditions and found.reasons and found.target


def test_condition_on_beta_is_the_threshold() -> None:
    """Beyond the reported limit of beta, the design is no longer better."""
    (limit,) = [each for each in advise(0.9, 0.99, 3, lying=1.0).conditions if "(beta)" in each]
    share = float(limit.split("%")[0].split()[-1]) / 100
    assert advise(0.9, 0.99, 3, lying=1.0, beta=share - 1e-4).recommended == "2-of-3"
    assert advise(0.9, 0.99, 3, lying=1.0, beta=share + 1e-4).recommended == "NV"


# ------------------------------------------------------------------ repair


def test_repair_answer_compares_with_one_vm() -> None:
    found = answer_repair("2of3", None, Times(mttf=720.0, mttr=0.02), 1, 8760.0)
    assert found.scope == BEYOND
    assert found.reliability is not None and found.plain_reliability is not None
    assert (found.reliability.value or 0) > 0.99 > (found.plain_reliability.value or 0)
    assert found.mttf == pytest.approx(5 * 720 / 6 + 720**2 / (6 * 0.02))
    assert found.voter_mttf_needed == pytest.approx(720, rel=1e-2)
    never = answer_repair("2of3", None, Times(mttf=720.0, mttr=1.0, voter_mttf=9e3), 0, None)
    assert never.repairers == 3 and any("never repaired" in each for each in never.notes)
    assert "for any voter" in answer_repair("2of2", None, Times(mttf=9, mttr=1), 1, 5.0).notes[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: answer_repair("nv", None, Times(mttf=1, mttr=1), 1, None), "compared with every"),
        (lambda: answer_repair("2of3", None, Times(mttf=0, mttr=1), 1, None), "to failure is 0"),
        (lambda: answer_repair("1ofn", None, Times(mttf=1, mttr=1), 1, None), "give --n"),
        (lambda: answer_repair("2of3", None, Times(mttf=1, mttr=1), 1, -1.0), "lasts -1"),
    ],
)  # fmt: skip
def test_invalid_times_raise(call: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        call()

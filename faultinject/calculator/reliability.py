"""``trivisor model reliability``: R_sys of a design, beside the plain node's."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from faultinject.calculator.designs import policy
from faultinject.calculator.values import Number, number
from faultinject.model.bounds import breakeven_rf
from faultinject.model.causes import beta_factor
from faultinject.model.outcomes import FailureMode, guest_outcomes, node_outcomes
from faultinject.model.paired import ModelError, Paired
from faultinject.model.reliability import (
    at_least,
    m_of_n,
    moved_c1,
    moved_c2,
    nv,
    series,
)

__all__ = ["RelocationAnswer", "ReliabilityAnswer", "Split", "answer_moved", "answer_reliability"]

MOST_SPLIT = 1_000


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a mission: the four outcomes add up to 1."""

    correct: Number
    detected: float
    silent: float
    lost: float


class ReliabilityAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """R_sys of ``design``, and of the plain node with the best of its machines.

    ``failures_left``: U_sys/U_NV, below 1 where the design is better; None where NV cannot fail.
    """

    design: str
    guests: Number
    node: Number
    plain: Number
    better: bool
    failures_left: float | None
    outcomes: Split | None
    says: tuple[str, ...]


class RelocationAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """R_sys of C1 (f in each VM) and C2 (F beside V), and the R_F at which they are equal."""

    n: int
    c1: Number
    c2: Number | None
    breakeven: Number
    moving_loses: bool | None
    says: tuple[str, ...]


def answer_reliability(
    design: str,
    n: int | None,
    rm: Sequence[Paired],
    rv: Paired | None,
    rh: Paired,
    how: FailureMode,
) -> ReliabilityAnswer:
    """R_sys.  ``rm``: one for all, or one a guest.  Raises ModelError in the paper's terms."""
    if not rm:
        raise ModelError("R_M is not given: --rm, once for all VMs or once for each")
    asked = policy(design, n if n is not None or len(rm) == 1 else _told(design, len(rm)))
    m, size = asked.sized()
    if len(rm) not in {1, size}:
        raise ModelError(f"{asked.name} has {size} VMs; --rm was given {len(rm)} times")
    if rv is None and not asked.plain:
        raise ModelError(f"R_V is not given: {asked.name} stands on a layer V that can fail (--rv)")
    equal = len(set(rm)) == 1
    if not equal and how != FailureMode():
        raise ModelError("--beta and --lying are for equal VMs: give one --rm for all")
    voter = Paired(1.0) if asked.plain or rv is None else rv
    layer = series(rh, voter)
    if not equal:
        guests = at_least(m, rm)
    elif how.beta:
        guests = beta_factor(rm[0], how.beta, m, size)
    else:
        guests = m_of_n(1.0, 1.0, rm[0], m, size)
    split, correct = None, guests
    if equal and size <= MOST_SPLIT and (m == 1 or 2 * m > size):
        found = node_outcomes(layer, guest_outcomes(rm[0], m, size, how))
        correct = guest_outcomes(rm[0], m, size, how).correct
        split = Split(
            correct=number(found.correct),
            detected=found.detected,
            silent=found.silent,
            lost=found.lost,
        )
    elif how.lying:
        raise ModelError(
            f"{asked.name}: what liars do is told for m = 1 or m > n/2, and n up to {MOST_SPLIT:,}"
        )
    node, plain = series(layer, correct), nv(rh, max(rm))
    better = node.down < plain.down if plain > 0.5 else float(node) > float(plain)
    says = []
    if not equal:
        says.append(f"NV is taken to be the best of the VMs, R_M = {number(max(rm)).text}")
    if how.lying and m == 1 and size > 1:
        says.append("1-of-n compares nothing: a VM that lies is released, and counts as silent")
    return ReliabilityAnswer(
        design=asked.name,
        guests=number(correct),
        node=number(node),
        plain=number(plain),
        better=better and not asked.plain,
        failures_left=node.down / plain.down if plain.down else None,
        outcomes=split,
        says=tuple(says),
    )


def _told(design: str, size: int) -> int | None:
    """The number of VMs by the number of their reliabilities, where the design leaves it open."""
    words = design.strip().lower()
    return size if words == "majority" or words.endswith("ofn") else None


def answer_moved(
    n: int, rm: Paired, rf: Paired, r_moved: Paired | None, rv: Paired, rh: Paired
) -> RelocationAnswer:
    """C1 beside C2 (Figure 5); without ``r_moved`` C1 and the R_F that C2 would need."""
    one, bound = moved_c1(rh, rv, rf, rm, n), breakeven_rf(rf, rm, n)
    two = None if r_moved is None else moved_c2(rh, rv, r_moved, rm, n)
    loses = None
    if r_moved is not None:
        loses = r_moved.down > bound.down if bound > 0.5 else float(r_moved) < float(bound)
    says = (
        ("n = 1: it does not matter where f is (Inequality 3 asks R_F >= R_f)",) if n == 1 else ()
    )
    return RelocationAnswer(
        n=n,
        c1=number(one),
        c2=None if two is None else number(two),
        breakeven=number(bound),
        moving_loses=loses,
        says=says,
    )

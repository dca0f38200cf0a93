"""``trivisor model reliability`` and ``export``: R_sys of a design, and its fault tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from faultinject.calculator.designs import NamedDesign, parse_design
from faultinject.calculator.values import Number, number
from faultinject.model.bounds import breakeven_rf
from faultinject.model.causes import beta_factor
from faultinject.model.export import NodeDesign, to_galileo, to_open_psa
from faultinject.model.outcomes import FailureMode, guest_outcomes, node_outcomes
from faultinject.model.paired import ModelError, Paired
from faultinject.model.reliability import at_least, m_of_n, moved_c1, moved_c2, nv, series

__all__ = [
    "ExportAnswer", "OutcomeSplit", "ReliabilityAnswer", "RelocationAnswer", "answer_export",
    "answer_moved", "answer_reliability",
]  # fmt: skip

MOST_SPLIT = 1_000
"""VMs up to which outcomes are computed."""


class OutcomeSplit(msgspec.Struct, frozen=True, kw_only=True):
    """Probabilities of a mission's four outcomes; they add up to 1."""

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
    outcomes: OutcomeSplit | None
    notes: tuple[str, ...]


class RelocationAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """R_sys of C1 (f in each VM) and C2 (F next to V), and the R_F at which they are equal."""

    n: int
    c1: Number
    c2: Number | None
    breakeven: Number
    relocation_loses: bool | None
    notes: tuple[str, ...]


class ExportAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``text``: the fault tree; ``node``: R_sys by our own formulas, to compare with the engine's.

    With a beta factor it follows the engines' definition, in which R_M is slightly higher.
    """

    language: str
    design: str
    node: Number
    text: str


def _read_node(
    design: str, n: int | None, rm: Sequence[Paired], rv: Paired | None
) -> tuple[NamedDesign, Paired]:
    """Return the design, and R_V (1 for NV).  Raises ModelError for missing or excess options."""
    if not rm:
        raise ModelError("R_M is missing: give --rm, once for all VMs or once for each")
    text = design.strip().lower()
    if n is None and len(rm) > 1 and (text == "majority" or text.endswith("ofn")):
        n = len(rm)
    named = parse_design(design, n)
    _, size = named.sized()
    if len(rm) not in {1, size}:
        raise ModelError(f"{named.name} has {size} VMs; --rm was given {len(rm)} times")
    if named.plain:
        return named, Paired(1.0)
    if rv is None:
        raise ModelError(f"R_V is missing: {named.name} runs on a layer V that can fail (--rv)")
    return named, rv


def answer_reliability(
    design: str,
    n: int | None,
    rm: Sequence[Paired],
    rv: Paired | None,
    rh: Paired,
    how: FailureMode,
) -> ReliabilityAnswer:
    """Compute R_sys.  ``rm``: one for all VMs, or one for each.  Raises ModelError."""
    named, voter = _read_node(design, n, rm, rv)
    m, size = named.sized()
    equal = len(set(rm)) == 1
    if not equal and how != FailureMode():
        raise ModelError(
            "--beta and --lying are for equal VMs: give one --rm for all", error_code="TV0602"
        )
    layer = series(rh, voter)
    if not equal:
        correct = at_least(m, rm)
    elif how.beta:
        correct = beta_factor(rm[0], how.beta, m, size)
    else:
        correct = m_of_n(1.0, 1.0, rm[0], m, size)
    split = None
    if equal and size <= MOST_SPLIT and (m == 1 or 2 * m > size):
        guests = guest_outcomes(rm[0], m, size, how)
        found, correct = node_outcomes(layer, guests), guests.correct
        split = OutcomeSplit(
            correct=number(found.correct), detected=found.detected, silent=found.silent,
            lost=found.lost,
        )  # fmt: skip
    elif how.lying:
        raise ModelError(
            f"{named.name}: --lying needs m = 1 or m > n/2, and n up to {MOST_SPLIT:,}",
            error_code="TV0602",
        )
    node, plain = series(layer, correct), nv(rh, max(rm))
    better = node.down < plain.down if plain > 0.5 else float(node) > float(plain)
    notes = []
    if not equal:
        notes.append(f"NV has the best of the VMs, R_M = {number(max(rm)).text}")
    if how.lying and m == 1 and size > 1:
        notes.append("1-of-n compares nothing: the reply of a lying VM is released (silent)")
    return ReliabilityAnswer(
        design=named.name,
        guests=number(correct),
        node=number(node),
        plain=number(plain),
        better=better and not named.plain,
        failures_left=node.down / plain.down if plain.down else None,
        outcomes=split,
        notes=tuple(notes),
    )


def answer_moved(
    n: int, rm: Paired, rf: Paired, r_moved: Paired | None, rv: Paired, rh: Paired
) -> RelocationAnswer:
    """Compare C1 and C2 (Figure 5); without ``r_moved`` C1 and the R_F that C2 would need."""
    bound = breakeven_rf(rf, rm, n)
    loses = None
    if r_moved is not None:
        loses = r_moved.down > bound.down if bound > 0.5 else float(r_moved) < float(bound)
    note = "n = 1: the place of f does not matter (Inequality 3 requires R_F >= R_f)"
    return RelocationAnswer(
        n=n,
        c1=number(moved_c1(rh, rv, rf, rm, n)),
        c2=None if r_moved is None else number(moved_c2(rh, rv, r_moved, rm, n)),
        breakeven=number(bound),
        relocation_loses=loses,
        notes=(note,) if n == 1 else (),
    )


def answer_export(language: str, design: str, given: Mapping[str, Any]) -> ExportAnswer:
    """Write ``design`` in ``language`` (mef, galileo).  Raises ModelError for what is missing."""
    name = design.strip().lower()
    moved = name in {"c1", "c2"}
    rms = tuple(given["rm"])
    named, voter = _read_node("1ofn" if moved else design, given["n"], rms, given["rv"])
    m, size = named.sized()
    for needed, option, symbol in (("c1", "rf", "R_f"), ("c2", "r_moved", "R_F")):
        if name == needed and given[option] is None:
            flag = option.replace("_", "-")
            raise ModelError(
                f"{name} needs --{flag} ({symbol}); --rm is then R_M', of the rest of a VM"
            )
    node = NodeDesign(
        rh=given["rh"], rv=voter, rm=rms if len(rms) == size else rms * size, m=m,
        beta=given["beta"], rf=given["rf"] if name != "c2" else None,
        r_moved=given["r_moved"] if name != "c1" else None,
    )  # fmt: skip
    return ExportAnswer(
        language=language,
        design=name.upper() if moved else named.name,
        node=number(node.reliability),
        text=to_open_psa(node) if language == "mef" else to_galileo(node),
    )

"""Answers for people: tables and sentences on standard output."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from faultinject.calculator.advice import Advice
from faultinject.calculator.bound import BoundAnswer
from faultinject.calculator.reliability import ReliabilityAnswer, RelocationAnswer
from faultinject.calculator.repair import RepairAnswer
from faultinject.calculator.values import Number, plain
from voter.commands.terminal import console

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["tell_advice", "tell_bound", "tell_moved", "tell_reliability", "tell_repair"]


def _table(*columns: str) -> Table:
    from rich.table import Table  # noqa: PLC0415

    made = Table(show_header=any(columns), box=None, pad_edge=False)
    for index, each in enumerate(columns):
        made.add_column(each, justify="left" if index == 0 else "right", no_wrap=True)
    return made


def _say(sentences: Iterable[str], lead: str = "") -> None:
    screen = console()
    for each in sentences:
        screen.print(f"{lead}{each}", markup=False)


def _fails(value: Number) -> str:
    return "" if value.complement is None else plain(value.complement)


def tell_reliability(answer: ReliabilityAnswer) -> None:
    """R_sys beside NV's, and what becomes of missions."""
    table = _table(answer.design, "R", "1 - R")
    table.add_row("R_sys", answer.node.text, _fails(answer.node))
    if answer.design != "NV":
        table.add_row("enough VMs up", answer.guests.text, _fails(answer.guests))
        table.add_row("NV, one VM on the bare node", answer.plain.text, _fails(answer.plain))
    console().print(table)
    if answer.design != "NV":
        left = answer.failures_left
        ratio = "" if left is None else f" (it fails {plain(left)} times as often)"
        _say([f"{'better' if answer.better else 'no better'} than NV{ratio}"])
    split = answer.outcomes
    if split is not None:
        _say(
            [
                f"missions: correct {split.correct.text}, detected and refused "
                f"{plain(split.detected)}, silent (wrong reply released) {plain(split.silent)}, "
                f"layer lost {plain(split.lost)}"
            ]
        )
    _say(answer.says)


def tell_moved(answer: RelocationAnswer) -> None:
    """C1 beside C2."""
    table = _table(f"n = {answer.n}", "R", "1 - R")
    table.add_row("R_sys of C1, f in each VM", answer.c1.text, _fails(answer.c1))
    if answer.c2 is not None:
        table.add_row("R_sys of C2, F beside V", answer.c2.text, _fails(answer.c2))
    table.add_row("R_F needed (Inequality 3)", answer.breakeven.text, _fails(answer.breakeven))
    console().print(table)
    if answer.moving_loses is not None:
        _say(["moving the function " + ("loses" if answer.moving_loses else "is no loss")])
    _say(answer.says)


def tell_bound(answer: BoundAnswer) -> None:
    """The bound, in one line, and what it means."""
    if not answer.possible and answer.value is None:
        line = f"no {answer.unknown} will do"
    elif answer.relation == "in" and answer.value is not None and answer.high is not None:
        line = f"{answer.value.text} < {answer.unknown} < {answer.high.text}"
    elif answer.guests is not None and answer.value is not None:
        line = f"n > {answer.value.text}: {answer.guests} VMs"
    elif answer.value is not None:
        line = f"{answer.unknown} {answer.relation} {answer.value.text}"
    elif answer.guests is not None:
        line = f"n <= {answer.guests}"
    else:
        line = "any n"
    screen = console()
    screen.print(f"{answer.design}: [bold]{line}[/]  [dim]({answer.source})[/]")
    _say(answer.says)


def tell_advice(answer: Advice) -> None:
    """The design, the others beside it, and the conditions."""
    screen = console()
    many = "one VM" if answer.guests == 1 else f"{answer.guests} VMs"
    screen.print(f"take [bold]{answer.take}[/] ({many})")
    _say(answer.because, "  ")
    screen.print("for it to be so:" if answer.take != "NV" else "for another design to be better:")
    _say(answer.needs, "  ")
    _say(answer.target)
    table = _table("design", "VMs", "R_sys", "1 - R_sys", "failures of NV", "silent")
    for each in answer.candidates:
        left = each.failures_left
        table.add_row(
            each.design, str(each.guests), each.node.text, _fails(each.node),
            "" if left is None else f"{left:.4g} x", f"{each.silent:.4g}",
            style="bold" if each.design == answer.take else "",
        )  # fmt: skip
    screen.print()
    screen.print(table)


def tell_repair(answer: RepairAnswer) -> None:
    """The node beside one VM, in the long run and through a mission."""
    table = _table(answer.design, "node", "one VM")
    table.add_row("availability", answer.availability.text, answer.plain_availability.text)
    table.add_row("unavailability", _fails(answer.availability), _fails(answer.plain_availability))
    table.add_row("mean time to failure", _time(answer.mttf), plain(answer.plain_mttf))
    table.add_row("mean time up", _time(answer.mean_up), "")
    table.add_row("mean time down", _time(answer.mean_down), "")
    if answer.reliability is not None and answer.plain_reliability is not None:
        table.add_row(
            f"mission of {plain(answer.mission or 0.0)}: R",
            answer.reliability.text,
            answer.plain_reliability.text,
        )
        table.add_row("and 1 - R", _fails(answer.reliability), _fails(answer.plain_reliability))
    screen = console()
    screen.print(table)
    _say(answer.says)
    screen.print(f"[dim]{answer.note}[/]")


def _time(value: float | None) -> str:
    return "for ever" if value is None else plain(value)

"""The calculator's answers as tables and sentences on standard output."""

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

__all__ = ["print_advice", "print_bound", "print_moved", "print_reliability", "print_repair"]


def _table(*columns: str) -> Table:
    from rich.table import Table  # noqa: PLC0415

    made = Table(show_header=any(columns), box=None, pad_edge=False)
    for index, each in enumerate(columns):
        made.add_column(each, justify="left" if index == 0 else "right", no_wrap=True)
    return made


def _print(sentences: Iterable[str], lead: str = "") -> None:
    for each in sentences:
        console().print(f"{lead}{each}", markup=False)


def _fails(value: Number) -> str:
    return "" if value.complement is None else plain(value.complement)


def print_reliability(answer: ReliabilityAnswer) -> None:
    """Print R_sys with NV's, and the outcomes of missions."""
    table = _table(answer.design, "R", "1 - R")
    table.add_row("R_sys", answer.node.text, _fails(answer.node))
    if answer.design != "NV":
        table.add_row("enough VMs up", answer.guests.text, _fails(answer.guests))
        table.add_row("NV, one VM on the bare node", answer.plain.text, _fails(answer.plain))
    console().print(table)
    if answer.design != "NV":
        left = answer.failures_left
        ratio = "" if left is None else f" (it fails {plain(left)} times as often)"
        _print([f"{'better' if answer.better else 'no better'} than NV{ratio}"])
    split = answer.outcomes
    if split is not None:
        _print(
            [
                f"missions: correct {split.correct.text}, detected and rejected "
                f"{plain(split.detected)}, silent (wrong reply released) {plain(split.silent)}, "
                f"layer lost {plain(split.lost)}"
            ]
        )
    _print(answer.notes)


def print_moved(answer: RelocationAnswer) -> None:
    """Print C1 and C2."""
    table = _table(f"n = {answer.n}", "R", "1 - R")
    table.add_row("R_sys of C1, f in each VM", answer.c1.text, _fails(answer.c1))
    if answer.c2 is not None:
        table.add_row("R_sys of C2, F next to V", answer.c2.text, _fails(answer.c2))
    table.add_row("R_F needed (Inequality 3)", answer.breakeven.text, _fails(answer.breakeven))
    console().print(table)
    if answer.relocation_loses is not None:
        _print(["moving the function " + ("loses" if answer.relocation_loses else "is no loss")])
    _print(answer.notes)


def print_bound(answer: BoundAnswer) -> None:
    """Print the bound on one line, and its meaning."""
    if not answer.possible and answer.value is None:
        line = f"no {answer.unknown} is enough"
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
    console().print(f"{answer.design}: [bold]{line}[/]  [dim]({answer.source})[/]")
    _print(answer.notes)


def print_advice(answer: Advice) -> None:
    """Print the recommended design, its conditions, and the alternatives."""
    screen = console()
    many = "one VM" if answer.guests == 1 else f"{answer.guests} VMs"
    screen.print(f"recommended: [bold]{answer.recommended}[/] ({many})")
    _print(answer.reasons, "  ")
    plain_node = answer.recommended == "NV"
    screen.print("another design is better if:" if plain_node else "on condition that:")
    _print(answer.conditions, "  ")
    _print(answer.target)
    table = _table("design", "VMs", "R_sys", "1 - R_sys", "failures of NV", "silent")
    for each in answer.candidates:
        left = each.failures_left
        table.add_row(
            each.design, str(each.guests), each.node.text, _fails(each.node),
            "" if left is None else f"{left:.4g} x", f"{each.silent:.4g}",
            style="bold" if each.design == answer.recommended else "",
        )  # fmt: skip
    screen.print()
    screen.print(table)


def print_repair(answer: RepairAnswer) -> None:
    """Print the node and one VM, in the long run and through a mission."""

    def mean(value: float | None) -> str:
        return "infinite" if value is None else plain(value)

    table = _table(answer.design, "node", "one VM")
    table.add_row("availability", answer.availability.text, answer.plain_availability.text)
    table.add_row("unavailability", _fails(answer.availability), _fails(answer.plain_availability))
    table.add_row("mean time to failure", mean(answer.mttf), plain(answer.plain_mttf))
    table.add_row("mean time up", mean(answer.mean_up), "")
    table.add_row("mean time down", mean(answer.mean_down), "")
    if answer.reliability is not None and answer.plain_reliability is not None:
        mission = f"mission of {plain(answer.mission or 0.0)}: R"
        table.add_row(mission, answer.reliability.text, answer.plain_reliability.text)
        table.add_row("and 1 - R", _fails(answer.reliability), _fails(answer.plain_reliability))
    screen = console()
    screen.print(table)
    _print(answer.notes)
    screen.print(f"[dim]{answer.scope}[/]")

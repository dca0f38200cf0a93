"""What ``trivisor patch`` prints for a person."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from voter.commands.terminal import console

__all__ = ["show_differences", "show_dry_run", "show_patch"]

_COLOURS = {"done": "green", "rejected": "red", "aborted": "yellow"}
_LONGEST = 600
"""Characters of a request or a reply that are shown."""


def show_patch(state: dict[str, Any]) -> None:
    """Print the status of a patch."""
    from rich.markup import escape  # noqa: PLC0415 - slow

    out = console()
    phase, quarantine, goal = state["phase"], state["quarantine"], state["goal"]
    colour = _COLOURS.get(phase, "cyan")
    count = len(state["promoted"])
    more = f" {count} of {state['of']}" if phase in ("promoting", "reverting") else ""
    out.print(f"patch {state['number']}: [{colour}]{phase}{more}[/], {escape(state['title'])}")
    if state["reason"]:
        out.print(f"reason: {escape(state['reason'])}")
    if state["slot"] is not None:
        out.print(f"copy: {state['slot']}")
    unexpected = sum(quarantine["unexpected"].values())
    expected = sum(quarantine["expected"].values())
    out.print(
        f"compared: {quarantine['compared']:,} replies in {quarantine['seconds']:.0f} s; "
        f"{unexpected} unexpected and {expected} expected differences"
    )
    for label, number in quarantine["unexpected"].items():
        out.print(f"  [red]unexpected[/]: {number} x {escape(label)}")
    for rule, number in quarantine["expected"].items():
        out.print(f"  expected: {number} x {escape(rule)}")
    if phase == "quarantine":
        how = "automatic" if goal["auto"] else "by `trivisor patch promote`"
        waits = quarantine["waits_for"] or "nothing: it may be promoted"
        out.print(f"promotion ({how}) waits for: {escape(waits)}")
    if state["waits_for"] and phase in ("preparing", "promoting", "reverting"):
        out.print(f"[yellow]waiting[/]: {escape(state['waits_for'])}")
    for step in state["steps"][-10:]:
        when = time.strftime("%H:%M:%S", time.localtime(step["time"]))
        out.print(f"  {when}  {escape(step['text'])}")


def show_differences(found: Sequence[dict[str, Any]], total: int, lost: int) -> None:
    """Print differences; ``total`` is how many there are."""
    out = console()
    for each in found:
        rule = each["rule"]
        how = f"expected by {rule!r}" if rule is not None else "UNEXPECTED"
        statuses = f", status {each['old']} -> {each['new']}" if each["old"] != each["new"] else ""
        out.print(f"request {each['seq']}: {each['label']}, {how}{statuses}", markup=False)
        for name in ("headers", "paths"):
            if each[name]:
                out.print(f"  {name} that differ: {', '.join(each[name])}", markup=False)
        if each["problem"]:
            out.print(f"  {each['problem']}", markup=False)
        if each["reason"]:
            out.print(f"  {each['reason']}", markup=False)
        for title in ("request", "released", "other"):
            if each[title]:
                out.print(f"  {title}:", markup=False)
                out.print(_indent(each[title]), markup=False, highlight=False)
    if total > len(found):
        out.print(f"{total - len(found)} earlier ones are not shown: --lines")
    if lost:
        out.print(f"{lost} differences could not be kept")
    if not total:
        out.print("no differences")


def _indent(text: str) -> str:
    """Return a message for a terminal: control characters escaped, long ones cut off."""
    plain = text.replace("\r\n", "\n")
    safe = "".join(
        char if char == "\n" or " " <= char <= "~" else f"\\x{ord(char):02x}" for char in plain
    )
    if len(safe) > _LONGEST:
        safe = f"{safe[:_LONGEST]} ... {len(safe) - _LONGEST} more"
    return "\n".join(f"    {line}" for line in safe.rstrip("\n").split("\n"))


def show_dry_run(answer: dict[str, Any]) -> None:
    """Print what rules would explain."""
    out = console()
    for rule in answer["rules"]:
        text = f"{rule['name']}: explains {rule['explains']} recorded differences"
        out.print(f"{text}; {rule['requests']} of {answer['log']} recent writes", markup=False)
    out.print(f"{answer['unexpected']} recorded differences remain unexpected")
    if answer["used"]:
        out.print("the patch is judged by these rules from now on")

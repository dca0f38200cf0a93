"""What a run of ``./run test --kvm`` keeps: facts of the hosts, and each step's result."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

__all__ = ["Record", "Step"]


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step: its result, its seconds, what was observed; of a failed one, why."""

    name: str
    result: Literal["ok", "failed", "not reached"]
    seconds: float = 0.0
    seen: dict[str, Any] = {}
    output: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run.

    ``place``: "host" if the steps ran on the host itself, "emulated" if in a virtual machine under
    TCG; ``outer`` are then the facts of the host that emulated it.  ``commit`` is empty if it is
    not known.  ``began`` is in UTC, as ISO 8601.
    """

    place: Literal["host", "emulated"]
    commit: str
    began: str
    outer: dict[str, Any] = {}
    steps: tuple[Step, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every step was reached and is ok."""
        return bool(self.steps) and all(step.result == "ok" for step in self.steps)

    def with_step(self, step: Step) -> Record:
        """Return the record with one more step."""
        return msgspec.structs.replace(self, steps=(*self.steps, step))

    def lines(self) -> list[str]:
        """Return a table for people."""
        lines = [f"{self.began}  commit {self.commit or 'unknown'}  {self.place}"]
        for step in self.steps:
            lines.append(f"{step.result:11}  {step.seconds:7.1f} s  {step.name}")
            lines += [f"    {line}" for line in step.output.splitlines()[:20]]
        return lines

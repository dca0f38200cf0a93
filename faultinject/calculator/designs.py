"""Designs by name, as a user types them: nv, 1ofn, 2of3, 3of5, majority, moved, c1, c2."""

from __future__ import annotations

import re

import msgspec

from faultinject.model.paired import ModelError, count

__all__ = ["NAMES", "NamedDesign", "parse_design"]

NAMES = "nv, 1ofn, 2of3, MofN (3of5, 2of2, ...), majority"


class NamedDesign(msgspec.Struct, frozen=True, kw_only=True):
    """``m`` of ``n`` guests; None where not given yet; ``plain``: no voter (NV)."""

    m: int | None
    n: int | None
    plain: bool = False

    @property
    def name(self) -> str:
        """The name as the paper writes it."""
        if self.plain:
            return "NV"
        if self.m is None:
            return "majority of n"
        return f"{self.m}-of-{'n' if self.n is None else self.n}"

    def sized(self) -> tuple[int, int]:
        """Return m and n.  Raises ModelError where n was not given."""
        if self.n is None or self.m is None:
            raise ModelError(f"{self.name}: the number of VMs is missing: give --n")
        return self.m, self.n


def parse_design(design: str, n: int | None) -> NamedDesign:
    """Parse ``design`` with ``--n``, which must not contradict it.  Raises ModelError."""
    text = design.strip().lower().replace("-", "")
    if n is not None:
        count("the number of VMs n", n)
    if text in {"nv", "plain"}:
        if n not in {None, 1}:
            raise ModelError(f"NV, the non-virtualized node, has one machine; --n says {n}")
        return NamedDesign(m=1, n=1, plain=True)
    if text == "majority":
        return NamedDesign(m=None if n is None else n // 2 + 1, n=n)
    if not (found := re.fullmatch(r"(\d{1,5})of(n|\d{1,5})", text)):
        raise ModelError(f"{design!r} is no design: give one of {NAMES}")
    m = int(found[1])
    if found[2] == "n":
        return NamedDesign(m=count("the number of VMs that must agree m", m, 1, n or 10_000), n=n)
    size = count("the number of VMs n", int(found[2]))
    if n not in {None, size}:
        raise ModelError(f"{design} has {size} VMs; --n says {n}")
    return NamedDesign(m=count("the number of VMs that must agree m", m, 1, size), n=size)

"""One planted defect: a small change of the product's source, as data (``defects.py``)."""

from __future__ import annotations

from typing import NamedTuple

from faultinject.simulation.plan import SWARM

__all__ = ["Defect"]


class Defect(NamedTuple):
    """One planted defect.  ``first`` is the first of the seeds within which it must be detected."""

    name: str
    what: str
    promises: tuple[str, ...]
    edits: tuple[tuple[str, str, str], ...]
    first: int = SWARM

"""The measured Inequality (3): two campaigns, f in each guest and F on the host.

``report.relocation`` computes it from the two stores; ``trivisor campaign moved --out`` stores it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from faultinject.estimate.relocation import Heterogeneity, RelocationPoint
from faultinject.results.findings import FindingsFileError, finite_only

__all__ = ["FILE", "RelocationResult", "read_relocation", "storable"]

FILE = "moved.json"
"""Name of the stored result, in a directory of its own among the results."""


class RelocationResult(msgspec.Struct, frozen=True, kw_only=True):
    """The break-even R_F from two campaigns.  ``partial``: planned missions are missing.
    ``heterogeneity``: strata in which f_k depends on the part of the guests that failed.
    """

    guest: str
    host: str
    confidence: float
    missions: int
    partial: bool
    points: tuple[RelocationPoint, ...]
    heterogeneity: tuple[Heterogeneity, ...]


def read_relocation(path: Path) -> RelocationResult:
    """Read what ``trivisor campaign moved --out`` stored.  Raises FindingsFileError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=RelocationResult)
    except (OSError, msgspec.MsgspecError) as error:
        raise FindingsFileError(
            f"{path}: {error}; create it again: trivisor campaign moved GUEST HOST --out {path}"
        ) from error


def storable(result: RelocationResult) -> RelocationResult:
    """Return the result without points that hold a non-finite number, which JSON cannot hold."""
    return msgspec.structs.replace(result, points=finite_only(result.points))

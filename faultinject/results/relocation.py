"""The measured Inequality (3): two campaigns, f in each guest and F on the host.

``report.relocation`` computes it from the two stores; ``trivisor campaign moved --out`` stores it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from faultinject.estimate.relocation import RelocationPoint, Unlike
from faultinject.results.findings_file import FindingsFileError, finite_only

__all__ = ["FILE", "RelocationResult", "read_relocation", "storable"]

FILE = "moved.json"
"""Name of the stored result, in a directory of its own among the results."""


class RelocationResult(msgspec.Struct, frozen=True, kw_only=True):
    """What two campaigns say of Inequality (3).  ``partial``: missions of their plans are missing;
    ``unlike``: strata in which it is seen to matter what of a guest failed.
    """

    guest: str
    host: str
    confidence: float
    missions: int
    partial: bool
    points: tuple[RelocationPoint, ...]
    unlike: tuple[Unlike, ...]


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

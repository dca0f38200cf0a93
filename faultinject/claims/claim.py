"""A claim, what campaigns say of it, and where these are found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from faultinject.results import guest_capacity, relocation
from faultinject.results.findings_file import FILE, FindingsFile, read_kept
from faultinject.results.guest_capacity import CrowdReport
from faultinject.results.relocation import RelocationResult

__all__ = ["CROWD", "MOVED", "ClaimAnswer", "Claim", "Results", "Says", "read_results"]

Says = Literal["holds", "holds as far as the data reach", "undecided", "does not hold",
               "is a formula", "not measured yet"]  # fmt: skip


class Results(Mapping[str, FindingsFile]):
    """Findings by the campaign's name: that of its directory in docs/results.

    ``moved``: what two of them say of Inequality (3), put together; None where they were not.
    ``crowd``: how many guests fit on a host; None where that was not measured.
    """

    def __init__(
        self,
        kept: Mapping[str, FindingsFile],
        moved: RelocationResult | None = None,
        crowd: CrowdReport | None = None,
    ) -> None:
        self._kept = dict(kept)
        self.moved = moved
        self.crowd = crowd

    def __getitem__(self, name: str) -> FindingsFile:
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)


MOVED = "moved"
"""What a claim needs that rests on two campaigns put together."""
CROWD = "guests"
"""What a claim needs that rests on `trivisor bench guests`."""


class ClaimAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured (or computed), in words, and what follows for the claim."""

    measured: str
    says: Says


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """One claim of the paper.  ``needs``: the campaign that ``ask`` looks at ("": none, it is
    arithmetic).  ``command`` shows it to whoever doubts.
    """

    where: str
    text: str
    command: str
    ask: Callable[[Results], ClaimAnswer]
    needs: str = ""

    def answer(self, results: Results) -> ClaimAnswer:
        """Return what there is to say of it."""
        other = {MOVED: results.moved, CROWD: results.crowd}
        missing = other[self.needs] is None if self.needs in other else self.needs not in results
        if self.needs and missing:
            where = "bench" if self.needs == CROWD else "campaign"
            return ClaimAnswer(measured=f"({where} {self.needs})", says="not measured yet")
        kept = results.get(self.needs)
        try:
            found = self.ask(results)
        except (LookupError, StopIteration, ValueError):
            if kept is None or not kept.partial:
                raise
            found = ClaimAnswer(measured="too few missions yet", says="undecided")
        if kept is not None and kept.partial:
            words = f"{found.measured} (after {kept.used:,} of {kept.planned:,} missions)"
            return msgspec.structs.replace(found, measured=words)
        return found


def read_results(folder: Path) -> Results:
    """Read every campaign's findings in a folder of results, what was put together of two, and how
    many guests fit.

    Raises FindingsFileError.
    """
    kept = {path.parent.name: read_kept(path) for path in sorted(folder.glob(f"*/{FILE}"))}
    moved = next(map(relocation.read_relocation, sorted(folder.glob(f"*/{relocation.FILE}"))), None)
    return Results(kept, moved, guest_capacity.read_guest_capacity(folder / guest_capacity.FILE))

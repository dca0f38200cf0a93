"""A claim, what campaigns say of it, and where these are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from faultinject.campaign.report.kept import FILE, Kept, read_kept

__all__ = ["Answer", "Claim", "Results", "Says", "read_results"]

Says = Literal["holds", "holds as far as the data reach", "undecided", "does not hold",
               "is a formula", "not measured yet"]  # fmt: skip

Results = Mapping[str, Kept]
"""Findings by the campaign's name: that of its directory in docs/results."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
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
    ask: Callable[[Results], Answer]
    needs: str = ""

    def answer(self, results: Results) -> Answer:
        """Return what there is to say of it."""
        if self.needs and self.needs not in results:
            return Answer(measured=f"(campaign {self.needs})", says="not measured yet")
        found = self.ask(results)
        if self.needs and results[self.needs].partial:
            kept = results[self.needs]
            words = f"{found.measured} (after {kept.used:,} of {kept.planned:,} missions)"
            return msgspec.structs.replace(found, measured=words)
        return found


def read_results(folder: Path) -> dict[str, Kept]:
    """Read every campaign's findings in a folder of results.  Raises KeptError."""
    return {path.parent.name: read_kept(path) for path in sorted(folder.glob(f"*/{FILE}"))}

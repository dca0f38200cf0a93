"""Posts a running campaign's figures to a node, whose dashboard shows them.

A campaign never fails because of it.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from deploy.commands.control_client import ask
from deploy.commands.options import layout_of
from deploy.dashboard.campaigns import CampaignFigures
from deploy.errors import DeployError
from faultinject.campaign.run.interim import InterimResults
from voter.commands.terminal import CommandError

__all__ = ["DashboardPoster"]

POST_TIMEOUT = 1.0
"""Seconds for the supervisor's answer."""
RETRY_INTERVAL = 30.0
"""Seconds after a failed post in which none is tried: it must not hold up the campaign."""


class DashboardPoster:
    """Posts a campaign's figures to the dashboard of a node.

    ``title``: the campaign's; ``results``: its directory.  ``directory``: the node's; None: the
    default node, if it runs and has a dashboard.
    """

    def __init__(self, title: str, results: Path, directory: Path | None) -> None:
        self._layout = layout_of(directory)
        self._asked_for = directory is not None
        self._next_try = 0.0
        self._title = title[:200]
        self._directory = str(results.absolute())[:200]

    def begin(self) -> None:
        """Check that a node that was named has a dashboard.  Raises NotUp, CommandError."""
        if self._asked_for:
            ask(self._layout, "POST", "/dashboard")

    def post(
        self,
        found: InterimResults,
        *,
        state: str,
        done: int,
        total: int,
        rate: float = 0.0,
        goal: int = 0,
    ) -> None:
        """Post what is known now; without a dashboard, do nothing.  Rates are a second."""
        if time.monotonic() < self._next_try:
            return
        cells, figure = found.cells, found.figure
        figures = CampaignFigures(
            title=self._title, directory=self._directory, state=state[:200], done=done, total=total,
            excluded=sum(cell.excluded for cell in cells),
            wrong=sum(cell.wrong for cell in cells if cell.voted),
            rate=rate or None, left=max(0, goal - done) / rate if rate > 0 else None,
            texts=tuple(text[:200] for text in found.estimates[:20]), x_label=figure.x_label,
            y_label=figure.y_label, points=figure.points[:100], curves=figure.curves,
        )  # fmt: skip
        body = msgspec.to_builtins(figures)
        try:
            ask(self._layout, "POST", "/campaign", body, timeout=POST_TIMEOUT, patience=0)
        except (CommandError, DeployError, OSError):
            # Nobody watches: the results are in the campaign's directory all the same.
            self._next_try = time.monotonic() + RETRY_INTERVAL

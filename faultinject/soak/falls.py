"""Replicas that left the vote although no fault had hit them: what a busy host, or a bug, does."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime

from faultinject.soak.plan import GUESTS
from faultinject.soak.record import InjectedFault, UnexplainedFailure

__all__ = ["find_falls"]

SLACK = 1.0
"""Seconds around a fault's time in which a fall is its own."""


def find_falls(
    log: Iterable[str], faults: Iterable[InjectedFault], *, began: float, ended: float
) -> list[UnexplainedFailure]:
    """Return the falls that no fault explains, from the voter's log.

    ``began`` is when the load began, ``ended`` when all was over, in seconds since 1970.
    """
    spans = _spans(faults)
    found = []
    for line in log:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a traceback, say
        if not isinstance(event, dict) or event.get("event") != "replica":
            continue
        if event["before"] != "active" or event["after"] == "active":
            continue
        wall = datetime.fromisoformat(event["time"]).timestamp()
        at = wall - began
        hit = any(
            since - SLACK <= at <= until + SLACK and event["replica"] in guests
            for since, until, guests in spans
        )
        if not hit and began <= wall <= ended:
            found.append(
                UnexplainedFailure(guest=event["replica"], at=round(at, 3), reason=event["reason"])
            )
    return found


def _spans(faults: Iterable[InjectedFault]) -> list[tuple[float, float, set[str]]]:
    """Return for each episode from when to when it lasted, and which guests it hit."""
    spans: list[tuple[float, float, set[str]]] = []
    since: float | None = None
    guests: set[str] = set()
    for fault in faults:
        since = fault.at if since is None else since
        guests |= {fault.target} & set(GUESTS)
        if fault.whole_after is not None:
            spans.append((since, fault.at + fault.whole_after, guests))
            since, guests = None, set()
    if since is not None:
        spans.append((since, float("inf"), guests))
    return spans

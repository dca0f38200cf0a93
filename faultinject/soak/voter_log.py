"""The voter's log: read as it grows, and what it shows about corrupted and failed replicas."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from faultinject.soak.record import InjectedFault, UnexplainedFailure

__all__ = ["Detector", "VoterEvent", "VoterLog", "classify", "unexplained_failures"]

SLACK = 1.0
"""Seconds around an episode in which its fault explains a failure."""


class Detector(StrEnum):
    """What detected a corrupted state, or removed it undetected."""

    DISSENT = "dissent"
    """A reply differed from the voted one."""
    DIGEST = "digest"
    """The digest at a marker differed from the voted one."""
    FETCH = "fetch"
    """The state that the guest gave as a checkpoint did not hash to the voted digest."""
    RESTORE = "restore"
    """The state after a restore did not hash to the checkpoint's digest."""
    CHECKSUM = "checksum"
    """A frame from the guest was damaged: the flip changed a reply on its way."""
    UNCLEAR = "dissent or digest"
    """The voter died before it released the reply that would identify the place."""
    REPLACED = "replaced unnoticed"
    """The guest left the vote for another reason, and got a new state."""
    NOTHING = "nothing"
    """Nothing detected it in time."""


class VoterEvent(NamedTuple):
    """One line of the voter's log; ``at`` in seconds since 1970."""

    at: float
    event: str
    fields: dict[str, Any]

    def __str__(self) -> str:
        fields = self.fields
        if self.event != "replica":
            return f"{self.event} at place {fields.get('seq')}"
        change = f"{fields['replica']} {fields['before']} -> {fields['after']}"
        return f"{change} ({fields['reason']}, place {fields['seq']})"


class VoterLog:
    """A reader of a voter's log as it grows.  A log that was truncated is read from its start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._rest = b""

    def read(self) -> list[VoterEvent]:
        """Return the events since the last call; lines that are no events are skipped."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._at:
                    self._at, self._rest = 0, b""
                file.seek(self._at)
                data = file.read()
        except FileNotFoundError:
            return []
        self._at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [event for line in lines if (event := _parse(line)) is not None]


def _parse(line: bytes) -> VoterEvent | None:
    try:
        fields = json.loads(line)
    except ValueError:
        return None  # a line of a traceback, for instance
    if not isinstance(fields, dict) or not {"time", "event"} <= fields.keys():
        return None
    at = datetime.fromisoformat(fields["time"]).timestamp()
    return VoterEvent(at, str(fields["event"]), fields)


def classify(
    event: VoterEvent, guest: str, *, requests: Container[int], unread: bool
) -> Detector | None:
    """Return what detected the corrupted state of ``guest`` by this event; None: it did not.

    ``requests``: the places of requests whose replies were released.  ``unread``: no client has
    requested the corrupted value yet, so that no reply can differ.
    """
    fields = event.fields
    if event.event != "replica" or fields["replica"] != guest:
        return None
    reason = str(fields["reason"])
    if reason in ("dissent", "no majority: replicas disagree"):
        if fields["seq"] in requests:
            return Detector.DISSENT
        return Detector.DIGEST if unread else Detector.UNCLEAR
    if reason.startswith("the state it sent does not hash"):
        return Detector.FETCH
    if reason.startswith("its restored state is not the checkpoint"):
        return Detector.RESTORE
    if reason == "sends garbage":
        return Detector.CHECKSUM
    # A guest that leaves the vote or gets a checkpoint loses its state without an expulsion.
    left = fields["before"] == "active" and fields["after"] in ("absent", "expelled")
    return Detector.REPLACED if left or fields["after"] == "restoring" else None


def unexplained_failures(
    events: Iterable[VoterEvent], faults: Iterable[InjectedFault], *, began: float, ended: float
) -> list[UnexplainedFailure]:
    """Return the replicas that left the vote although no fault had hit them.

    A busy host or a bug can cause that.  ``began`` is when the load began and ``ended`` when the
    run was over, in seconds since 1970.
    """
    spans = _spans(faults)
    found = []
    for event in events:
        fields = event.fields
        if event.event != "replica" or not began <= event.at <= ended:
            continue
        if fields["before"] != "active" or fields["after"] == "active":
            continue
        at, guest = event.at - began, fields["replica"]
        if not any(
            since - SLACK <= at <= until + SLACK and guest in guests
            for since, until, guests in spans
        ):
            found.append(UnexplainedFailure(guest=guest, at=round(at, 3), reason=fields["reason"]))
    return found


def _spans(faults: Iterable[InjectedFault]) -> list[tuple[float, float, set[str]]]:
    """Return the beginning and end of each episode, and the guests that it hit."""
    spans: list[tuple[float, float, set[str]]] = []
    since: float | None = None
    guests: set[str] = set()
    for fault in faults:
        since = fault.at if since is None else since
        guests |= {fault.target} - {"voter", "supervisor"}
        if fault.recovered_after is not None:
            spans.append((since, fault.at + fault.recovered_after, guests))
            since, guests = None, set()
    if since is not None:
        spans.append((since, float("inf"), guests))
    return spans

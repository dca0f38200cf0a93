"""What noticed a corrupted state: read from the voter's log, line by line as it grows."""

from __future__ import annotations

import json
from collections.abc import Container
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Detector", "VoterEvent", "VoterLog", "classify"]


class Detector(StrEnum):
    """What noticed a corrupted state, or removed it unnoticed."""

    DISSENT = "dissent"
    """A reply differed from the voted one."""
    DIGEST = "digest"
    """The digest at a marker differed from the voted one."""
    FETCH = "fetch"
    """The state that the guest gave as a checkpoint did not hash to the voted digest."""
    RESTORE = "restore"
    """The state after a restore did not hash to the checkpoint's digest."""
    CHECKSUM = "checksum"
    """A frame from the guest was damaged: the flip hit a reply on its way."""
    UNCLEAR = "dissent or digest"
    """The voter died before it released the reply that would name the place."""
    REPLACED = "replaced unnoticed"
    """The guest left the vote for another reason, and got a new state."""
    NOTHING = "nothing"
    """Nothing noticed it in time."""


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
    """Reads a voter's log as it grows.  A log that was cut back is read from its new start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._rest = b""

    def read(self) -> list[VoterEvent]:
        """Return the events since the last call; lines that are no events are left out."""
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
    """Return what noticed the corrupted state of ``guest`` by this event; None: it did not.

    ``requests``: the places of requests whose replies were released.  ``unread``: no client has
    asked for the corrupted value yet, so that no reply can differ.
    """
    fields = event.fields
    if event.event != "replica" or fields["replica"] != guest:
        return None
    reason = str(fields["reason"])
    if reason in ("dissent", "no majority: replicas disagree"):
        if fields["seq"] in requests:
            return Detector.DISSENT
        return Detector.DIGEST if unread else Detector.UNCLEAR
    if reason.startswith("the state it gave does not hash"):
        return Detector.FETCH
    if reason.startswith("its state is not the checkpoint"):
        return Detector.RESTORE
    if reason == "sends garbage":
        return Detector.CHECKSUM
    # A guest that gets a checkpoint, or that had to leave, loses its state without a conviction.
    left = fields["before"] == "active" and fields["after"] in ("absent", "expelled")
    return Detector.REPLACED if left or fields["after"] == "restoring" else None

"""How long missions took on this host: kept in the cache for estimates of later plans."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import structlog

from deploy.node.records import cache_directory
from faultinject.campaign.planning.durations import MissionDurations

__all__ = ["keep_durations", "known_durations", "usual_durations"]

ENOUGH = 50
"""Missions from which the mean duration is kept for estimates; fewer are not kept."""
USUAL = Path(__file__).with_name("usual-durations.json")

_log = structlog.get_logger(__name__)


def keep_durations(durations: MissionDurations | None) -> None:
    """Keep how long missions took on this host, for estimates of later plans."""
    if durations is None or durations.missions < ENOUGH:
        return
    durations = (known_durations() or MissionDurations()).updated(durations)
    path = _path()
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(msgspec.json.encode(durations))
        new.replace(path)
    except OSError as error:
        _log.warning("mission durations were not saved", error=str(error), error_code="TV0536")


def known_durations() -> MissionDurations | None:
    """Return how long missions took on this host; None if that is not known."""
    try:
        return msgspec.json.decode(_path().read_bytes(), type=MissionDurations)
    except (OSError, msgspec.DecodeError):
        return None  # none there, or written by another version: the next run replaces it


def usual_durations() -> MissionDurations:
    """Return how long missions took on two cores without KVM, in the campaigns of docs/results."""
    return msgspec.json.decode(USUAL.read_bytes(), type=MissionDurations)


def _path() -> Path:
    return cache_directory() / "mission-times.json"

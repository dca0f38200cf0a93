"""What a runner and a worker say to each other: one JSON object a line, each way.  Pure data.

Runner to worker: one ``Setup``, then a ``Task`` for each mission; the end of the stream means: end.
Worker to runner: ``Reply`` while something takes long, ``StationOpened`` once, then for each
task ``TaskDone``,
or ``TaskFailed`` and the worker's end.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from faultinject.campaign.records import MissionPlan, MissionRow, StationFacts, StationSpec

__all__ = [
    "STATION",
    "TaskFailed",
    "Broken",
    "TaskDone",
    "StationOpened",
    "Setup",
    "Task",
    "Reply",
    "Worker",
    "decode_said",
    "encode",
]

STATION = "faultinject.campaign.mission.station:Station"
"""What a worker opens unless told otherwise: a module, and a class in it with ``open``."""

Broken = Literal["refused", "lost", "full"]
"""How a worker broke.  ``refused``: no station could be opened.  ``lost``: the station that it had
cannot be used any more.  ``full``: a disk is full."""


class _Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Worker(_Line, frozen=True, kw_only=True):
    """What a worker is to be.  ``station`` is an import path (``STATION``), ``spec`` what is opened
    by it.
    """

    station: str = STATION
    spec: StationSpec


class Setup(_Line, frozen=True, kw_only=True):
    """The first line to a worker.  ``directory``: its station's, which is there, and short."""

    name: str
    directory: str
    worker: Worker


class Task(_Line, frozen=True, kw_only=True):
    """A mission to run.  ``attempt``: 1, and more if workers were lost with it before."""

    plan: MissionPlan
    attempt: int = 1


class Reply(_Line, frozen=True, kw_only=True, tag=True):
    """A step of what takes long, in words."""

    text: str


class StationOpened(_Line, frozen=True, kw_only=True, tag=True):
    """The station is there."""

    facts: StationFacts


class TaskDone(_Line, frozen=True, kw_only=True, tag=True):
    """A mission was run."""

    row: MissionRow


class TaskFailed(_Line, frozen=True, kw_only=True, tag=True):
    """The worker ends.  ``kind``: an error's class, for the log."""

    how: Broken
    kind: str
    problem: str
    remedy: str = ""


_said = msgspec.json.Decoder(Reply | StationOpened | TaskDone | TaskFailed)


def encode(line: msgspec.Struct) -> bytes:
    """Return a line with its end."""
    return msgspec.json.encode(line) + b"\n"


def decode_said(line: bytes) -> Reply | StationOpened | TaskDone | TaskFailed:
    """Return what a worker said.  Raises msgspec.DecodeError."""
    said: Reply | StationOpened | TaskDone | TaskFailed = _said.decode(line)
    return said

"""The messages between a runner and a worker: one JSON object a line, each way.  Pure data.

Runner to worker: one ``Setup``, then a ``Task`` for each mission.  The end of the stream ends the
worker.  Worker to runner: ``ProgressMessage`` during long steps, ``NodeOpened`` once, then
``TaskDone`` for each task, or ``WorkerFailed`` and the worker's end.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from faultinject.campaign.records import MissionPlan, MissionRow, NodeSpec
from faultinject.results.outcome import NodeFacts

__all__ = [
    "WORKER_MODULE",
    "WorkerFailure",
    "ProgressMessage",
    "Setup",
    "NodeOpened",
    "Task",
    "TaskDone",
    "Worker",
    "WorkerFailed",
    "decode",
    "encode",
]

WORKER_MODULE = "faultinject.campaign.workers"
"""The module that a worker process runs (``python -m``), except in tests."""

WorkerFailure = Literal["refused", "lost", "full", "cluster"]
"""Why a worker failed.  ``refused``: no node could be opened.  ``lost``: the node cannot be
used any more.  ``full``: a disk is full.  ``cluster``: the scheduler or all workers are lost."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Worker(_Message, frozen=True, kw_only=True):
    """The program of a worker (``module``), and the node that it opens (``spec``)."""

    module: str = WORKER_MODULE
    spec: NodeSpec


class Setup(_Message, frozen=True, kw_only=True):
    """The first message to a worker.

    ``directory``: for its node.  It exists, and its path is short.
    """

    name: str
    directory: str
    spec: NodeSpec


class Task(_Message, frozen=True, kw_only=True):
    """A mission to run.  ``attempt``: from 1; higher if workers were lost with it before."""

    plan: MissionPlan
    attempt: int = 1


class ProgressMessage(_Message, frozen=True, kw_only=True, tag=True):
    """A step of a long operation."""

    text: str


class NodeOpened(_Message, frozen=True, kw_only=True, tag=True):
    """The node is open."""

    facts: NodeFacts


class TaskDone(_Message, frozen=True, kw_only=True, tag=True):
    """A mission has run."""

    row: MissionRow


class WorkerFailed(_Message, frozen=True, kw_only=True, tag=True):
    """The worker ends.  ``kind``: class of the error, for the log."""

    how: WorkerFailure
    kind: str
    problem: str
    remedy: str = ""
    error_code: str = ""


_Answer = ProgressMessage | NodeOpened | TaskDone | WorkerFailed
_answers = msgspec.json.Decoder(_Answer)


def encode(message: msgspec.Struct) -> bytes:
    """Return a message as a line."""
    return msgspec.json.encode(message) + b"\n"


def decode(line: bytes) -> _Answer:
    """Return a worker's message.  Raises msgspec.DecodeError."""
    answer: _Answer = _answers.decode(line)
    return answer

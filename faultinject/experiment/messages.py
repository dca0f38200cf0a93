"""The lines between the process that runs an experiment and its workers (JSON)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from faultinject.experiment.design import Outcome

__all__ = ["Answer", "Failed", "Opened", "Ran", "Step", "decode"]


class Step(msgspec.Struct, frozen=True, tag=True):
    """Progress of the rig's start."""

    text: str


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The rig is ready; its facts."""

    facts: Mapping[str, str]


class Ran(msgspec.Struct, frozen=True, tag=True):
    """A trial has run, in ``seconds``."""

    index: int
    seconds: float
    outcome: Outcome


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The rig could not be opened, or cannot be used any more; the worker ends."""

    problem: str
    remedy: str = ""
    error_code: str = ""


Answer = Step | Opened | Ran | Failed
decode = msgspec.json.Decoder(Answer).decode

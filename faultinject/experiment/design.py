"""What an experiment is: its arms, the plan of its trials, and the rig that runs one trial.

A trial is one mission from a clean start.  Every arm counts one event, and may predict how often
the event occurs.  The plan follows from the experiment and a seed alone.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from guests.errors import CodedError

__all__ = [
    "Arm", "Experiment", "ExperimentError", "OpenRig", "Outcome", "Parameter", "Rig", "Trial",
    "load_experiment", "plan_trials",
]  # fmt: skip

Parameter = str | float | int | bool


class ExperimentError(CodedError):
    """An experiment cannot be run or read; the message says why and what to do."""

    error_code = "TV0545"


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """One setting of an experiment.

    ``event``: what is counted in a trial, in words ("the mission failed").  ``predicted``: the
    probability of the event, in [0, 1]; None: only measured.  ``source``: where the prediction
    comes from, an equation or the injector.  ``margin``: the largest difference from the
    prediction that still counts as agreement, in (0, 1).
    """

    name: str
    label: str
    trials: int
    event: str
    parameters: Mapping[str, Parameter] = {}
    predicted: float | None = None
    basis: Literal["computed", "by construction"] = "computed"
    source: str = ""
    margin: float = 0.1


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One planned trial.  ``number`` counts within its arm from 0; ``seed`` has 64 bits."""

    index: int
    arm: str
    number: int
    seed: int
    parameters: Mapping[str, Parameter] = {}


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a trial observed.

    ``event``: whether the arm's event occurred.  ``values``: quantities by name, each with its unit
    in the name ("stop_s").  ``detail``: what helps to understand a single trial.  ``excluded``: why
    this was no trial (a fault that was not applied); "" if it was one.
    """

    event: bool = False
    values: dict[str, float] = {}
    detail: dict[str, Any] = {}
    excluded: str = ""


class Rig(Protocol):
    """What runs trials, one at a time, each from a clean start."""

    @property
    def facts(self) -> Mapping[str, str]:
        """Facts of what is real here: ``accel`` ("tcg", "kvm", or "exec" for the stand-in), ..."""

    async def run(self, trial: Trial) -> Outcome:
        """Run one trial.  Raises an error if the rig cannot be used any more."""


OpenRig = Callable[[Path, Callable[[str], None]], AbstractAsyncContextManager[Rig]]
"""Opens a rig in a directory of its own with a short path; the second argument takes progress."""


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """An experiment: ``about`` says what is measured, in a few sentences.

    ``paper``: the sentence or section of the paper that it tests.  ``values``: quantities of an
    outcome to report, with what each is.
    """

    name: str
    title: str
    about: str
    paper: str
    arms: tuple[Arm, ...]
    open_rig: OpenRig
    values: Mapping[str, str] = {}

    def find(self, name: str) -> Arm:
        """Return an arm by name.  Raises ExperimentError."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        names = ", ".join(arm.name for arm in self.arms)
        raise ExperimentError(
            f"experiment {self.name} has no arm {name!r}: there are {names}",
            remedy="give one of these",
            error_code="TV0546",
        )


def load_experiment(module: str) -> Experiment:
    """Return the ``EXPERIMENT`` of a module."""
    found = import_module(module).EXPERIMENT
    assert isinstance(found, Experiment)
    return found


def plan_trials(
    experiment: Experiment, seed: int, *, share: float = 1.0, arms: tuple[str, ...] = ()
) -> list[Trial]:
    """Return the trials in their random order.

    ``share``: the part of each arm's trials to plan, in (0, 1], at least one.  ``arms``: only
    these; all if empty.  A trial keeps its seed whatever else is planned.  Raises
    ExperimentError for an unknown arm.
    """
    wanted = [experiment.find(name) for name in arms] or list(experiment.arms)
    trials = [
        (arm, number, _seed(experiment.name, seed, arm.name, number))
        for arm in wanted
        for number in range(math.ceil(arm.trials * share))
    ]
    random.Random(f"{experiment.name} {seed}").shuffle(trials)
    return [
        Trial(index=index, arm=arm.name, number=number, seed=own, parameters=arm.parameters)
        for index, (arm, number, own) in enumerate(trials)
    ]


def _seed(*parts: object) -> int:
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())

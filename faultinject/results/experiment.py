"""The result of an experiment as data, and its file, ``experiment.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from faultinject.results.findings import FindingsFileError, Proportion

__all__ = [
    "EXPERIMENT_FILE",
    "ArmResult",
    "ExperimentResult",
    "Fitness",
    "Quantity",
    "read_experiment",
]

EXPERIMENT_FILE = "experiment.json"

Fitness = Literal["agrees", "departs", "undecided", "measured"]
"""``agrees``: the whole interval is within the margin of the prediction.  ``departs``: the interval
excludes the prediction.  ``measured``: nothing was predicted."""


class _Result(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Quantity(_Result, frozen=True, kw_only=True):
    """A quantity over the trials of an arm that observed it; the unit is in its name."""

    trials: int
    total: float
    mean: float
    median: float
    largest: float


class ArmResult(_Result, frozen=True, kw_only=True):
    """One arm: how often its event occurred.

    ``observed``: with its Clopper-Pearson interval, simultaneous over the arms (Bonferroni).
    ``excluded``: trials that were none.  ``basis``: how the prediction came about.
    """

    name: str
    label: str
    event: str
    planned: int
    excluded: int
    observed: Proportion
    predicted: float | None
    basis: Literal["computed", "by construction"]
    source: str
    margin: float
    fitness: Fitness
    quantities: dict[str, Quantity] = {}


class ExperimentResult(_Result, frozen=True, kw_only=True):
    """An experiment: ``done`` of ``planned`` trials, and all arms.

    ``joint_p``: of the likelihood-ratio test that all arms with a prediction between 0 and 1 occur
    as predicted; None if there is none.  ``accel``: of the guests; "exec" is the stand-in, where
    the agents are processes of the host and not virtual machines.
    """

    name: str
    title: str
    about: str
    paper: str
    seed: int
    share: float
    planned: int
    done: int
    excluded: int
    confidence: float
    accel: str
    seconds: float
    version: str
    arms: tuple[ArmResult, ...]
    joint_p: float | None = None
    quantities: dict[str, str] = {}  # what each quantity is

    @property
    def partial(self) -> bool:
        """Whether trials of the plan are missing."""
        return self.done < self.planned

    def arm(self, name: str) -> ArmResult:
        """Return an arm by name.  Raises KeyError."""
        return {arm.name: arm for arm in self.arms}[name]


def read_experiment(path: Path) -> ExperimentResult:
    """Read an ``experiment.json``.  Raises FindingsFileError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ExperimentResult)
    except (OSError, msgspec.MsgspecError) as error:
        raise FindingsFileError(
            f"{path}: {error}; create it again: trivisor experiment report {path.parent}"
        ) from error

"""An experiment without guests, whose outcomes follow from the trials' seeds.

``behave`` has the next rigs misbehave; they read it from the file $FAKE_EXPERIMENT.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from faultinject.experiment.design import Arm, Experiment, Outcome, Rig, Trial

MODULE = "tests.faultinject.experiment.fake_experiment"


def behave(path: Path, **behaviour: object) -> None:
    """Write how rigs misbehave: ``die``: the worker dies at its trial with this number, so many
    times; ``refuse``: no rig can be opened; ``hang``: trials never end.
    """
    path.write_text(json.dumps(behaviour))


class _Rig:
    def __init__(self, behaviour: dict[str, int], home: Path) -> None:
        self._behaviour = behaviour
        self._home = home

    @property
    def facts(self) -> Mapping[str, str]:
        return {"accel": "none"}

    async def run(self, trial: Trial) -> Outcome:
        deaths = self._home.with_suffix(".deaths")
        died = len(deaths.read_text()) if deaths.exists() else 0
        if trial.number == self._behaviour.get("die") and died < self._behaviour["times"]:
            deaths.write_text("x" * (died + 1))
            os._exit(9)
        if self._behaviour.get("hang"):
            import asyncio

            await asyncio.Event().wait()
        share = float(trial.parameters["share"])
        return Outcome(event=trial.seed / 2**64 < share, values={"size_bytes": float(trial.number)})


@contextlib.asynccontextmanager
async def _open(directory: Path, progress: Callable[[str], None]) -> AsyncIterator[Rig]:
    home = Path(os.environ["FAKE_EXPERIMENT"])
    behaviour = json.loads(home.read_text()) if home.exists() else {}
    progress("opening")
    if behaviour.get("refuse"):
        raise RuntimeError("no rig today")
    yield _Rig(behaviour, home)


EXPERIMENT = Experiment(
    name="fake",
    title="A fake",
    about="Nothing real.",
    paper="nowhere",
    arms=tuple(
        Arm(
            name=name,
            label=name,
            trials=trials,
            event="the seed is small",
            parameters={"share": share},
            predicted=predicted,
            source="the seed",
        )
        for name, trials, share, predicted in (
            ("tenth", 300, 0.1, 0.1),
            ("half", 900, 0.5, 0.5),
            ("wrong", 300, 0.5, 0.2),
            ("few", 5, 0.5, 0.5),
            ("never", 300, 0.0, 0.0),
            ("open", 20, 0.5, None),
        )
    ),
    open_rig=_open,
    values={"size_bytes": "size"},
)

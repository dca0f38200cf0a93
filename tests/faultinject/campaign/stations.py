"""A station in a process of its own: of libvirt's embedded driver a process has one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from faultinject.campaign.records import MissionPlan, MissionRow

__all__ = ["Run", "station"]

Run = Callable[[MissionPlan], MissionRow]
ROOT = Path(__file__).parents[3]
PROCESS = Path(__file__).with_name("station_process.py")


@contextmanager
def station(directory: Path, *words: str) -> Iterator[Run]:
    """Open one in ``directory``; ``words`` are the process's further arguments."""
    directory.mkdir()
    with subprocess.Popen(
        [sys.executable, str(PROCESS), str(directory), *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        said, told = process.stdout, process.stdin

        def one(planned: MissionPlan) -> MissionRow:
            told.write(msgspec.json.encode(planned).decode() + "\n")
            told.flush()
            return msgspec.json.decode(said.readline(), type=MissionRow)

        assert said.readline() == "ready\n"
        yield one
        told.close()
    assert process.returncode == 0
    assert not directory.exists(), "nothing is left of a station"

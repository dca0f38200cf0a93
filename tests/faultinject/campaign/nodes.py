"""A mission runner in a process of its own: a process can hold one embedded libvirt only.

``python -m tests.faultinject.campaign.nodes DIRECTORY [FUNCTION]`` reads plans as lines of JSON,
and writes rows.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import structlog

from faultinject.campaign.assessment import AssessedMission, assess
from faultinject.campaign.planning.plan import Cell
from faultinject.campaign.records import MissionPlan, MissionRow, NodeSpec
from tests.faultinject.campaign.processes import ROOT

__all__ = ["Run", "node"]

Run = Callable[[MissionPlan], AssessedMission]


@contextmanager
def node(directory: Path, *words: str) -> Iterator[Run]:
    """Open a node in ``directory``; ``words`` are the process's further arguments."""
    directory.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", __name__, str(directory), *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        rows, plans = process.stdout, process.stdin

        def run(plan: MissionPlan) -> AssessedMission:
            plans.write(msgspec.json.encode(plan).decode() + "\n")
            plans.flush()
            row = msgspec.json.decode(rows.readline(), type=MissionRow)
            cell = Cell(
                name=plan.stratum, design=plan.design, repair=plan.repair, k=plan.k, missions=1
            )
            return assess(plan, row, (cell,))

        assert rows.readline() == "ready\n"
        yield run
        plans.close()
    assert process.returncode == 0
    assert not directory.exists(), "a node leaves nothing behind"


async def serve(directory: Path, function: str = "none") -> None:
    from faultinject.campaign.mission.mission_runner import MissionRunner

    spec = NodeSpec(deadline=8.0, hang=3.0)
    if function != "none":
        node = {"function": function, "service": "static", "vote": "1/2", "guests": 2}
        spec = msgspec.convert(msgspec.to_builtins(spec) | node, NodeSpec)
    async with MissionRunner.open(spec, directory) as runner:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while line := await asyncio.to_thread(sys.stdin.readline):
            row = await runner.run(msgspec.json.decode(line, type=MissionPlan))
            sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(serve(Path(sys.argv[1]), *sys.argv[2:]))

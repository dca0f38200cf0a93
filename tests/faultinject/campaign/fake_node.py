"""A worker with a fake node: no guests, and outcomes that follow from the plan alone.

It is a program: ``python -m tests.faultinject.campaign.fake_node DIRECTORY``.  Its one "guest"
is a sleeping process that names the node's directory, as a QEMU does.  ``behave`` writes how
nodes misbehave to a file in the directory $FAKE_NODE.  Each mission that begins is a line of
``began`` there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from faultinject.campaign.records import (
    GuestResult,
    InjectionResult,
    MissionPlan,
    MissionRow,
    NodeSpec,
    RequestResult,
    Timings,
)
from faultinject.campaign.workers.worker import main
from faultinject.results.outcome import NodeFacts

__all__ = ["FAKE", "FakeNode", "behave", "began", "fake_guests"]

FAKE = "tests.faultinject.campaign.fake_node"
GUEST = "qemu-system-fake"


def behave(directory: Path, **behaviour: Any) -> None:
    """Write how fake nodes misbehave, by number of the mission.

    ``pause``: seconds a mission takes.  ``die``: the worker kills itself, that many times.
    ``lose``: the node is lost, that many times.  ``hang``: the mission never ends.  ``full``:
    the disk is full.  ``refuse``: no node can be opened, for this reason.  ``stuck``: a node
    never closes.
    """
    (directory / "behaviour.json").write_text(json.dumps(behaviour))


def began(directory: Path) -> list[int]:
    """Return the missions that began, in order."""
    path = directory / "began"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def fake_guests(directory: Path) -> list[int]:
    """Return the pids of living fake guests below a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[0] == GUEST.encode() and any(
                    os.fsencode(directory) in word for word in words
                ):
                    found.append(int(entry.name))
    return found


class FakeNode:
    def __init__(self, directory: Path) -> None:
        self.facts = NodeFacts(
            host="fake", cpus=1, cpu="fake", kernel="0", python="3", qemu="0", libvirt="0",
            accel="none", image="0", build="0", trivisor="0",
        )  # fmt: skip
        self._home = Path(os.environ["FAKE_NODE"])
        path = self._home / "behaviour.json"
        self._behaviour: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self._directory = directory

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, spec: NodeSpec, directory: Path, progress: Callable[[str], None] = lambda _: None
    ) -> AsyncIterator[FakeNode]:
        node = cls(directory)
        if node._behaviour.get("refuse"):
            raise _Refused(node._behaviour["refuse"])
        guest = subprocess.Popen(  # noqa: ASYNC220 - a test double
            [GUEST, "-c", "import time; time.sleep(600)", f"file={directory}/g1.qcow2"],
            executable=sys.executable, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        progress("the fake guest runs")
        try:
            yield node
        finally:
            if node._behaviour.get("stuck"):
                await asyncio.sleep(600)
            guest.kill()
            guest.wait()

    async def run(self, plan: MissionPlan) -> MissionRow:
        start = time.time()
        with (self._home / "began").open("a") as file:
            file.write(f"{plan.index}\n")
        await self._meet(self._behaviour.get("meet", 0))
        await asyncio.sleep(self._behaviour.get("pause", 0.0))
        if self._due("die", plan.index):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._due("lose", plan.index):
            raise RuntimeError("the fake node is gone")
        if self._due("full", plan.index):
            raise OSError(28, "No space left on device")
        if self._due("hang", plan.index):
            await asyncio.sleep(600)
        failed = plan.k >= 2 or (plan.k == 1 and plan.seed % 50 == 0)
        return MissionRow(
            index=plan.index,
            requests=(RequestResult(code="not-executed" if failed else "right"),) * plan.length,
            injections=tuple(
                InjectionResult(
                    target=hit.target, kind=hit.kind, applied=True, used=None, proof="fake",
                    seconds=0.0,
                )
                for hit in plan.injections
            ),
            guests=(GuestResult(name="g1", state="active", reason=""),),
            latencies=(0.001,) * plan.length,
            timings=Timings(reset=0.01, inject=0.01, workload=0.02, settle=0.0),
            began=start,
        )  # fmt: skip

    async def _meet(self, count: int) -> None:
        """Wait until ``count`` workers have begun a mission."""
        (self._home / f"met-{os.getpid()}").touch()
        async with asyncio.timeout(30):
            while len(list(self._home.glob("met-*"))) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    def _due(self, what: str, index: int) -> bool:
        """Return whether this must happen now; count how often it did, across processes."""
        times = self._behaviour.get(what, {}).get(str(index), 0)
        count = self._home / f"{what}-{index}"
        done = int(count.read_text()) if count.exists() else 0
        if done >= times:
            return False
        count.write_text(str(done + 1))
        return True


class _Refused(Exception):
    remedy = "install QEMU"


if __name__ == "__main__":
    sys.exit(main(FakeNode.open))

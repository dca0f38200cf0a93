"""Kills and freezes hit the intended process, and are over when it is replaced or runs again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.host.identity import identify
from deploy.node.records import Layout, RunningRecord
from faultinject.faults.site import NotApplied
from faultinject.soak.plan import PlannedInjection, SoakFaultKind
from faultinject.soak.soak_injector import InjectionProof, SoakInjector
from faultinject.soak.view import GuestView, NodeView, View

KILL = PlannedInjection(number=1, kind=SoakFaultKind.VOTER_KILL, target="voter")


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that does nothing until it is hit."""
    command = [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def injector(scratch: Path, victim: subprocess.Popen[bytes]) -> SoakInjector:
    """Make an injector for a node whose voter is the victim."""
    layout = Layout(scratch)
    identity = identify(victim.pid)
    assert identity is not None
    layout.write(RunningRecord(processes={"voter": identity}))
    return SoakInjector(NodeView(layout))


def view(voter: int | None, guest: int | None = None) -> View:
    guests = {"g1": GuestView(replica="active", reason="", vm="ready", pid=guest)}
    return View(at=0.0, supervisor=1, voter=voter, status="ready", guests=guests)


async def test_kill_ends_the_process_and_is_over_when_another_one_runs(
    injector: SoakInjector, victim: subprocess.Popen[bytes]
) -> None:
    applied = await injector.inject(KILL)
    assert await asyncio.to_thread(victim.wait) == -signal.SIGKILL
    assert f"process {victim.pid} has ended" in applied.proof
    assert not applied.over(KILL.kind, "voter", view(victim.pid))
    assert not applied.over(KILL.kind, "voter", view(None))
    assert applied.over(KILL.kind, "voter", view(victim.pid + 1))


async def test_freeze_stops_the_process_and_is_over_when_it_runs_again(
    injector: SoakInjector, victim: subprocess.Popen[bytes]
) -> None:
    freeze = PlannedInjection(number=1, kind=SoakFaultKind.GUEST_FREEZE, target="voter")
    applied = await injector.inject(freeze)
    assert "is stopped" in applied.proof
    assert not applied.over(freeze.kind, "g1", view(1, victim.pid))
    os.kill(victim.pid, signal.SIGCONT)
    await asyncio.to_thread(os.waitid, os.P_PID, victim.pid, os.WCONTINUED)
    assert applied.over(freeze.kind, "g1", view(1, victim.pid))


async def test_inject_raises_when_the_target_has_no_process(
    injector: SoakInjector, victim: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faultinject.soak.soak_injector.TARGET_PATIENCE", 0.05)
    victim.kill()
    await asyncio.to_thread(victim.wait)
    with pytest.raises(NotApplied, match="voter has no process"):
        await injector.inject(KILL)


async def test_inject_raises_when_the_supervisor_does_not_answer(scratch: Path) -> None:
    hang = PlannedInjection(number=1, kind=SoakFaultKind.HANG, target="g1", seconds=1.0)
    async with NodeView(Layout(scratch)) as node:
        with pytest.raises(NotApplied, match="hang of g1"):
            await SoakInjector(node).inject(hang)


def test_fault_of_the_supervisor_is_over_when_the_view_says_so() -> None:
    proof = InjectionProof(at=0.0, proof="the proxy holds it")
    assert proof.over(SoakFaultKind.GARBAGE, "g1", view(1))

"""Signals hit the very process that is meant, and their proof is what the kernel says."""

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
from faultinject.soak.injection import InjectionNotApplied, InjectionProof, SoakInjector
from faultinject.soak.plan import PlannedInjection, SoakFaultKind
from faultinject.soak.view import GuestView, NodeView, View


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """Give a process that does nothing until it is hit."""
    command = [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def striker(directory: Path, process: subprocess.Popen[bytes]) -> SoakInjector:
    """A striker on a node whose voter is this process."""
    layout = Layout(directory)
    identity = identify(process.pid)
    assert identity is not None
    layout.write(RunningRecord(processes={"voter": identity}))
    return SoakInjector(NodeView(layout))


def view(voter: int | None, guest: int | None = None) -> View:
    guests = {"g1": GuestView(replica="active", reason="", vm="ready", pid=guest)}
    return View(at=0.0, supervisor=1, voter=voter, standing="ready", guests=guests)


async def test_a_kill_is_proved_by_the_process_gone(
    scratch: Path, victim: subprocess.Popen[bytes]
) -> None:
    strike = PlannedInjection(number=1, kind=SoakFaultKind.VOTER_KILL, target="voter")
    applied = await striker(scratch, victim).strike(strike)
    assert await asyncio.to_thread(victim.wait) == -signal.SIGKILL
    assert f"process {victim.pid} got SIGKILL" in applied.proof
    assert not applied.over(strike.kind, "voter", view(victim.pid))
    assert not applied.over(strike.kind, "voter", view(None))
    assert applied.over(strike.kind, "voter", view(victim.pid + 1))


async def test_a_freeze_is_proved_by_the_process_stopped_and_over_once_it_runs(
    scratch: Path, victim: subprocess.Popen[bytes]
) -> None:
    strike = PlannedInjection(number=1, kind=SoakFaultKind.GUEST_FREEZE, target="voter")
    applied = await striker(scratch, victim).strike(strike)
    assert "state is T" in applied.proof
    assert not applied.over(strike.kind, "g1", view(1, victim.pid))
    os.kill(victim.pid, signal.SIGCONT)
    await asyncio.to_thread(os.waitid, os.P_PID, victim.pid, os.WCONTINUED)
    assert applied.over(strike.kind, "g1", view(1, victim.pid))


async def test_what_has_no_process_is_not_applied(
    scratch: Path, victim: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faultinject.soak.injection.TARGET_PATIENCE", 0.05)
    it = striker(scratch, victim)
    victim.kill()
    await asyncio.to_thread(victim.wait)
    with pytest.raises(InjectionNotApplied, match="voter has no process"):
        await it.strike(PlannedInjection(number=1, kind=SoakFaultKind.VOTER_KILL, target="voter"))


async def test_an_injection_without_a_supervisor_is_not_applied(
    scratch: Path, victim: subprocess.Popen[bytes]
) -> None:
    strike = PlannedInjection(number=1, kind=SoakFaultKind.HANG, target="g1", seconds=1.0)
    it = striker(scratch, victim)
    async with it._node:
        with pytest.raises(InjectionNotApplied, match="hang of g1"):
            await it.strike(strike)


def test_an_injected_fault_is_over_when_the_view_says_so() -> None:
    assert InjectionProof(at=0.0, proof="held by the proxy").over(
        SoakFaultKind.GARBAGE, "g1", view(1)
    )

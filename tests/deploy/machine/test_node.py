"""Whole nodes: adopted after their owner was killed, ended without a trace, failing loudly.

An embedded libvirt is one a process, and the shared node has this one's: these run in their own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
import pytest

from deploy.host.priority import LAST
from deploy.host.process import find_qemu
from deploy.machine.spec import NodeSpec
from guests.image import COMMAND_LINE, Image
from tests.deploy.conftest import may_raise_priority, plan
from tests.project.tree import ROOT

pytestmark = pytest.mark.vm


@contextmanager
def owner(spec: NodeSpec) -> Iterator[subprocess.Popen[str]]:
    """Run a process that brings the node up; it is killed at the end if it still runs."""
    file = Path(spec.directory).with_suffix(".spec")
    capabilities = Path(spec.directory).with_suffix(".capabilities")
    file.write_bytes(msgspec.json.encode(spec))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.deploy.owner", str(file), str(capabilities)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with process:
        yield process
        process.kill()


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return what the owner says once the node is up: by guest, its pid and how it came."""
    line = line_of(process.stdout)
    if not line:
        pytest.fail(f"the owner ended: {line_of(process.stderr, whole=True)[-3000:]}")
    return dict(msgspec.json.decode(line))


def line_of(stream: IO[str] | None, *, whole: bool = False) -> str:
    assert stream is not None
    return stream.read() if whole else stream.readline()


def say(process: subprocess.Popen[str], word: str) -> None:
    """Have the owner end, and wait until it has."""
    _, said = process.communicate(word + "\n", timeout=60)
    assert process.returncode == 0, said[-3000:]


def running(spec: NodeSpec) -> dict[str, int]:
    found = {guest.name: find_qemu(guest.uuid, naming=guest.disk) for guest in spec.guests}
    return {name: pid for name, pid in found.items() if pid is not None}


def test_a_dead_owners_guests_are_adopted_and_down_leaves_nothing(
    own_directory: Path, image: Image
) -> None:
    spec = plan(own_directory, image, guests=2)
    with owner(spec) as first:
        before = told(first)
        pids = {name: guest["pid"] for name, guest in before.items()}
        assert running(spec) == pids
        with owner(spec) as second:
            _, said = second.communicate(timeout=60)
            assert second.returncode != 0
            assert "AlreadyUp" in said
        assert running(spec) == pids
        first.kill()
        first.wait()
    # Nobody owns them now; they run on, also one that yielded just then.
    assert running(spec) == pids
    os.setpriority(os.PRIO_PROCESS, pids["g1"], LAST)
    with owner(spec) as third:
        after = told(third)
        if may_raise_priority():
            assert os.getpriority(os.PRIO_PROCESS, pids["g1"]) == spec.guests[0].nice
        assert {name: guest["pid"] for name, guest in after.items()} == pids
        assert {guest["how"] for guest in after.values()} == {"adopted"}
        say(third, "let go")
    assert running(spec) == pids
    Path(f"/proc/{pids['g1']}").stat()
    subprocess.run(["kill", "-9", str(pids["g1"])], check=True)
    with owner(spec) as fourth:
        again = told(fourth)
        assert (again["g1"]["how"], again["g2"]["how"]) == ("restarted", "adopted")
        assert again["g2"]["pid"] == pids["g2"]
        say(fourth, "down")
    assert running(spec) == {}
    assert list(own_directory.iterdir()) == []


def test_another_node_in_the_same_directory_ends_the_former_ones_leftovers(
    own_directory: Path, image: Image
) -> None:
    former = plan(own_directory, image, guests=1)
    with owner(former) as first:
        told(first)
    assert len(running(former)) == 1
    later = plan(own_directory, image, guests=1)
    with owner(later) as second:
        assert told(second)["g1"]["how"] == "booted"
        assert running(former) == {}
        say(second, "down")
    assert list(own_directory.iterdir()) == []


def test_a_guest_that_never_comes_up_shows_its_console_and_leaves_nothing(
    own_directory: Path, image: Image
) -> None:
    spec = plan(own_directory, image, guests=1, cmdline=f"{COMMAND_LINE} init=/nowhere rdinit=/no")
    spec = msgspec.structs.replace(spec, boot_deadline=25.0)
    with owner(spec) as process:
        _, said = process.communicate(timeout=120)
        assert process.returncode != 0
    assert "guest g1 never became ready: not within 25 s; its console said last:" in said
    assert "Kernel panic" in said
    assert running(spec) == {}
    assert list(own_directory.iterdir()) == []


def test_an_interrupted_start_leaves_nothing(own_directory: Path, image: Image) -> None:
    spec = plan(own_directory, image, guests=2)
    with owner(spec) as process:
        give_up = time.monotonic() + 60
        while not running(spec):  # another process's QEMU: nothing tells of its start
            assert time.monotonic() < give_up
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode != 0
    assert running(spec) == {}
    assert list(own_directory.iterdir()) == []

"""Everything of a node is ended without any record, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from deploy.errors import ForeignState
from deploy.host.spawn import python_environment
from deploy.node.interfaces import NodePort
from deploy.node.orphans import end_orphans
from deploy.node.processes import find_orphans
from deploy.node.records import Layout, NodeRecord
from tests.deploy.supervisor.running import plan

# The last argument is as in the command line of a QEMU.
QEMU = "import sys; disk = open(sys.argv[1]); print('up', flush=True); input()"
Start = Callable[..., subprocess.Popen[bytes]]


def never(layout: Layout, record: NodeRecord) -> NodePort:
    """Make no machines: there is no record of any."""
    return fail()


def fail() -> NoReturn:
    pytest.fail("there are no machines to end")


@pytest.fixture
def start() -> Iterator[Start]:
    """Give a function that starts a process; they end with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(directory: Path, *words: str, name: str = "") -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", *words], env=python_environment(name), cwd=directory,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def start_node(start: Start, layout: Layout) -> list[subprocess.Popen[bytes]]:
    """Start what looks like a voter, a proxy and a guest of a node."""
    disk = layout.disk("g2")
    disk.touch()
    up = "print('up', flush=True); input()"
    return [
        start(layout.directory, up, name="voter"),
        start(layout.directory, up, name="proxy"),
        start(Path("/"), QEMU, str(disk), "-uuid", "uuid-2"),
    ]


def test_processes_without_a_record_are_ended_and_a_copy_is_left(
    start: Start, scratch: Path
) -> None:
    ours, copy = plan(scratch / "node"), scratch / "copy"
    processes = start_node(start, ours)
    shutil.copytree(ours.directory, copy)
    bystanders = start_node(start, Layout(copy))
    assert find_orphans(ours).keys() == {"voter", "proxy", "g2"}
    assert sorted(end_orphans(ours, never, lambda _: None)) == ["g2", "proxy", "voter"]
    assert all(process.wait(10) for process in processes)
    assert [process.poll() for process in bystanders] == [None, None, None]
    assert end_orphans(ours, never, lambda _: None) == []


@pytest.mark.parametrize("change", ["moved", "deleted", "unreadable"])
def test_processes_are_ended_whatever_happened_to_the_directory(
    start: Start, scratch: Path, change: str
) -> None:
    layout = plan(scratch / "node")
    processes = start_node(start, layout)
    if change == "moved":
        layout = Layout(layout.directory.rename(scratch / "moved"))
    elif change == "deleted":
        shutil.rmtree(layout.directory)
    else:
        layout.node.write_text("{")
    try:
        ended = end_orphans(layout, never, lambda _: None)
    except ForeignState:
        assert change == "unreadable"
        assert layout.node.read_text() == "{"
    else:
        assert sorted(ended) == ["g2", "proxy", "voter"]
    assert all(process.wait(10) for process in processes)

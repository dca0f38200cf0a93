"""What a killed command left is found by its directory."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from deploy.host.scratch import end_processes, processes_of


def test_qemu_that_names_the_directory_otherwise_is_found_and_ended(scratch: Path) -> None:
    """Libvirt started it through a link."""
    here, other = scratch / "a,b", scratch / "a"
    for each in (here, other):
        each.mkdir()
    with (
        (here / "qmp.pid").open("wb") as file,
        subprocess.Popen(
            ["qemu-system-test", "600"], executable="/bin/sleep", stdout=file
        ) as process,
    ):
        assert processes_of(other) == []
        deadline = time.monotonic() + 30
        while processes_of(here) != [process.pid] and time.monotonic() < deadline:
            time.sleep(0.01)  # its command line appears a moment after its start
        assert end_processes(here) == [process.pid]

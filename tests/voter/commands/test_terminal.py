"""Messages on a full disk are lost; the process continues, and says how many were lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from voter.commands.terminal import LogStream

FULL = """
import os
from voter.commands.terminal import quiet_logs, warn
import structlog
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
quiet_logs()
structlog.get_logger().error("lost")
warn("lost")
print("alive", flush=True)
"""


def test_messages_to_a_full_disk_end_no_process() -> None:
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, timeout=60)
    assert done.stdout == "alive\n"


def test_lost_lines_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, written, full = LogStream(), bytearray(), True

    def write(fd: int, data: bytes) -> int:
        if full and len(data) > 3:
            raise OSError(28, "No space left on device")
        written.extend(data[:7])  # in pieces, as the kernel may
        return min(7, len(data))

    monkeypatch.setattr(os, "write", write)
    stream.write("one line\n")
    stream.write("another\n")
    full = False
    stream.write("the third\n")
    note, third = written.decode().split("\n")[1:3]
    assert (json.loads(note)["lines"], third) == (2, "the third")

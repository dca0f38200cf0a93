"""What processes use, read from /proc."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from faultinject.bench.usage import Meter, cpu_seconds, family, resident


def test_family_is_a_process_and_its_descendants() -> None:
    code = "import subprocess, sys; subprocess.run(['cat'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
        deadline = time.monotonic() + 10
        while len(family(child.pid)) < 2 and time.monotonic() < deadline:
            os.sched_yield()
        assert family(child.pid)[0] == child.pid
        assert len(family(child.pid)) == 2
        assert set(family(child.pid)) < set(family(os.getpid()))
        assert child.stdin is not None
        child.stdin.close()
    assert cpu_seconds([child.pid]) == 0


def test_meter_counts_busy_processors() -> None:
    meter = Meter({"nobody": []})
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    shares = meter.shares()
    assert shares["nobody"] == 0
    assert 0 < shares["driver"] <= os.cpu_count() * 1.5  # type: ignore[operator]
    assert resident(os.getpid()) > 1 << 20

"""F as a process: what stands in its way is said in a line, and its parent ends when it is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

__all__: list[str] = []

ROOT = Path(__file__).parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
    )


@pytest.mark.parametrize("more", [(), ("--keep",)])
def test_a_path_that_cannot_be_listened_on_is_named(scratch: Path, more: tuple[str, ...]) -> None:
    (scratch / "key").write_text("00" * 32)
    (scratch / "file").touch()
    start = ("-m", "deploy.authorizer", "--key", str(scratch / "key"), *more, "--listen")
    done = run(*start, str(scratch / "file"))
    assert (done.returncode, done.stderr) == (
        2, f"function: {scratch}/file is there and is not a socket: move it away\n",
    )  # fmt: skip
    assert (scratch / "file").is_file()
    done = run(*start, str(scratch / "none" / "f.sock"))
    assert done.returncode == 2
    assert done.stderr.startswith("function: cannot listen on")


BOTH = """
import os, signal
from deploy.authorizer import keep
wait = os.waitpid
def waitpid(pid, options):  # Ctrl-C: the child has ended of it before the parent hears of it
    found = wait(pid, options)
    os.kill(os.getpid(), signal.SIGINT)
    return found
os.waitpid = waitpid
raise SystemExit(keep(lambda: 0))
"""
EARLY = """
import os, signal, time
from deploy.authorizer import keep
real = os.fork
def fork():  # the word of a parent that was told while it started the child
    child = real()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return child
os.fork = fork
raise SystemExit(keep(lambda: time.sleep(60) or 0))
"""


@pytest.mark.parametrize("script", [BOTH, EARLY], ids=["after its child", "before it listens"])
def test_a_parent_that_is_told_ends(script: str) -> None:
    done = run("-c", script)
    assert (done.returncode, done.stderr) == (0, "")

"""F as a process, by its command, and before a voter that is a process."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.host.spawn import python_command, python_environment
from tests.voter.node import EXEC_KV
from voter.client import Client

__all__: list[str] = []

pytestmark = pytest.mark.usefixtures("end_with_tests")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=python_environment(), capture_output=True, text=True, timeout=50
    )


def trivisor(*words: str) -> subprocess.CompletedProcess[str]:
    return run(*python_command("trivisor", *words))


@contextlib.contextmanager
def running(socket: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until the block ends; it serves at ``socket`` when the block begins."""
    command = python_command("trivisor", *words)
    with subprocess.Popen(command, env=python_environment()) as process:
        try:
            deadline = time.monotonic() + 20
            while not socket.exists():  # no event reports it
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.02)
            yield process
        finally:
            process.terminate()


class Files:
    """The files of a voter with a function, in one directory."""

    def __init__(self, directory: Path) -> None:
        self.key, self.function = directory / "key", directory / "f.sock"
        self.native, self.config = directory / "n.sock", directory / "voter.toml"
        self.key.write_text("ab" * 32)
        self.to = ("--to", f"unix:{self.native}", "--timeout", "10")
        self.serve = ("function", "--key", str(self.key), "--listen", str(self.function))

    def configure(self, vote: str, replicas: int) -> tuple[Path, str, str, str]:
        """Write the voter's configuration; return what runs the voter."""
        links = (f'[[replica]]\nname = "g{n}"\nlink = "{EXEC_KV}"\n' for n in range(replicas))
        self.config.write_text(
            f'vote = "{vote}"\nfunction = "unix:{self.function}"\n'
            f'[listen]\nnative_unix = "{self.native}"\n{"".join(links)}'
        )
        return self.native, "voter", "--config", str(self.config)


def test_voter_with_a_function_rejects_unsigned_requests(scratch: Path) -> None:
    files = Files(scratch)
    signed = ("--key", str(files.key), *files.to)
    with running(*files.configure("2/3", 3)):
        with running(files.function, *files.serve) as function:
            done = trivisor("request", "PUT", "/kv/a", "--data", "blue", *signed)
            assert done.returncode == 0, done.stderr
            assert trivisor("request", "GET", "/kv/a", *signed).stdout == "blue"
            done = trivisor("request", "GET", "/kv/a", "--include", "--fail", *files.to)
            assert done.returncode == 1
            assert done.stderr.startswith("status 401")
            assert '"seq": 0' in done.stderr
            function.send_signal(signal.SIGTERM)
            assert function.wait(10) == 0
        assert not files.function.exists()
        done = trivisor("request", "GET", "/kv/a", "--no-retry", *signed)
        assert done.returncode == 3
        assert "the function F" in done.stderr


SLOW = """
import time
from guests.function import Function
class Slow(Function):
    def admits(self, request):
        time.sleep(0.3)
        return True
"""


BROKEN = """
from guests.function import Function
class Broken(Function):
    def admits(self, request):
        raise ZeroDivisionError("a defect of the function")
"""


def test_function_that_fails_admits_nothing_and_is_logged(
    scratch: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = Files(scratch)
    (scratch / "broken.py").write_text(BROKEN)
    serve = (*files.serve, "--function", str(scratch / "broken.py"))
    with running(*files.configure("1/1", 1)), running(files.function, *serve):
        done = trivisor("request", "GET", "/kv/a", "--no-retry", *files.to)
        assert done.returncode == 3, done.stderr
    assert "TV0227" in capfd.readouterr().err


def test_voter_that_was_stopped_does_not_suspect_its_function(scratch: Path) -> None:
    files = Files(scratch)
    (scratch / "slow.py").write_text(SLOW)
    with (
        running(*files.configure("1/1", 1)) as voter,
        running(files.function, *files.serve, "--function", str(scratch / "slow.py")),
    ):
        assert trivisor("request", "PUT", "/kv/a", "--data", "blue", *files.to).returncode == 0

        async def ask() -> int:
            async with await Client.connect(f"unix:{files.native}", retry=False) as client:
                waits = asyncio.create_task(client.request("GET", "/kv/a"))
                await asyncio.sleep(0.1)
                voter.send_signal(signal.SIGSTOP)
                await asyncio.sleep(1.5)
                voter.send_signal(signal.SIGCONT)
                return (await waits).status

        assert asyncio.run(ask()) == 200


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--listen", "/tmp/" + "x" * 120), "bytes too long"),
        (("--listen", "SOCK", "--function", "hmac"), "no function 'hmac'"),
        (("--listen", "SOCK", "--key", "SHORT"), "2 bytes"),
        (("--listen", "FILE", "--keep"), "is there and is not a socket"),
        (("--listen", "FILE"), "is there and is not a socket"),
        (("--listen", "/nowhere/f.sock"), "there is no directory '/nowhere'"),
    ],
)
def test_function_that_cannot_start_says_why(
    scratch: Path, words: tuple[str, ...], error: str
) -> None:
    (scratch / "key").write_text("ab" * 32)
    (scratch / "short").write_text("abcd")
    (scratch / "file").touch()
    put = {"SHORT": f"{scratch}/short", "SOCK": f"{scratch}/f", "FILE": f"{scratch}/file"}
    given = [put.get(word, word) for word in words]
    done = trivisor("function", "--key", str(scratch / "key"), *given)
    assert done.returncode == 2
    assert error in done.stderr
    assert "Traceback" not in done.stderr
    assert (scratch / "file").is_file()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--function", "guest"), "--function guest --key FILE"),
        (("--key", "/etc/passwd"), "--function guest --key FILE"),
        (("--function", "unix:/f", "--key", "/etc/passwd"), "--function guest --key FILE"),
        (("--function", "guest", "--key", "/nowhere/key"), "does not exist"),
        (("--function", "host"), "unknown place 'host' of a function"),
        (("--function", "unix:/tmp/" + "x" * 120), "bytes too long"),
    ],
)
def test_up_rejects_an_invalid_function(scratch: Path, words: tuple[str, ...], error: str) -> None:
    done = trivisor("up", "--dir", str(scratch / "node"), *words)
    assert done.returncode in (1, 2)
    assert error in done.stderr
    assert not (scratch / "node").exists()


# Ctrl-C: the child has ended of it before the parent receives it.
BOTH = """
import os, signal
from deploy.authorizer import keep
wait = os.waitpid
def waitpid(pid, options):
    found = wait(pid, options)
    os.kill(os.getpid(), signal.SIGINT)
    return found
os.waitpid = waitpid
raise SystemExit(keep(lambda: 0))
"""
# The parent receives its signal while it starts the child.
EARLY = """
import os, signal, time
from deploy.authorizer import keep
real = os.fork
def fork():
    child = real()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return child
os.fork = fork
raise SystemExit(keep(lambda: time.sleep(60) or 0))
"""


@pytest.mark.parametrize("script", [BOTH, EARLY], ids=["after its child", "before it listens"])
def test_keep_ends_after_a_signal(script: str) -> None:
    done = run(sys.executable, "-c", script)
    assert (done.returncode, done.stderr) == (0, "")

"""F by the command, before a voter that is a process: as a user has it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.voter.node import EXEC_KV
from voter.client import Client

__all__: list[str] = []

ROOT = Path(__file__).parents[3]
TRIVISOR = [sys.executable, str(ROOT / "trivisor.py")]


def trivisor(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TRIVISOR, *words], cwd=ROOT, capture_output=True, text=True, timeout=50)


@contextlib.contextmanager
def running(command: list[str], socket: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that serves at ``socket`` (a unix socket; there is no event for its coming)."""
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
        try:
            deadline = time.monotonic() + 20
            while not socket.exists():
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.02)
            yield process
        finally:
            process.terminate()


def test_one_line_in_the_voters_configuration_has_requests_pass_f(scratch: Path) -> None:
    key, f, native = scratch / "key", scratch / "f.sock", scratch / "n.sock"
    key.write_text("ab" * 32)
    toml = scratch / "voter.toml"
    replicas = "".join(f'[[replica]]\nname = "g{n}"\nlink = "{EXEC_KV}"\n' for n in (1, 2, 3))
    toml.write_text(f'function = "unix:{f}"\n[listen]\nnative_unix = "{native}"\n{replicas}')
    voter = [*TRIVISOR, "voter", "--config", str(toml)]
    to = ("--to", f"unix:{native}", "--timeout", "10")
    with running(voter, native):
        with running([*TRIVISOR, "function", "--key", str(key), "--listen", str(f)], f) as function:
            done = trivisor("request", "PUT", "/kv/a", "--data", "blue", "--key", str(key), *to)
            assert done.returncode == 0, done.stderr
            assert trivisor("request", "GET", "/kv/a", "--key", str(key), *to).stdout == "blue"
            done = trivisor("request", "GET", "/kv/a", "--include", "--fail", *to)
            assert done.returncode == 1
            assert done.stderr.startswith("status 401")
            assert '"seq": 0' in done.stderr
            function.send_signal(signal.SIGTERM)
            assert function.wait(10) == 0
        assert not f.exists()
        done = trivisor("request", "GET", "/kv/a", "--no-retry", "--key", str(key), *to)
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


def test_a_voter_that_was_held_up_itself_does_not_blame_f(scratch: Path) -> None:
    key, f, native, toml = (scratch / name for name in ("key", "f.sock", "n.sock", "voter.toml"))
    key.write_text("ab" * 32)
    (scratch / "slow.py").write_text(SLOW)
    link = 'vote = "1/1"\n[[replica]]\nname = "g1"\nlink = "' + EXEC_KV + '"\n'
    toml.write_text(f'function = "unix:{f}"\n{link}[listen]\nnative_unix = "{native}"\n')
    serve = ["function", "--key", str(key), "--listen", str(f), "--function"]
    to = ("--to", f"unix:{native}", "--timeout", "10")
    with (
        running([*TRIVISOR, "voter", "--config", str(toml)], native) as voter,
        running([*TRIVISOR, *serve, str(scratch / "slow.py")], f),
    ):
        assert trivisor("request", "PUT", "/kv/a", "--data", "blue", *to).returncode == 0

        async def ask() -> int:
            async with await Client.connect(f"unix:{native}", retry=False) as client:
                waits = asyncio.create_task(client.request("GET", "/kv/a"))
                await asyncio.sleep(0.1)
                voter.send_signal(signal.SIGSTOP)
                await asyncio.sleep(1.5)
                voter.send_signal(signal.SIGCONT)
                return (await waits).status

        assert asyncio.run(ask()) == 200


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--key", "KEY", "--listen", "/tmp/" + "x" * 120), "bytes too long"),
        (("--key", "KEY", "--listen", "SOCK", "--function", "hmac"), "no function 'hmac'"),
        (("--key", "SHORT", "--listen", "SOCK"), "2 bytes"),
    ],
)
def test_what_cannot_be_is_said(scratch: Path, words: tuple[str, ...], said: str) -> None:
    (scratch / "key").write_text("ab" * 32)
    (scratch / "short").write_text("abcd")
    put = {"KEY": str(scratch / "key"), "SHORT": str(scratch / "short"), "SOCK": f"{scratch}/f"}
    done = trivisor("function", *(put.get(word, word) for word in words))
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--function", "guest"), "--function guest --key FILE"),
        (("--key", "KEY"), "--function guest --key FILE"),
        (("--function", "unix:/f", "--key", "KEY"), "--function guest --key FILE"),
        (("--function", "guest", "--key", "/nowhere/key"), "cannot be read"),
        (("--function", "host"), "unknown place 'host' of a function"),
        (("--function", "unix:/tmp/" + "x" * 120), "bytes too long"),
    ],
)
def test_up_says_where_a_function_may_be(scratch: Path, words: tuple[str, ...], said: str) -> None:
    done = trivisor("up", "--dir", str(scratch / "node"), *words)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert not (scratch / "node").exists()

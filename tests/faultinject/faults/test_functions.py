"""The planted function and its switch, in a guest's RAM (a file here) and in F's process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from faultinject.campaign.mission.host_function import HostFunction
from faultinject.faults import Injection
from faultinject.faults.functions import pages_of_ram
from faultinject.faults.injection import inject
from faultinject.faults.site import NotApplied
from faultinject.history.workload import KEY
from faultinject.services import FRAIL, frail
from guests.function import AUTHENTICATION, load_function, sign
from guests.protocol.function import NO, YES
from guests.protocol.message import Request, encode_request
from guests.protocol.wire import Decoder, FrameKind, encode
from tests.errors import raises
from tests.faultinject.faults.test_injection import FakeSite

__all__: list[str] = []

ROOT = Path(__file__).parents[3]
SIGNED = encode_request("GET", "/a", [sign(KEY, "GET", "/a")])
UNSIGNED = encode_request("GET", "/a")


class FunctionSite(FakeSite):
    """With F on the host."""

    def __init__(self, directory: Path, function: HostFunction | None = None) -> None:
        super().__init__(directory)
        self.function = function

    def function_pid(self) -> int | None:
        return None if self.function is None else self.function.pid


def planned(kind: str, target: str = "g1") -> Injection:
    return Injection(target=target, kind=kind, at=0, seed=1)


def plant(ram: Path, at: int = 5) -> None:
    """Write a switch page among pages that resemble one."""
    page = bytearray(frail.SIZE)
    page[: len(frail.HEAD)] = frail.HEAD
    page[frail.TAIL_AT : frail.TAIL_AT + len(frail.TAIL)] = frail.TAIL
    memory = bytearray(frail.SIZE * 16)
    memory[frail.SIZE + 16 : frail.SIZE + 48] = frail.HEAD  # not at the start of a page
    memory[2 * frail.SIZE : 2 * frail.SIZE + 32] = frail.HEAD  # without the second mark
    memory[at * frail.SIZE : (at + 1) * frail.SIZE] = page
    ram.write_bytes(memory)


async def test_switch_is_set_in_one_guest_only(scratch: Path) -> None:
    site = FunctionSite(scratch)
    for name in site.names:
        plant(site.machine(name).ram_file())
    active = await inject(planned("function-hang", "g2"), site)
    assert "f in g2, at 0x5000: never answers" in active.proof
    switch = {name: site.machine(name).ram[5 * frail.SIZE + frail.MODE] for name in site.names}
    assert switch == {"g1": frail.CORRECT, "g2": frail.HANGS, "g3": frail.CORRECT}
    assert await active.activated() is False
    with site.machine("g2").ram_file().open("r+b") as file:
        file.seek(5 * frail.SIZE + frail.CALLED)
        file.write(b"\x01")
    assert await active.activated() is True
    site.machine("g2").ram_file().unlink()
    assert await active.activated() is None


async def test_fault_is_not_applied_without_a_planted_function(scratch: Path) -> None:
    site = FunctionSite(scratch)
    with raises("TV0506", match="no planted function in the memory of f in g1"):
        await inject(planned("function-crash"), site)
    ram = site.machine("g1").ram_file()
    plant(ram)
    ram.write_bytes(ram.read_bytes() * 2)
    assert len(list(pages_of_ram(ram))) == 2
    with pytest.raises(NotApplied, match="2 planted functions"):
        await inject(planned("function-crash"), site)
    for kind in ("host-function-kill", "host-function-admit"):
        with raises("TV0507", match="no F on the host"):
            await inject(planned(kind, "function"), site)
        with raises("TV0507", match="is for the function, not g1"):
            await inject(planned(kind), site)


def test_search_allocates_no_pages_in_a_sparse_ram(scratch: Path) -> None:
    ram = scratch / "ram"
    with ram.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(40 << 20)
        page = bytearray(frail.SIZE)
        page[: len(frail.HEAD)] = frail.HEAD
        page[frail.TAIL_AT : frail.TAIL_AT + len(frail.TAIL)] = frail.TAIL
        file.write(page)
    before = ram.stat().st_blocks
    assert list(pages_of_ram(ram)) == [40 << 20]
    assert ram.stat().st_blocks == before


def test_planted_function_equals_the_shipped_one_by_default() -> None:
    planted, shipped = load_function(str(FRAIL), KEY), load_function(AUTHENTICATION, KEY)
    for data in (SIGNED, UNSIGNED, encode_request("GET", "/b", [sign(KEY, "GET", "/a")])):
        request = Request.decode(data)
        assert planted.admits(request) == shipped.admits(request)


# A function in a process; the test sets its switch through the process's memory.
CHILD = """
import sys
from pathlib import Path
from faultinject.services import FRAIL
from faultinject.history.workload import KEY
from guests.function import load_function
from guests.protocol.message import Request
f = load_function(str(FRAIL), KEY)
print("up", flush=True)
for line in sys.stdin:
    print(f.admits(Request.decode(bytes.fromhex(line))), flush=True)
"""


@pytest.fixture
def child() -> object:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], cwd=ROOT, text=True, stdin=-1, stdout=-1
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
        process.kill()


class ChildSite(FunctionSite):
    def __init__(self, directory: Path, pid: int) -> None:
        super().__init__(directory)
        self.child = pid

    def function_pid(self) -> int | None:
        return self.child


@pytest.mark.parametrize(
    ("kind", "answer"), [("host-function-admit", "True\n"), ("host-function-refuse", "False\n")]
)
async def test_switch_decides_the_answers_of_a_process(
    scratch: Path, child: subprocess.Popen[str], kind: str, answer: str
) -> None:
    def ask(request: bytes) -> str:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(f"{request.hex()}\n")
        child.stdin.flush()
        return child.stdout.readline()

    assert (ask(SIGNED), ask(UNSIGNED)) == ("True\n", "False\n")
    active = await inject(planned(kind, "function"), ChildSite(scratch, child.pid))
    assert await active.activated() is False
    assert (ask(SIGNED), ask(UNSIGNED)) == (answer, answer)
    assert await active.activated() is True


async def ask(function: HostFunction, request: bytes, seconds: float = 20.0) -> bytes:
    reader, writer = await asyncio.open_unix_connection(function.address.removeprefix("unix:"))
    try:
        writer.write(encode(FrameKind.REQUEST, 0, 1, request))
        async with asyncio.timeout(seconds):
            for frame in Decoder().feed(await reader.read(1000)):
                return frame.payload
        return b""
    finally:
        writer.close()


async def test_host_function_is_broken_and_renewed(scratch: Path) -> None:
    function = HostFunction(scratch / "f")
    site = FunctionSite(scratch, function)
    try:
        await function.renew()
        first = function.pid
        assert (await ask(function, SIGNED), await ask(function, UNSIGNED)) == (YES, NO)
        await function.renew()
        assert function.pid == first, "a correct one stays"
        active = await inject(planned("host-function-admit", "function"), site)
        assert await ask(function, UNSIGNED) == YES
        assert await active.activated() is True
        function.dirty = True
        await function.renew()
        assert await ask(function, UNSIGNED) == NO
        active = await inject(planned("host-function-hang", "function"), site)
        with pytest.raises(TimeoutError):
            await ask(function, SIGNED, 0.5)
        await active.undo()
        assert await ask(function, SIGNED) == YES
        pid = function.pid
        await inject(planned("host-function-kill", "function"), site)
        await wait_for_end(lambda: function.pid)
        await function.renew()
        assert function.pid not in (None, pid)
        assert await ask(function, SIGNED) == YES
    finally:
        await function.end()
    assert function.pid is None


async def wait_for_end(pid: Callable[[], int | None]) -> None:
    async with asyncio.timeout(10):
        while pid() is not None:  # noqa: ASYNC110 - asyncio reaps it asynchronously
            await asyncio.sleep(0.01)


def test_switch_survives_a_restart_of_the_service(scratch: Path) -> None:
    """The agent's processes share the switch's page."""
    key = scratch / "key"
    key.write_text(KEY.hex())
    command = [sys.executable, "-m", "guests.agent", "--stdio", "--service", "static"]
    command += ["--function", str(FRAIL), "--key", str(key)]
    with subprocess.Popen(command, cwd=ROOT, stdin=-1, stdout=-1, stderr=-1) as agent:
        assert agent.stdin is not None and agent.stdout is not None and agent.stderr is not None
        try:
            assert b"ready" in agent.stderr.readline()
            site = ChildSite(scratch, agent.pid)  # the parent's memory, not the incarnation's
            asyncio.run(inject(planned("host-function-admit", "function"), site))
            children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
            for _ in range(2):
                [child] = children
                memory, maps = Path(f"/proc/{child}/mem"), Path(f"/proc/{child}/maps")
                assert switch_of(memory, maps) == frail.ADMITS
                os.kill(int(child), signal.SIGKILL)
                assert b"starting incarnation" in agent.stderr.readline()
                while not (
                    children := Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
                    .read_text()
                    .split()
                ):
                    pass
        finally:
            agent.kill()


def switch_of(memory: Path, maps: Path) -> int:
    with memory.open("rb", buffering=0) as file:
        for line in maps.read_text().splitlines():
            if line.split()[1] == "rw-s":
                file.seek(int(line.partition("-")[0], 16))
                page = file.read(frail.SIZE)
                if page.startswith(frail.HEAD):
                    return page[frail.MODE]
    return -1

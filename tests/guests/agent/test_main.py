"""The agent: the process around an incarnation."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guests.protocol import wire
from guests.protocol.message import Reply, encode_request
from guests.protocol.wire import Decoder, Frame, FrameKind, encode
from guests.service import state_digest
from tests.guests.voter_side import EMPTY, get

ROOT = Path(__file__).resolve().parents[3]


class Process:
    """An agent as a process, its link a socket."""

    def __init__(self, service: str = "kv") -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "guests.agent", "--stdio", "--service", service]
        self.process = subprocess.Popen(
            command,
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        theirs.close()
        self.socket = ours
        self.decoder = Decoder()
        self.frames: list[Frame] = []

    def frame(self, kind: int, timeout: float = 20) -> Frame:
        """Wait for the next frame of this kind; drop those before it."""
        deadline = time.monotonic() + timeout
        while True:
            while self.frames:
                frame = self.frames.pop(0)
                if frame.kind == kind:
                    return frame
            left = deadline - time.monotonic()
            if left < 0 or not select.select([self.socket], [], [], left)[0]:
                raise TimeoutError(f"no frame of kind {kind}")
            data = self.socket.recv(1 << 16)
            if not data:
                raise EOFError("the agent has closed the link")
            self.frames += self.decoder.feed(data)

    def hello(self, epoch: int) -> wire.Welcome:
        self.socket.sendall(encode(FrameKind.HELLO, epoch, 0, wire.PROTOCOL.to_bytes(2) + b"\0"))
        while True:
            frame = self.frame(FrameKind.WELCOME)
            if frame.epoch == epoch:
                return wire.decode_welcome(frame.payload)

    def children(self) -> list[int]:
        path = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        return [int(pid) for pid in Path(path).read_text().split()]

    def order(self, epoch: int, request: bytes, seq: int = 1, prev: bytes = EMPTY) -> None:
        payload = wire.encode_order(1, prev, b"histo%03d" % seq, b"", request)
        self.socket.sendall(encode(FrameKind.ORDER, epoch, seq, payload))

    def end(self) -> tuple[int, str]:
        """Close the link; return the exit status and the console's text."""
        self.socket.close()
        _, console = self.process.communicate(timeout=20)
        return self.process.returncode, console.decode()


@pytest.fixture
def agent() -> Iterator[Process]:
    process = Process()
    yield process
    process.socket.close()
    process.process.kill()
    process.process.communicate()


def wait_for_end(pids: list[int]) -> None:
    """Poll: these are not our children, so their end gives no event."""
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline, f"{pids} did not end"
        time.sleep(0.01)


def test_agent_serves_until_its_link_ends(agent: Process) -> None:
    assert agent.frame(FrameKind.HERE).seq == 1
    assert agent.hello(5).service == "kv"
    agent.order(5, encode_request("PUT", "/kv/a", [], b"1"))
    assert Reply.decode(agent.frame(FrameKind.REPLY).payload).status == 201
    status, console = agent.end()
    assert status == 0
    assert console.splitlines() == ["trivisor: ready service=kv build=-"]


SLOW = """
import time
from pathlib import Path
from guests.service import Reply, Service

class Slow(Service):
    name = "slow"
    def apply(self, request, context):
        return Reply(200, b"%d" % context.seq)
    def snapshot(self):
        time.sleep({seconds})
        while not (go := Path(__file__).with_name("go")).exists():
            time.sleep(0.01)
        for number in range(5):
            yield b"%d" % number * 60000
"""


def slow_agent(scratch: Path, seconds: float) -> Process:
    path = scratch / "slow.py"
    path.write_text(SLOW.format(seconds=seconds))
    (scratch / "go").touch()
    return Process(str(path))


def test_service_continues_while_a_capture_is_sent(tmp_path: Path) -> None:
    agent = slow_agent(tmp_path, 0.0)
    go = tmp_path / "go"
    go.unlink()
    agent.hello(5)
    agent.socket.sendall(encode(FrameKind.MARKER, 5, 1, b"\0"))
    prev = EMPTY
    for seq in range(2, 30):
        agent.order(5, b"GET / HTTP/1.1\r\n\r\n", seq, prev)
        prev = b"histo%03d" % seq
    for awaited, count in (((FrameKind.REPLY,), 28), ((FrameKind.REPLY, FrameKind.DIGEST), 29)):
        while len([f for f in agent.frames if f.kind in awaited]) < count:
            agent.frames += agent.decoder.feed(agent.socket.recv(1 << 16))
        go.touch()
    kinds = [frame.kind for frame in agent.frames]
    assert kinds[-1] == FrameKind.DIGEST, "the replies came first"
    digest = agent.frames[-1].payload
    agent.frames.clear()
    state, last = b"", 0
    while not last:
        agent.socket.sendall(encode(FrameKind.FETCH, 5, 1, len(state).to_bytes(8)))
        frame = agent.frame(FrameKind.STATE)
        state, last = state + frame.payload, frame.flags & wire.FLAG_LAST
    assert state_digest(iter((state,))) == digest
    agent.end()


def test_capture_process_ends_with_the_handshake_and_with_the_service(tmp_path: Path) -> None:
    agent = slow_agent(tmp_path, 1000)
    agent.hello(5)
    agent.socket.sendall(encode(FrameKind.MARKER, 5, 1, b"\0") + encode(FrameKind.PING, 5, 0))
    agent.frame(FrameKind.PONG)
    (service,) = agent.children()
    children = Path(f"/proc/{service}/task/{service}/children")
    (cut,) = children.read_text().split()
    agent.hello(6)
    assert children.read_text().split() == []
    agent.socket.sendall(encode(FrameKind.MARKER, 6, 1, b"\0") + encode(FrameKind.PING, 6, 0))
    agent.frame(FrameKind.PONG)
    (cut,) = children.read_text().split()
    assert agent.end()[0] == 0
    wait_for_end([int(cut)])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_service_is_restarted_when_killed(agent: Process, how: signal.Signals) -> None:
    agent.hello(5)
    agent.order(5, encode_request("PUT", "/kv/a", [], b"1"))
    agent.frame(FrameKind.REPLY)
    (child,) = agent.children()
    os.kill(child, how)
    assert agent.frame(FrameKind.HERE).seq == 2
    welcome = agent.hello(6)
    assert (welcome.incarnation, welcome.fresh, welcome.last_seq) == (2, True, 0)
    agent.order(6, get("a"))
    assert Reply.decode(agent.frame(FrameKind.REPLY).payload).status == 404
    status, console = agent.end()
    assert (status, f"service ended with status {-how}" in console) == (0, True)


DYING = """
import os
from guests.protocol.message import Reply
from guests.service import Service
class Dying(Service):
    name = "dying"
    def apply(self, request, context):
        if request.target == "/exit":
            os._exit(7)
        if request.target == "/leave":
            raise SystemExit(3)
        if request.target == "/print":
            print("this must not get into the link", flush=True)
        if request.target == "/loop":
            while True: pass
        return Reply(200, b"ok")
"""


@pytest.fixture
def dying(tmp_path: Path) -> Iterator[Process]:
    (tmp_path / "dying.py").write_text(DYING)
    process = Process(str(tmp_path / "dying.py"))
    yield process
    for child in process.children() if process.process.poll() is None else []:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    process.socket.close()
    process.process.kill()
    process.process.communicate()


@pytest.mark.parametrize(("target", "status"), [("/exit", 7), ("/leave", 1)])
def test_service_is_restarted_when_it_exits(dying: Process, target: str, status: int) -> None:
    dying.hello(5)
    dying.order(5, encode_request("GET", target, [], b""))
    assert dying.frame(FrameKind.HERE).seq == 2 or dying.frame(FrameKind.HERE).seq == 2
    assert dying.hello(6).incarnation == 2
    assert f"status {status}" in dying.end()[1]


def test_output_of_the_service_goes_to_the_console(dying: Process) -> None:
    dying.hello(5)
    dying.order(5, encode_request("GET", "/print", [], b""))
    assert Reply.decode(dying.frame(FrameKind.REPLY).payload).body == b"ok"
    assert dying.decoder.skipped == 0
    assert "must not get into the link" in dying.end()[1]


def test_restarts_are_paced_when_the_service_dies_at_once(tmp_path: Path) -> None:
    file = tmp_path / "stillborn.py"
    file.write_text(
        "from guests.service import Service\n"
        "class Stillborn(Service):\n"
        "    def __init__(self): raise RuntimeError('no memory for my tables')\n"
        "    def apply(self, request, context): ...\n"
    )
    process = Process(str(file))
    try:
        with pytest.raises(TimeoutError):
            process.frame(FrameKind.HERE, timeout=2)
    finally:
        process.process.kill()
    console = process.end()[1]
    assert "no memory for my tables" in console, "the console shows why"
    assert 2 <= console.count("starting incarnation") < 12


def test_agent_ends_when_its_voter_dies_while_it_writes(agent: Process) -> None:
    """Its write may fail before it can read the end."""
    agent.hello(5)
    agent.order(5, encode_request("PUT", "/kv/a", [], bytes(1 << 20)))
    agent.frame(FrameKind.REPLY)
    pids = [agent.process.pid, *agent.children()]
    prev = b"histo001"
    for seq in range(2, 40):
        agent.order(5, get("a"), seq, prev)  # 38 MiB of replies, which nobody reads
        prev = b"histo%03d" % seq
    assert agent.end()[0] == 0
    wait_for_end(pids)


def test_agent_exits_with_a_message_when_the_service_cannot_be_loaded(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "guests.agent", "--stdio", "--service", "nothing"],
        cwd=ROOT, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no service 'nothing'" in done.stderr

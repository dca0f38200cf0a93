"""Cuts: the state at one moment, told by a process of its own while the service goes on."""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from guests.agent.capture import NICE, Capture, CaptureError, Capturer, ForkedCapture, InlineCapture
from guests.protocol.message import Reply, Request
from guests.protocol.wire import STATE_PIECE
from guests.service import Context, Service, state_digest
from guests.services.kv import KeyValue

FORKED = pytest.mark.parametrize("make", [ForkedCapture, InlineCapture])


class Pieces(Service):
    """A service whose state is given; ``before`` is done before it is told."""

    name = "pieces"

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.before: Callable[[], object] = lambda: None

    def apply(self, request: Request, context: Context) -> Reply:
        return Reply(200, b"")

    def snapshot(self) -> Iterator[bytes]:
        self.before()
        yield from self.pieces


def wait(cut: Capture, seconds: float = 60) -> None:
    if cut.fileno() >= 0:
        poll = select.poll()
        poll.register(cut.fileno(), select.POLLIN)
        assert poll.poll(seconds * 1000)


def told(cut: Capture) -> bytes:
    while (digest := cut.tell()) is None:
        wait(cut)
    return digest


def taken(cut: Capture) -> list[bytes]:
    pieces: list[bytes] = []
    while True:
        piece = cut.take()
        if piece is None:
            wait(cut)
        else:
            pieces.append(piece[0])
            if piece[1]:
                return pieces


def held_open(entry: os.DirEntry[str]) -> bool:
    """Whether a descriptor is still there (that of the listing itself is not, afterwards)."""
    return os.path.lexists(entry.path)


def processes() -> set[int]:
    """The children of this process."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(map(int, file.read().split()))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before, fds = processes(), len(os.listdir("/proc/self/fd"))
    yield
    assert processes() <= before
    assert len(os.listdir("/proc/self/fd")) == fds


@FORKED
@pytest.mark.parametrize(
    "pieces", [(), (b"",), (b"abc",), (b"a",) * 1000, (bytes(STATE_PIECE),), (bytes(1_000_000),)]
)
def test_digest_and_state_are_those_of_the_service(
    make: type[ForkedCapture | InlineCapture], pieces: tuple[bytes, ...]
) -> None:
    service, state = Pieces(*pieces), b"".join(pieces)
    cut = make(service, True)
    assert told(cut) == service.digest() == state_digest(iter((state,)))
    parts = taken(cut)
    assert b"".join(parts) == state
    assert all(len(part) == STATE_PIECE for part in parts[:-1])
    assert len(parts) == max(1, -(-len(state) // STATE_PIECE))
    cut.close()
    cut.close()


@FORKED
def test_it_is_the_state_at_the_cut(make: type[ForkedCapture | InlineCapture]) -> None:
    service = KeyValue()
    service._store(b"a", bytes(300_000))
    before = service.digest()
    cut = make(service, True)
    service._store(b"a", b"later")
    assert told(cut) == before
    assert state_digest(iter(taken(cut))) == before
    cut.close()


@FORKED
def test_without_the_state_there_is_only_a_digest(
    make: type[ForkedCapture | InlineCapture],
) -> None:
    cut = make(Pieces(b"abc"), False)
    assert told(cut) == Pieces(b"abc").digest()
    with pytest.raises(CaptureError, match="no state is kept"):
        cut.take()
    cut.close()


@FORKED
@pytest.mark.parametrize("keep", [True, False])
def test_an_exception_is_told_as_a_digest(
    make: type[ForkedCapture | InlineCapture], keep: bool
) -> None:
    service = Pieces(b"abc")
    service.before = lambda: 1 // 0
    cut = make(service, keep)
    assert told(cut) == b"no digest: ZeroDivisionError"
    with pytest.raises(CaptureError):
        cut.take()
    cut.close()


def test_a_service_that_exits_in_its_digest_ends_only_the_cut() -> None:
    service = Pieces(b"abc")
    service.before = lambda: exit(3)
    cut = ForkedCapture(service, False)
    assert told(cut) == b"no digest: SystemExit"
    cut.close()


def test_the_service_does_not_wait_and_no_more_than_a_pipe_is_held() -> None:
    service = Pieces(*[bytes(STATE_PIECE)] * 100)
    theirs, ours = os.pipe()
    service.before = lambda: os.read(theirs, 1)  # a long work, once for the digest, once for pieces
    cut = ForkedCapture(service, True)
    assert cut.tell() is None
    os.write(ours, b"1")
    told(cut)
    assert cut.take() is None, "it is hashed once more for the pieces"
    os.write(ours, b"2")
    wait(cut)
    pieces = taken(cut)
    os.close(ours)
    os.close(theirs)
    assert len(pieces) == 100
    cut.close()


def test_a_cut_is_ended_at_any_time() -> None:
    service = Pieces(*[bytes(STATE_PIECE)] * 100)
    hangs = Pieces(b"abc")
    hangs.before = signal.pause
    for each in (service, hangs):
        cut = ForkedCapture(each, True)
        cut.close()
    cut = ForkedCapture(service, True)
    told(cut)
    cut.take()
    cut.close()
    with pytest.raises(CaptureError):
        cut.take()


@pytest.mark.parametrize("when", ["before the digest", "before the state"])
def test_a_process_that_dies_is_told(when: str) -> None:
    service = Pieces(*[bytes(STATE_PIECE)] * 100)
    if when == "before the digest":
        service.before = lambda: os.kill(os.getpid(), signal.SIGKILL)
    cut = ForkedCapture(service, True)
    if when == "before the state":
        told(cut)
        os.kill(cut._child, signal.SIGKILL)
    with pytest.raises(CaptureError, match="ended"):
        taken(cut) if cut.tell() else told(cut)
    cut.close()


def test_its_process_does_not_hold_the_link() -> None:
    ours, theirs = os.pipe()
    service = Pieces(b"abc")

    def look() -> None:
        held = [
            os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if held_open(entry)
        ]
        service.pieces = [" ".join(held).encode()]

    service.before = look
    cut = ForkedCapture(service, True, (ours, theirs))
    told(cut)
    held = b"".join(taken(cut)).decode().split()
    cut.close()
    link = f"pipe:[{os.fstat(ours).st_ino}]"
    os.close(ours)
    os.close(theirs)
    assert held
    assert link not in held


def set_as_root(which: int, who: int, value: int) -> None:
    niceness.append(value)


def set_as_another(which: int, who: int, value: int) -> None:
    if value < niceness[-1]:
        raise PermissionError(errno.EACCES, "Permission denied")
    niceness.append(value)


def add_to_nothing(more: int) -> int:
    niceness.append(more)
    return more


niceness: list[int] = []
"""Those that a process got; each process has its own."""


@pytest.mark.parametrize(
    "set_one,way",
    [(set_as_root, [NICE + 1, NICE, 19, NICE]), (set_as_another, [NICE + 1, NICE + 1])],
)
def test_it_goes_last_but_not_for_ever(
    set_one: Callable[[int, int, int], None], way: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guests.agent.capture.ORPHAN_CHECK", 0.05)
    monkeypatch.setattr("guests.agent.capture.ASIDE", 0.2)
    monkeypatch.setattr(os, "setpriority", set_one)
    monkeypatch.setattr(os, "nice", add_to_nothing)
    service = Pieces(b"abc")

    def look() -> None:
        deadline = time.monotonic() + 30
        while len(niceness) <= len(way) and time.monotonic() < deadline:
            time.sleep(0.01)
        service.pieces = [" ".join(map(str, niceness[: len(way) + 1])).encode()]

    service.before = look
    cut = ForkedCapture(service, True)
    told(cut)
    assert [int(value) for value in b"".join(taken(cut)).split()] == [NICE, *way]
    cut.close()
    assert niceness == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may raise a priority")
def test_the_host_lets_root_go_last_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guests.agent.capture.ORPHAN_CHECK", 0.05)
    monkeypatch.setattr("guests.agent.capture.ASIDE", 0.2)
    service, before = Pieces(b"abc"), min(os.nice(0), 13)

    def look() -> None:
        if service.pieces == [b"abc"]:  # it is asked twice: for the digest, and for the bytes
            seen, deadline = [os.nice(0)], time.monotonic() + 30
            while os.nice(0) == 19 and time.monotonic() < deadline:
                time.sleep(0.01)
            service.pieces = [f"{seen[0]} {os.nice(0)}".encode()]

    service.before = look
    cut = ForkedCapture(service, True)
    told(cut)
    assert b"".join(taken(cut)).split() == [b"19", b"%d" % (before + NICE)]
    cut.close()


def test_it_ends_when_the_service_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guests.agent.capture.ORPHAN_CHECK", 0.05)
    service = Pieces(b"abc")
    service.before = lambda: time.sleep(1000)
    ours, theirs = os.pipe()
    between = os.fork()
    if between == 0:
        try:
            cut = ForkedCapture(service, False)
            os.write(theirs, b"%d" % cut._child)
        finally:
            os._exit(0)
    os.waitpid(between, 0)
    orphan = int(os.read(ours, 20))
    deadline = time.monotonic() + 30
    while alive(orphan):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.close(ours)
    os.close(theirs)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def no_fork() -> int:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def test_where_no_process_can_be_made_the_service_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fork", no_fork)
    cut = Capturer()(Pieces(b"abc"), True)
    assert isinstance(cut, InlineCapture)
    assert told(cut) == Pieces(b"abc").digest()


def test_a_small_state_is_told_at_once_from_the_second_time_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("guests.agent.capture.WORTH", 1000.0)
    cutter, small, large = Capturer(), Pieces(b"abc"), Pieces(*[bytes(STATE_PIECE)] * 1000)
    kinds = []
    for service in (small, small, small, large, large, small):
        cut = cutter(service, False)
        kinds.append(type(cut))
        told(cut)
        cut.close()
    assert kinds == [
        ForkedCapture,
        InlineCapture,
        InlineCapture,
        ForkedCapture,
        ForkedCapture,
        ForkedCapture,
    ]


def test_a_state_that_grows_gets_a_process_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guests.agent.capture.WORTH", 1000.0)
    cutter, service = Capturer(), Pieces(b"abc")
    kinds = []
    for _ in range(4):
        cut = cutter(service, False)
        kinds.append(type(cut))
        told(cut)
        cut.close()
        service.pieces = [bytes(STATE_PIECE)] * 1000
    assert kinds == [ForkedCapture, ForkedCapture, ForkedCapture, ForkedCapture], (
        "it is not waited for long"
    )

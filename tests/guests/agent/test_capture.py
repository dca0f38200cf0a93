"""Captures: the state at one moment, sent by a forked process or held inline."""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from guests.agent.capture import NICE, Capture, CaptureError, Capturer, ForkedCapture, InlineCapture
from guests.protocol.message import Reply, Request
from guests.protocol.wire import STATE_PIECE
from guests.service import Context, Service, state_digest
from guests.services.kv import KeyValue

BOTH_KINDS = pytest.mark.parametrize("make", [ForkedCapture, InlineCapture])


class Pieces(Service):
    """A service with a given state; ``before`` runs before each snapshot."""

    name = "pieces"

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.before: Callable[[], object] = lambda: None

    def apply(self, request: Request, context: Context) -> Reply:
        return Reply(200, b"")

    def snapshot(self) -> Iterator[bytes]:
        self.before()
        yield from self.pieces


def wait(capture: Capture, seconds: float = 60) -> None:
    if capture.fileno() >= 0:
        poll = select.poll()
        poll.register(capture.fileno(), select.POLLIN)
        assert poll.poll(seconds * 1000)


def digest_of(capture: Capture) -> bytes:
    while (digest := capture.digest()) is None:
        wait(capture)
    return digest


def pieces_of(capture: Capture) -> list[bytes]:
    pieces: list[bytes] = []
    while True:
        piece = capture.next_piece()
        if piece is None:
            wait(capture)
        else:
            pieces.append(piece[0])
            if piece[1]:
                return pieces


def held_open(entry: os.DirEntry[str]) -> bool:
    """Return whether a descriptor is still open (the listing's own is not)."""
    return os.path.lexists(entry.path)


def processes() -> set[int]:
    """Return the children of this process."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(map(int, file.read().split()))


@pytest.fixture(autouse=True)
def no_process_or_descriptor_leaks() -> Iterator[None]:
    before, fds = processes(), len(os.listdir("/proc/self/fd"))
    yield
    assert processes() <= before
    assert len(os.listdir("/proc/self/fd")) == fds


@BOTH_KINDS
@pytest.mark.parametrize(
    "pieces", [(), (b"",), (b"abc",), (b"a",) * 1000, (bytes(STATE_PIECE),), (bytes(1_000_000),)]
)
def test_capture_returns_the_services_digest_and_state(
    make: type[ForkedCapture | InlineCapture], pieces: tuple[bytes, ...]
) -> None:
    service, state = Pieces(*pieces), b"".join(pieces)
    capture = make(service, True)
    assert digest_of(capture) == service.digest() == state_digest(iter((state,)))
    parts = pieces_of(capture)
    assert b"".join(parts) == state
    assert all(len(part) == STATE_PIECE for part in parts[:-1])
    assert len(parts) == max(1, -(-len(state) // STATE_PIECE))
    capture.close()
    capture.close()


@BOTH_KINDS
def test_capture_holds_the_state_of_its_moment(make: type[ForkedCapture | InlineCapture]) -> None:
    service = KeyValue()
    service.table.store(b"a", bytes(300_000))
    before = service.digest()
    capture = make(service, True)
    service.table.store(b"a", b"later")
    assert digest_of(capture) == before
    assert state_digest(iter(pieces_of(capture))) == before
    capture.close()


@BOTH_KINDS
def test_capture_without_state_returns_the_digest_only(
    make: type[ForkedCapture | InlineCapture],
) -> None:
    capture = make(Pieces(b"abc"), False)
    assert digest_of(capture) == Pieces(b"abc").digest()
    with pytest.raises(CaptureError, match="no state is kept"):
        capture.next_piece()
    capture.close()


@BOTH_KINDS
@pytest.mark.parametrize("keep", [True, False])
def test_exception_in_snapshot_becomes_a_digest(
    make: type[ForkedCapture | InlineCapture], keep: bool
) -> None:
    service = Pieces(b"abc")
    service.before = lambda: 1 // 0
    capture = make(service, keep)
    assert digest_of(capture) == b"no digest: ZeroDivisionError"
    with pytest.raises(CaptureError):
        capture.next_piece()
    capture.close()


def test_exit_in_snapshot_becomes_a_digest() -> None:
    service = Pieces(b"abc")
    service.before = lambda: exit(3)
    capture = ForkedCapture(service, False)
    assert digest_of(capture) == b"no digest: SystemExit"
    capture.close()


def test_forked_capture_does_not_block_the_service() -> None:
    service = Pieces(*[bytes(STATE_PIECE)] * 100)
    theirs, ours = os.pipe()
    service.before = lambda: os.read(
        theirs, 1
    )  # takes long, for the digest and again for the pieces
    capture = ForkedCapture(service, True)
    assert capture.digest() is None
    os.write(ours, b"1")
    digest_of(capture)
    assert capture.next_piece() is None, "the snapshot is pieces_of once more for the pieces"
    os.write(ours, b"2")
    wait(capture)
    pieces = pieces_of(capture)
    os.close(ours)
    os.close(theirs)
    assert len(pieces) == 100
    capture.close()


def test_capture_can_be_closed_at_any_time() -> None:
    service = Pieces(*[bytes(STATE_PIECE)] * 100)
    hangs = Pieces(b"abc")
    hangs.before = signal.pause
    for each in (service, hangs):
        capture = ForkedCapture(each, True)
        capture.close()
    capture = ForkedCapture(service, True)
    digest_of(capture)
    capture.next_piece()
    capture.close()
    with pytest.raises(CaptureError):
        capture.next_piece()


@pytest.mark.parametrize("when", ["before the digest", "before the state"])
def test_capture_raises_when_its_process_dies(when: str) -> None:
    service = Pieces(*[bytes(STATE_PIECE)] * 100)
    if when == "before the digest":
        service.before = lambda: os.kill(os.getpid(), signal.SIGKILL)
    capture = ForkedCapture(service, True)
    if when == "before the state":
        digest_of(capture)
        os.kill(capture._child, signal.SIGKILL)
    with pytest.raises(CaptureError, match="ended"):
        pieces_of(capture) if capture.digest() else digest_of(capture)
    capture.close()


def test_capture_process_closes_the_link() -> None:
    ours, theirs = os.pipe()
    service = Pieces(b"abc")

    def inspect() -> None:
        held = [
            os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if held_open(entry)
        ]
        service.pieces = [" ".join(held).encode()]

    service.before = inspect
    capture = ForkedCapture(service, True, (ours, theirs))
    digest_of(capture)
    held = b"".join(pieces_of(capture)).decode().split()
    capture.close()
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
"""The nice values that a process set; each process has its own list."""


@pytest.mark.parametrize(
    "set_one,way",
    [(set_as_root, [NICE + 1, NICE, 19, NICE]), (set_as_another, [NICE + 1, NICE + 1])],
)
def test_capture_process_raises_its_priority_after_a_while(
    set_one: Callable[[int, int, int], None], way: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guests.agent.capture.CHECK_INTERVAL", 0.05)
    monkeypatch.setattr("guests.agent.capture.LOW_PRIORITY_TIME", 0.2)
    monkeypatch.setattr(os, "setpriority", set_one)
    monkeypatch.setattr(os, "nice", add_to_nothing)
    service = Pieces(b"abc")

    def inspect() -> None:
        deadline = time.monotonic() + 30
        while len(niceness) <= len(way) and time.monotonic() < deadline:
            time.sleep(0.01)
        service.pieces = [" ".join(map(str, niceness[: len(way) + 1])).encode()]

    service.before = inspect
    capture = ForkedCapture(service, True)
    digest_of(capture)
    assert [int(value) for value in b"".join(pieces_of(capture)).split()] == [NICE, *way]
    capture.close()
    assert niceness == []


def test_capture_process_exits_when_the_service_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guests.agent.capture.CHECK_INTERVAL", 0.05)
    service = Pieces(b"abc")
    service.before = lambda: time.sleep(1000)
    ours, theirs = os.pipe()
    between = os.fork()
    if between == 0:
        try:
            capture = ForkedCapture(service, False)
            os.write(theirs, b"%d" % capture._child)
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


def test_capturer_works_inline_when_fork_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fork", no_fork)
    capture = Capturer()(Pieces(b"abc"), True)
    assert isinstance(capture, InlineCapture)
    assert digest_of(capture) == Pieces(b"abc").digest()


def test_capturer_works_inline_from_the_second_small_capture_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("guests.agent.capture.INLINE_FORKS", 1000.0)
    capturer, small, large = Capturer(), Pieces(b"abc"), Pieces(*[bytes(STATE_PIECE)] * 1000)
    kinds = []
    for service in (small, small, small, large, large, small):
        capture = capturer(service, False)
        kinds.append(type(capture))
        digest_of(capture)
        capture.close()
    assert kinds == [ForkedCapture, InlineCapture, InlineCapture, *[ForkedCapture] * 3]


def test_capturer_forks_again_when_the_state_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guests.agent.capture.INLINE_FORKS", 1000.0)
    capturer, service = Capturer(), Pieces(b"abc")
    kinds = []
    for _ in range(4):
        capture = capturer(service, False)
        kinds.append(type(capture))
        digest_of(capture)
        capture.close()
        service.pieces = [bytes(STATE_PIECE)] * 1000
    assert kinds == [ForkedCapture] * 4


def test_capturer_does_not_keep_a_service_that_was_replaced() -> None:
    """A weak reference to an object of a compiled class may dangle: mypyc does not clear it."""
    capturer = Capturer()
    for number in range(3):
        service = KeyValue()
        service.table.store(b"a", b"%d" % number)
        kept = weakref.ref(service)
        capture = capturer(service, False)
        assert digest_of(capture) == service.digest()
        capture.close()
        del service, capture
        gc.collect()
        assert kept() is None

"""A connection to libvirt for asyncio, which is opened again when the daemon returns.

The only module that imports libvirt.  Libvirt's calls block, so they run in a few threads.  One
more thread runs libvirt's default event loop for as long as the process lives.  (`libvirtaio` is
not safe to use from threads, and cannot be registered a second time.)

A daemon may end or hang at any time; its QEMUs continue to run.  The daemon's end closes the
connection.  A daemon that hangs is noticed by keepalive messages, which also end the calls that
wait for it.  Until the connection is open again, each call raises HypervisorLost at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import structlog

# Read when the library is loaded.  Without it libvirt also prints each failed call on stderr.
os.environ.setdefault("LIBVIRT_LOG_FILTERS", "4:*")
os.environ.setdefault("LIBVIRT_DEBUG", "4")

import libvirt
import libvirt_qemu

from deploy.errors import (
    AlreadyUp,
    CannotRunHere,
    DeployError,
    HypervisorFailed,
    HypervisorLost,
    HypervisorSilent,
)
from deploy.host.install import DRIVER, as_root, how_to_install
from deploy.machine.contention import within
from deploy.machine.spec import EMBED

__all__ = ["CALL_TIMEOUT", "Connection", "libvirt", "libvirt_qemu", "opening_error"]

T = TypeVar("T")

CALL_TIMEOUT = 60.0
"""Seconds for a call; then HypervisorSilent is raised, and the call's thread is left waiting."""

_THREADS = 8
"""Calls at a time; more wait.  A call that hangs on a stopped QEMU occupies one."""

_KEEPALIVE = (5, 3)
"""Seconds without a message of the daemon until it is probed, and how many probes it may leave
unanswered: a daemon that hangs is noticed after 20 s."""

_REOPEN_PAUSE = 1.0
"""Seconds between attempts to open it again: nothing reports that the daemon has returned."""

_ENDED, _HANGS = "its daemon ended", "its daemon hangs"

_REASONS = {
    libvirt.VIR_CONNECT_CLOSE_REASON_EOF: _ENDED,
    libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: _HANGS,
}

_DENIALS = ("Permission denied", "authentication", "access denied", "polkit", "system bus")
"""What libvirt's errors contain if this user may not use the system's daemon."""

_log = structlog.get_logger(__name__)


class _EventThread:
    """The thread of libvirt's event loop: one for each process, never stopped."""

    _lock = threading.Lock()
    _started = False

    @classmethod
    def ensure(cls) -> None:
        with cls._lock:
            if cls._started:
                return
            libvirt.registerErrorHandler(lambda *_: None, None)
            libvirt.virEventRegisterDefaultImpl()
            threading.Thread(target=cls._run, name="libvirt-events", daemon=True).start()
            cls._started = True

    @staticmethod
    def _run() -> None:
        while True:
            try:
                libvirt.virEventRunDefaultImpl()
            except libvirt.libvirtError as error:
                _log.warning("libvirt's event loop failed", error=str(error), error_code="TV0122")


class Connection:
    """One connection, used from the asyncio loop that opened it.  Close it after use.

    `arrived` is called in that loop with the uuid and the number of each domain event.  `reopened`
    is awaited after the connection was opened again: events may have been missed.
    """

    def __init__(
        self,
        target: str,
        handle: Any,
        arrived: Callable[[str, int], None],
        reopened: Callable[[], Awaitable[None]],
    ) -> None:
        self.problem = ""
        """Why libvirt cannot be used now, and the remedy; empty if it can."""
        self._target = target
        self._handle = handle
        self._arrived = arrived
        self._reopened = reopened
        self._registered: int | None = None
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="libvirt")
        self._reopening: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(
        cls,
        target: str,
        *,
        arrived: Callable[[str, int], None],
        reopened: Callable[[], Awaitable[None]],
        timeout: float | None,
    ) -> Connection:
        """Open the URI `target` within `timeout` seconds, None for no limit.

        Raises CannotRunHere, AlreadyUp, HypervisorFailed.
        """
        _EventThread.ensure()
        try:
            async with asyncio.timeout(timeout):
                handle = await _open(target)
        except libvirt.libvirtError as error:
            raise opening_error(str(error), target) from error
        except TimeoutError as error:
            raise CannotRunHere(
                f"cannot open {target}: libvirt's daemon did not answer within {timeout:g} s",
                remedy=_restart(target),
                error_code="TV0108",
            ) from error
        connection = cls(target, handle, arrived, reopened)
        try:
            await connection._prepare(handle)
        except HypervisorFailed:
            await connection.close()
            raise
        return connection

    async def close(self) -> None:
        """Close it.  Does not wait for a hanging call."""
        self._closed = True
        if self._reopening is not None:
            self._reopening.cancel()
            await asyncio.wait([self._reopening])
        handle, number, self._registered = self._handle, self._registered, None
        try:
            if number is not None:
                await self.call(lambda _: handle.domainEventDeregisterAny(number))
            await self.call(lambda _: handle.close())
        except HypervisorFailed as error:
            _log.debug("libvirt's connection was closed by its daemon", error=str(error))
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def call(
        self, function: Callable[[Any], T], timeout: float = CALL_TIMEOUT, pid: int = 0
    ) -> T:
        """Run a blocking call in a thread, its argument libvirt's object of the connection.

        The time in which the QEMU `pid`, which answers, waits for a processor does not count.
        Raises HypervisorLost, HypervisorSilent, HypervisorFailed.
        """
        if self.problem:
            raise HypervisorLost(self.problem)
        handle = self._handle
        try:
            running = self._loop.run_in_executor(self._executor, lambda: function(handle))
            return await within(timeout, pid, running)
        except libvirt.libvirtError as error:
            if not handle.isAlive():
                self._lost(handle, _ENDED)
                raise HypervisorLost(self.problem) from error
            raise HypervisorFailed(f"libvirt: {error}", code=error.get_error_code()) from error
        except TimeoutError as error:
            raise HypervisorSilent(f"libvirt did not answer within {timeout:g} s") from error

    async def _prepare(self, handle: Any) -> None:
        """Register for events of a new connection's domains, and for its end."""

        def event(_conn: Any, domain: Any, number: int, _detail: int, _opaque: Any) -> None:
            self._from_thread(self._arrived, domain.UUIDString(), number)

        def closed(_conn: Any, reason: int, _opaque: Any) -> None:
            self._from_thread(self._lost, handle, _REASONS.get(reason, "its daemon failed"))

        def prepare(_: Any) -> int:
            if not self._target.startswith(EMBED):  # which has no daemon
                handle.setKeepAlive(*_KEEPALIVE)
                handle.registerCloseCallback(closed, None)
            kind = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
            return int(handle.domainEventRegisterAny(None, kind, event, None))

        self._registered = await self.call(prepare)

    def _from_thread(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function in the loop, from libvirt's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(function, *arguments)

    def _lost(self, handle: Any, reason: str) -> None:
        """Open the connection again, unless another one is open already."""
        if handle is not self._handle or self.problem or self._closed:
            return
        self.problem = f"the connection to {self._target} is lost: {reason}; " + (
            _restart(self._target) if reason == _HANGS else _start(self._target)
        )
        _log.error("libvirt is lost", problem=self.problem, error_code="TV0109")
        if self._reopening is None or self._reopening.done():
            self._reopening = asyncio.create_task(self._reopen(), name="reopen libvirt")

    async def _reopen(self) -> None:
        """Open the connection until that has succeeded, and until its owner knows the domains."""
        while self.problem:
            former = self._handle
            try:
                self._handle = await _open(self._target)
            except libvirt.libvirtError as error:
                reason = f"{error}; {_remedy(str(error), self._target)}"
                self.problem = f"the connection to {self._target} is lost: {reason}"
                await asyncio.sleep(_REOPEN_PAUSE)
                continue
            self._registered, self.problem = None, ""
            try:
                await self.call(lambda _, former=former: _discard(former))  # type: ignore[misc]
                await self._prepare(self._handle)
                await self._reopened()
            except HypervisorFailed as error:
                self._lost(self._handle, str(error))
            else:
                _log.info("libvirt is connected again", uri=self._target)


async def _open(target: str) -> Any:
    """Open libvirt in a thread of its own: one that hangs must not keep the process from ending.

    Raises libvirtError.
    """
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[Any] = loop.create_future()

    def deliver(handle: Any, error: libvirt.libvirtError | None) -> None:
        if opened.cancelled():
            if handle is not None:
                handle.close()
        elif error is not None:
            opened.set_exception(error)
        else:
            opened.set_result(handle)

    def run() -> None:
        handle = error = None
        try:
            handle = libvirt.open(target)
        except libvirt.libvirtError as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, handle, error)

    threading.Thread(target=run, name="libvirt-open", daemon=True).start()
    return await opened


def _discard(handle: Any) -> None:
    """Close a lost connection, so that libvirt frees it."""
    try:
        handle.unregisterCloseCallback()
        handle.close()
    except libvirt.libvirtError as error:
        _log.debug("a lost connection was closed already", error=str(error))


def opening_error(text: str, target: str) -> DeployError:
    """Return the error for a libvirt at `target` that cannot be opened and reports `text`."""
    if "Failed to parse user" in text or "Failed to parse group" in text:
        return CannotRunHere(
            f"libvirt needs a user account that this host does not have: {text}",
            remedy="run: addgroup --system libvirt-qemu; adduser --system --ingroup libvirt-qemu"
            " --disabled-login --home /var/lib/libvirt --no-create-home libvirt-qemu",
            error_code="TV0105",
        )
    if "driver.pid" in text or "already open" in text:
        return AlreadyUp(
            f"libvirt at {target} is in use: {text}",
            remedy="end the process that uses it, or choose another directory (--dir)",
            error_code="TV0106",
        )
    if "Failed to create state dir" in text:  # without root, libvirt keeps files in the home
        return CannotRunHere(
            f"libvirt cannot write its files: {text}",
            remedy="set XDG_CACHE_HOME to a directory that this user may write",
            error_code="TV0107",
        )
    problem = f"cannot open {target}: {text}"
    if target.startswith(EMBED):
        return CannotRunHere(
            problem, remedy=how_to_install("qemu-system-x86_64", DRIVER), error_code="TV0103"
        )
    return CannotRunHere(
        problem, remedy=f"{_remedy(text, target)}; or use --connect {EMBED}", error_code="TV0104"
    )


def _remedy(text: str, target: str) -> str:
    """Return the remedy for a daemon that cannot be reached."""
    if any(word in text for word in _DENIALS):
        return f"{as_root(f'usermod -aG libvirt,libvirt-qemu {_user()}')}, and log in again"
    return _start(target)


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return "USER"


def _start(target: str) -> str:
    """Return how to get a daemon for this URI."""
    if "/session" in target:  # libvirt's library starts it
        return "libvirt starts its daemon automatically: apt-get install libvirt-daemon"
    return (
        "start libvirt's daemon: systemctl start libvirtd (in the package libvirt-daemon-system; "
        "virtqemud, where libvirt's daemons are modular)"
    )


def _restart(target: str) -> str:
    """Return how to end a hung daemon."""
    if "/session" in target:
        return "end that libvirtd: kill -9 PID; libvirt starts it again automatically"
    return "restart libvirt's daemon: systemctl restart libvirtd (or virtqemud)"

"""Libvirt for asyncio: the only module that imports it.

Libvirt's calls block, so they run in a few threads.  One more thread runs libvirt's default event
loop for as long as the process lives, and passes events to the asyncio loop.  (`libvirtaio` is not
safe to use from threads, and cannot be registered a second time.)
"""

from __future__ import annotations

import asyncio
import enum
import os
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import structlog

# Read when the library is loaded.  Without it libvirt also prints each failed call on stderr.
os.environ.setdefault("LIBVIRT_LOG_FILTERS", "4:*")
os.environ.setdefault("LIBVIRT_DEBUG", "4")

import libvirt
import libvirt_qemu

from deploy.errors import AlreadyUp, CannotRunHere, DeployError, HypervisorFailed, HypervisorSilent
from deploy.host.files import check_path, sweep_links
from deploy.host.install import DRIVER, how_to_install
from deploy.machine.boot_watch import instruction_page
from deploy.machine.contention import within
from deploy.machine.embed import carried_root, check_owner, embed_uri, prepare_root
from deploy.machine.qemu import adopt_orphans
from deploy.machine.spec import EMBED

__all__ = ["DomainChange", "Domain", "Hypervisor", "RunState", "finish", "opening_error"]

T = TypeVar("T")

_THREADS = 8
"""Enough for all guests of a node and one call that hangs on a stopped QEMU."""

_CALL_TIMEOUT = 60.0

_START_TIMEOUT = 300.0
"""Seconds; 0.4 are usual.  If a daemon's QEMUs run as a user that may not open /dev/kvm, libvirt
probes QEMU again at each start: up to 60 were measured."""

_REMOVAL_TIMEOUT = 10.0
"""Seconds for libvirt to remove a stopped domain, so that its name can be used again."""

_log = structlog.get_logger(__name__)


class RunState(enum.Enum):
    """A domain's state as libvirt reports it."""

    RUNNING = "running"
    PAUSED = "paused"
    CRASHED = "crashed"
    GONE = "gone"


class DomainChange(enum.Enum):
    """An event of a domain, whoever caused it."""

    SUSPENDED = "suspended"
    RESUMED = "resumed"
    STOPPED = "stopped"


_CHANGES = {
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: DomainChange.SUSPENDED,
    libvirt.VIR_DOMAIN_EVENT_RESUMED: DomainChange.RESUMED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED: DomainChange.STOPPED,
}

_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: RunState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: RunState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: RunState.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: RunState.PAUSED,
    libvirt.VIR_DOMAIN_CRASHED: RunState.CRASHED,
    libvirt.VIR_DOMAIN_SHUTDOWN: RunState.GONE,
    libvirt.VIR_DOMAIN_SHUTOFF: RunState.GONE,
}


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
                _log.warning("libvirt's event loop failed", error=str(error))


class Hypervisor:
    """One connection to libvirt, used from the asyncio loop that opened it.  Close it after use."""

    def __init__(self, connection: Any, uri: str, root: Path | None = None) -> None:
        self.uri = uri
        self._connection = connection
        self._root = root
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="libvirt")
        self._listeners: dict[str, Callable[[DomainChange], None]] = {}
        self._stopped: dict[str, asyncio.Event] = {}
        self._registered: int | None = None

    @classmethod
    async def open(
        cls, uri: str, *, root: Path | None = None, capabilities: Path | None = None
    ) -> Hypervisor:
        """Open libvirt at `uri`; for the embedded one, `root` is its directory.

        A process can hold one embedded libvirt, and a root belongs to one process.  Domains that a
        former owner of the root left running are found again.  Raises AlreadyUp if another process
        has the root, CannotRunHere without libvirt, HypervisorFailed for other errors.
        """
        _EventThread.ensure()
        target = uri
        if uri == EMBED:
            if root is None:
                raise ValueError("the embedded libvirt needs a root directory")
            adopt_orphans()
            try:
                check_path(root)
                prepare_root(root, capabilities=capabilities)
            except OSError as error:
                raise CannotRunHere(
                    f"cannot make libvirt's directory {root}: {error.strerror}",
                    remedy="choose a writable directory (--dir)",
                ) from error
            sweep_links()
            target = embed_uri(carried_root(root))
        try:
            connection = await asyncio.to_thread(libvirt.open, target)
        except libvirt.libvirtError as error:
            raise opening_error(str(error), target) from error
        root = root if uri == EMBED else None
        if root is not None:
            check_owner(root)
        hypervisor = cls(connection, uri, root)
        try:
            await hypervisor._register()
        except HypervisorFailed:
            await hypervisor.close()
            raise
        return hypervisor

    async def close(self) -> None:
        """Close the connection; the domains continue to run.  Does not wait for a hanging call."""
        if self._registered is not None:
            number, self._registered = self._registered, None
            await self._call(lambda: self._connection.domainEventDeregisterAny(number))
        await self._call(self._connection.close)
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def start_paused(self, xml: str) -> Domain:
        """Start the domain that `xml` describes, its CPU stopped."""
        # A start cannot be cancelled.  If the caller is, the domain is ended once it has started.
        start = asyncio.create_task(self._start(xml), name="start a domain")
        try:
            return await asyncio.shield(start)
        except asyncio.CancelledError:
            try:
                await (await start).destroy()
            except HypervisorFailed as error:
                _log.info("a cancelled start failed", error=str(error))
            raise

    async def find(self, uuid: str) -> Domain | None:
        """Return the running domain with this uuid, or None."""
        try:
            handle = await self._call(lambda: self._connection.lookupByUUIDString(uuid))
        except HypervisorFailed as error:
            if error.code == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise
        self._stopped.setdefault(uuid, asyncio.Event())
        return Domain(self, handle)

    async def version(self) -> tuple[str, str]:
        """Return the versions of libvirt and of QEMU."""
        numbers = await self._call(
            lambda: (self._connection.getLibVersion(), self._connection.getVersion())
        )
        return _dotted(numbers[0]), _dotted(numbers[1])

    def listen(self, uuid: str, callback: Callable[[DomainChange], None] | None) -> None:
        """Call `callback` in the asyncio loop at each change of a domain; None ends that."""
        if callback is None:
            self._listeners.pop(uuid, None)
        else:
            self._listeners[uuid] = callback

    async def _start(self, xml: str) -> Domain:
        if self._root is not None:
            carried_root(self._root)  # someone may have cleaned up /tmp
        deadline = time.monotonic() + _REMOVAL_TIMEOUT
        while True:
            try:
                handle = await self._call(
                    lambda: self._connection.createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED),
                    _START_TIMEOUT,
                )
            except HypervisorFailed as error:
                # Libvirt is still removing the stopped domain of this name, and sends no event when
                # that is done.
                if "is already being removed" not in str(error) or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.01)
            else:
                domain = Domain(self, handle)
                self._stopped[domain.uuid] = asyncio.Event()
                return domain

    async def _register(self) -> None:
        def arrived(_conn: Any, handle: Any, event: int, _detail: int, _opaque: Any) -> None:
            # Runs in libvirt's thread.  The loop may already be closed when the process ends.
            change, uuid = _CHANGES.get(event), handle.UUIDString()
            if change is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._changed, uuid, change)

        self._registered = await self._call(
            lambda: self._connection.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, arrived, None
            )
        )

    def _changed(self, uuid: str, change: DomainChange) -> None:
        if change is DomainChange.STOPPED and uuid in self._stopped:
            self._stopped[uuid].set()
        if uuid in self._listeners:
            self._listeners[uuid](change)

    async def _call(
        self, function: Callable[[], T], timeout: float = _CALL_TIMEOUT, pid: int = 0
    ) -> T:
        """Run a blocking call in a thread.  Raises HypervisorFailed, HypervisorSilent.

        The time in which the QEMU `pid`, which answers, waits for a processor does not count.
        """
        try:
            return await within(timeout, pid, self._loop.run_in_executor(self._executor, function))
        except libvirt.libvirtError as error:
            raise HypervisorFailed(f"libvirt: {error}", code=error.get_error_code()) from error
        except TimeoutError as error:
            raise HypervisorSilent(f"libvirt did not answer within {timeout:g} s") from error


class Domain:
    """One running domain."""

    def __init__(self, hypervisor: Hypervisor, handle: Any) -> None:
        self._hypervisor = hypervisor
        self._handle = handle
        self.uuid: str = handle.UUIDString()
        self.pid = 0
        """Its QEMU, once that is known."""

    async def resume(self, *, timeout: float = _CALL_TIMEOUT) -> None:
        """Start or continue its CPU."""
        await self._hypervisor._call(self._handle.resume, timeout, self.pid)

    async def suspend(self, *, timeout: float = _CALL_TIMEOUT) -> None:
        """Stop its CPU; QEMU continues to run."""
        await self._hypervisor._call(self._handle.suspend, timeout, self.pid)

    async def destroy(self) -> None:
        """End its QEMU; do nothing if it has already ended."""
        try:
            await self._hypervisor._call(self._handle.destroy)
        except HypervisorFailed as error:
            if error.code not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
                raise

    async def state(self) -> RunState:
        """Return its current state."""
        try:
            number = (await self._hypervisor._call(self._handle.state))[0]
        except HypervisorFailed as error:
            if error.code == libvirt.VIR_ERR_NO_DOMAIN:
                return RunState.GONE
            raise
        return _STATES.get(number, RunState.RUNNING)

    async def xml(self) -> str:
        """Return its live XML."""
        return str(await self._hypervisor._call(self._handle.XMLDesc))

    async def monitor(self, line: str, *, timeout: float = _CALL_TIMEOUT) -> str:
        """Run a command of QEMU's human monitor; return its output, stripped.

        An error of QEMU is output too ("Error: ...").
        """
        answer = await self._hypervisor._call(
            lambda: libvirt_qemu.qemuMonitorCommand(
                self._handle, line, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
            ),
            timeout,
            self.pid,
        )
        return str(answer).strip()

    async def code_page(self) -> str | None:
        """Return the page of code that its CPU executes, None if QEMU does not report it."""
        try:
            return instruction_page(await self.monitor("info registers"))
        except HypervisorFailed as error:
            _log.debug("a guest's registers", uuid=self.uuid, error=str(error))
            return None

    async def stopped(self, *, timeout: float) -> None:
        """Wait until libvirt has removed it, so that its name and uuid can be used again.

        Raises HypervisorSilent after `timeout` seconds.
        """
        event = self._hypervisor._stopped[self.uuid]
        # Checked after the event was made, so that no stop is missed.
        if await self._hypervisor.find(self.uuid) is None:
            return
        try:
            async with asyncio.timeout(timeout):
                await event.wait()
        except TimeoutError as error:
            raise HypervisorSilent(
                f"libvirt has not removed domain {self.uuid} after {timeout:g} s"
            ) from error


async def finish(work: Coroutine[None, None, None]) -> None:
    """Await work to its end even if the caller is cancelled; then raise the cancellation.

    A change that libvirt has made must also be recorded here.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is not None:
            _log.warning("failed after its caller was cancelled", error=str(task.exception()))
        raise


def opening_error(text: str, target: str) -> DeployError:
    """Return the error for a libvirt at `target` that cannot be opened and reports `text`."""
    if "Failed to parse user" in text or "Failed to parse group" in text:
        return CannotRunHere(
            f"libvirt needs a user account that this host does not have: {text}",
            remedy="run: addgroup --system libvirt-qemu; adduser --system --ingroup libvirt-qemu"
            " --disabled-login --home /var/lib/libvirt --no-create-home libvirt-qemu",
        )
    if "driver.pid" in text or "already open" in text:
        return AlreadyUp(
            f"libvirt at {target} is in use: {text}",
            remedy="end the process that uses it, or choose another directory (--dir)",
        )
    if "Failed to create state dir" in text:  # without root, libvirt keeps files in the home
        return CannotRunHere(
            f"libvirt cannot write its files: {text}",
            remedy="set XDG_CACHE_HOME to a directory that this user may write",
        )
    if target.startswith(EMBED):
        return CannotRunHere(
            f"cannot open {target}: {text}",
            remedy=how_to_install("qemu-system-x86_64", DRIVER),
        )
    return CannotRunHere(
        f"cannot open {target}: {text}",
        remedy=f"start libvirt's daemon and check your permission, or use --connect {EMBED}",
    )


def _dotted(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"

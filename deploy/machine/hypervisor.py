"""Libvirt's domains for asyncio, over one connection (see `connection`)."""

from __future__ import annotations

import asyncio
import enum
import re
import shlex
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import structlog

from deploy.errors import CannotRunHere, HypervisorFailed, HypervisorLost, HypervisorSilent
from deploy.host.files import check_path, sweep_links
from deploy.machine.boot_watch import instruction_page
from deploy.machine.connection import CALL_TIMEOUT, Connection, libvirt, libvirt_qemu
from deploy.machine.domain_xml import disk_in_xml, identity_in_xml, owner_in_xml, with_threads
from deploy.machine.embed import carried_root, check_owner, embed_uri, prepare_root
from deploy.machine.qemu import adopt_orphans, note_start, suits_io_uring
from deploy.machine.spec import EMBED

__all__ = ["DomainChange", "Domain", "Hypervisor", "RunState", "finish"]

T = TypeVar("T")

_OPEN_TIMEOUT = 60.0
"""Seconds for a daemon to answer; one that is started by its socket probes QEMU first."""

_START_TIMEOUT = 300.0
"""Seconds; 0.4 are usual.  If a daemon's QEMUs run as a user that may not open /dev/kvm, libvirt
probes QEMU again at each start: up to 60 were measured."""

_REMOVAL_TIMEOUT = 10.0
"""Seconds for libvirt to remove a stopped domain, so that its name can be used again."""

_NO_IO_URING = re.compile("io[ _]uring")
"""In the errors of libvirt and QEMU where io_uring cannot be used: in many containers, say."""

_ENDED = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)
"""Libvirt's errors if a domain does not run any more."""

_UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)
"""With all that somebody may have added to a definition."""

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
    MISSED = "missed"  # events may have been missed while the connection was lost


_CHANGES = {
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: DomainChange.SUSPENDED,
    libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED: DomainChange.SUSPENDED,
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


class Hypervisor:
    """One connection to libvirt, used from the asyncio loop that opened it.  Close it after use.

    If libvirt's daemon ends or hangs, calls raise HypervisorLost until it is connected again.
    """

    def __init__(self, uri: str, root: Path | None) -> None:
        self.uri = uri
        self._root = root
        self._io_uring = True  # until a QEMU could not use it
        self._connection: Connection | None = None
        self._listeners: dict[str, Callable[[DomainChange], None]] = {}
        self._stopped: dict[str, asyncio.Event] = {}

    @classmethod
    async def open(
        cls,
        uri: str,
        *,
        root: Path | None = None,
        capabilities: Path | None = None,
        timeout: float | None = _OPEN_TIMEOUT,
    ) -> Hypervisor:
        """Open libvirt at `uri` within `timeout` seconds; `root` is the embedded one's directory.

        A process can hold one embedded libvirt, and a root belongs to one process.  Domains that a
        former owner of the root left running are found again.  Raises AlreadyUp if another process
        has the root, CannotRunHere without libvirt, HypervisorFailed for other errors.
        """
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
                    error_code="TV0704",
                ) from error
            sweep_links()
            target = embed_uri(carried_root(root))
        hypervisor = cls(uri, root if uri == EMBED else None)
        hypervisor._connection = await Connection.open(
            target,
            arrived=hypervisor._arrived,
            reopened=hypervisor._catch_up,
            timeout=timeout,
        )
        try:
            if hypervisor._root is not None:
                check_owner(hypervisor._root)
        except HypervisorFailed:
            await hypervisor.close()
            raise
        return hypervisor

    @property
    def problem(self) -> str:
        """Why libvirt cannot be used now, and the remedy; empty if it can."""
        return self._opened().problem

    def require(self) -> None:
        """Raise HypervisorLost if libvirt cannot be used now."""
        if self.problem:
            raise HypervisorLost(self.problem)

    async def close(self) -> None:
        """Close the connection; the domains continue to run.  Does not wait for a hanging call."""
        await self._opened().close()

    async def start_paused(
        self, xml: str, begun: Callable[[int | None], Awaitable[None]] | None = None
    ) -> Domain:
        """Start the domain that `xml` describes, its CPU stopped.

        `begun` gets the pid as soon as there is a QEMU, long before this returns, and None at the
        end.  Only for the embedded libvirt: a daemon's files belong to another process.
        """
        if begun is None or self._root is None:
            return await self._start_paused(xml)
        pid_file = self._root / "run" / "qemu" / f"{identity_in_xml(xml)[0]}.pid"
        noting = asyncio.create_task(note_start(pid_file, begun), name="note a start")
        try:
            return await self._start_paused(xml)
        finally:
            noting.cancel()
            await asyncio.wait([noting])
            await begun(None)
            if not noting.cancelled():
                noting.result()  # raise its error

    async def _start_paused(self, xml: str) -> Domain:
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

        def lookup(connection: Any) -> bool:
            return bool(connection.lookupByUUIDString(uuid).isActive())

        try:
            if not await self._call(lookup):
                return None
        except HypervisorFailed as error:
            if error.code == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise
        self._stopped.setdefault(uuid, asyncio.Event())
        return Domain(self, uuid)

    async def remove(self, uuid: str, owner: tuple[str, str]) -> bool:
        """End and undefine the domain with this uuid if it has the mark of `owner`.

        Return False if there is one without that mark, which is left alone.
        """

        def remove(connection: Any) -> bool:
            try:
                domain = connection.lookupByUUIDString(uuid)
                if owner_in_xml(domain.XMLDesc()) != owner:
                    return False
                persistent = domain.isPersistent()
                if domain.isActive():
                    domain.destroy()
                if persistent:  # somebody defined it
                    domain.undefineFlags(_UNDEFINE)
            except libvirt.libvirtError as error:
                if error.get_error_code() not in _ENDED:
                    raise
            return True

        return await self._call(remove)

    async def version(self) -> tuple[str, str]:
        """Return the versions of libvirt and of QEMU."""
        numbers = await self._call(
            lambda connection: (connection.getLibVersion(), connection.getVersion())
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
        else:
            await self._make_room(xml)
        uuid = identity_in_xml(xml)[1]
        deadline = time.monotonic() + _REMOVAL_TIMEOUT
        if not self._io_uring or not suits_io_uring(Path(disk_in_xml(xml))):
            xml = with_threads(xml)
        while True:
            try:
                await self._call(
                    lambda connection, xml=xml: connection.createXML(  # type: ignore[misc]
                        xml, libvirt.VIR_DOMAIN_START_PAUSED
                    ),
                    _START_TIMEOUT,
                )
            except HypervisorFailed as error:
                if _NO_IO_URING.search(str(error)) and xml != with_threads(xml):
                    _log.info("QEMU cannot use io_uring", error=str(error))
                    self._io_uring, xml = False, with_threads(xml)
                    continue
                # Libvirt is still removing the stopped domain of this name, and sends no event when
                # that is done.
                if "is already being removed" not in str(error) or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.01)
            else:
                self._stopped[uuid] = asyncio.Event()
                return Domain(self, uuid)

    async def _make_room(self, xml: str) -> None:
        """Remove a former domain of this guest: one that somebody defined, restored or reverted.

        Raises HypervisorFailed if another domain has its name or uuid.
        """
        name, uuid = identity_in_xml(xml)
        owner = owner_in_xml(xml)
        assert owner is not None

        def other(connection: Any) -> str:
            for domain in connection.listAllDomains():
                if name == domain.name() or uuid == domain.UUIDString():
                    return f"{domain.name()} (uuid {domain.UUIDString()})"
            return ""

        await self.remove(uuid, owner)
        if found := await self._call(other):
            virsh = f"virsh -c {shlex.quote(self.uri)}"
            raise HypervisorFailed(
                f"libvirt has another domain {found}: this node cannot start its guest {owner[1]}, "
                f"{name} (uuid {uuid})",
                remedy=f"if nobody needs that domain: {virsh} destroy {name}; {virsh} undefine "
                f"{name}",
                error_code="TV0112",
            )

    def _arrived(self, uuid: str, event: int) -> None:
        if event in _CHANGES:
            self._changed(uuid, _CHANGES[event])

    async def _catch_up(self) -> None:
        """Find out what happened to the domains while the connection was lost."""
        for uuid, event in self._stopped.items():
            if not event.is_set() and await self.find(uuid) is None:
                self._changed(uuid, DomainChange.STOPPED)
        for listener in list(self._listeners.values()):
            listener(DomainChange.MISSED)

    def _changed(self, uuid: str, change: DomainChange) -> None:
        if change is DomainChange.STOPPED and uuid in self._stopped:
            self._stopped[uuid].set()
        if uuid in self._listeners:
            self._listeners[uuid](change)

    def _opened(self) -> Connection:
        assert self._connection is not None
        return self._connection

    async def _call(
        self, function: Callable[[Any], T], timeout: float = CALL_TIMEOUT, pid: int = 0
    ) -> T:
        return await self._opened().call(function, timeout, pid)


class Domain:
    """One running domain, known by its uuid, so that it outlives the connection."""

    def __init__(self, hypervisor: Hypervisor, uuid: str) -> None:
        self._hypervisor = hypervisor
        self.uuid = uuid
        self.pid = 0
        """Its QEMU, once that is known."""

    async def resume(self, *, timeout: float = CALL_TIMEOUT) -> None:
        """Start or continue its CPU."""
        await self._call(lambda domain: domain.resume(), timeout)

    async def suspend(self, *, timeout: float = CALL_TIMEOUT) -> None:
        """Stop its CPU; QEMU continues to run."""
        await self._call(lambda domain: domain.suspend(), timeout)

    async def destroy(self) -> None:
        """End its QEMU; do nothing if it has already ended."""
        try:
            await self._call(lambda domain: domain.destroy())
        except HypervisorFailed as error:
            if error.code not in _ENDED:
                raise

    async def state(self) -> RunState:
        """Return its current state."""
        try:
            number = (await self._call(lambda domain: domain.state()))[0]
        except HypervisorFailed as error:
            if error.code == libvirt.VIR_ERR_NO_DOMAIN:
                return RunState.GONE
            raise
        return _STATES.get(number, RunState.RUNNING)

    async def xml(self) -> str:
        """Return its live XML."""
        return await self._call(lambda domain: str(domain.XMLDesc()))

    async def monitor(self, line: str, *, timeout: float = CALL_TIMEOUT) -> str:
        """Run a command of QEMU's human monitor; return its output, stripped.

        An error of QEMU is output too ("Error: ...").
        """
        answer = await self._call(
            lambda domain: libvirt_qemu.qemuMonitorCommand(
                domain, line, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
            ),
            timeout,
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

    async def _call(self, function: Callable[[Any], T], timeout: float = CALL_TIMEOUT) -> T:
        return await self._hypervisor._call(
            lambda connection: function(connection.lookupByUUIDString(self.uuid)),
            timeout,
            self.pid,
        )


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
            _log.warning(
                "failed after its caller was cancelled",
                error=str(task.exception()),
                error_code="TV0127",
            )
        raise


def _dotted(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"

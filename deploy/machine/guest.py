"""One VM: started, snapshotted, restored, killed.  It is always in one state of ``GuestState``.

Three ways lead to a running guest in its clean state, the fastest first:

``loadvm``  QEMU runs: load the snapshot in its monitor.                  0.05 to 0.1 s
``start``   QEMU has ended: start a new one paused, then load the snapshot.
``boot``    No usable snapshot: boot cold and take a new one.             seconds

QEMU's end, seen by a pidfd, changes the state at any ``await``: each step then checks it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Literal

import structlog

from deploy.errors import GuestEnded, GuestNeverReady, HypervisorFailed, HypervisorLost, WrongState
from deploy.host.cpu_share import FULL_SHARE, Mechanism
from deploy.machine import qemu
from deploy.machine.account import Account, confine
from deploy.machine.boot_share import BootShare
from deploy.machine.boot_watch import OVERALL, BootWatch, watch_boot
from deploy.machine.console import Console
from deploy.machine.debug_stub import debug_stub
from deploy.machine.domain_xml import domain_xml
from deploy.machine.guest_state import StateHolder
from deploy.machine.hypervisor import Domain, DomainChange, Hypervisor, RunState, finish
from deploy.machine.spec import GuestSpec, GuestState, Progress, RestoreMethod
from deploy.machine.template import keep_template

__all__ = ["Guest"]

BOOT_DEADLINE = 60.0
"""Seconds that a booting guest may make no progress (see `boot_watch`); boots take 4."""
BOOT_ATTEMPTS = 3
"""Boots in a row, if the kernel panics or QEMU ends: on a busy host both can be bad luck."""
_SNAPSHOT = "clean"
_ENDED = "its QEMU ended"
_MONITOR_TIMEOUT = 3.0
"""Seconds in which a QEMU that runs `loadvm` is idle; then it is killed.  See `contention`."""
_SAVE_TIMEOUT = 30.0
_CLEAR_TIMEOUT = 40.0
"""Seconds for libvirt to notice that a QEMU has ended: 0.2 measured, or until init reaps it."""

_log = structlog.get_logger(__name__)


class Guest(StateHolder):
    """One VM of a node; nothing starts before `attach`.

    Its operations exclude each other, but `kill` and `end` do not wait.  `snapshotted` is called
    with its name once its disk holds a clean snapshot.
    """

    def __init__(
        self,
        spec: GuestSpec,
        *,
        node_uuid: str,
        account: Account | None = None,
        boot_deadline: float = BOOT_DEADLINE,
        snapshotted: Callable[[str], object] = lambda _: None,
    ) -> None:
        super().__init__(spec.name)
        self.spec = spec
        self.console = Console()
        self.clean = False  # whether its disk holds the clean snapshot
        self._boot_deadline = boot_deadline
        self._hypervisor: Hypervisor | None = None
        self._account = account
        self._xml = domain_xml(spec, node_uuid=node_uuid, run_as=account and account.label)
        self._domain: Domain | None = None
        self._process: qemu.QemuProcess | None = None
        self._snapshotted = snapshotted
        self._yielding = BootShare(spec.nice)
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._booting: BootWatch | None = None
        self._ending = ""  # why its QEMU ends, for the log

    def attach(self, hypervisor: Hypervisor) -> None:
        """Use this connection to libvirt."""
        self._hypervisor = hypervisor

    @property
    def link_socket(self) -> Path:
        """The unix socket of its link."""
        return Path(self.spec.link_socket)

    @property
    def pid(self) -> int | None:
        """The process id of its running QEMU, or None."""
        return self._process.pid if self._process is not None and self._process.alive else None

    def ram_file(self) -> Path:
        """Return the file that is the guest's memory, if its spec has `ram_file`.

        Raises WrongState if it has no QEMU, FileNotFoundError if its memory is not a file.
        """
        if self.pid is None:
            raise WrongState(f"guest {self.name} has no QEMU")
        return qemu.ram_file(self.pid, size=self.spec.memory_mib << 20)

    def tail(self, count: int = 20) -> list[str]:
        """Return the last lines of its console."""
        return self.console.tail(count)

    async def boot(
        self, progress: Progress = lambda _: None, *, share: int = FULL_SHARE
    ) -> Mechanism:
        """Start it cold and wait for its ready line; start it again if it panics.

        Its link does not exist yet: `snapshot_clean` or `open_link` makes it.  Until `lift_share`
        it is bounded to `share` percent of one processor; returns how.  Raises, its VM ended,
        GuestNeverReady (BOOT_ATTEMPTS failed, or one made no progress), HypervisorFailed.
        """
        async with self._lock:
            self._yielding.share = share
            await self._boot(progress)
            return self._yielding.how if share < FULL_SHARE else "none"

    async def lift_share(self) -> None:
        """End the bound of `boot`."""
        await self._yielding.lift(self.pid)

    async def snapshot_clean(self, template: Path | None = None) -> str:
        """Take the clean snapshot and open the link.

        Returns the SHA-256 of the snapshot's copy at `template`; "" without one, or if that failed.
        """
        async with self._lock:
            return await self._snapshot(template)

    def open_link(self) -> None:
        """Rename the link's socket, to which libvirt lets owner and group connect."""
        with contextlib.suppress(FileNotFoundError):
            Path(self.spec.bound_link).replace(self.spec.link_socket)

    async def restore(self) -> RestoreMethod:
        """Restore its clean snapshot, whatever its state, by the fastest method that works.

        Raises what `boot` raises; HypervisorLost if it has to wait for libvirt's daemon.
        """
        self._attached().require()
        async with self._lock:
            begin = time.monotonic()
            await self.yield_processor(False)  # the steps below have deadlines
            path: Literal["loadvm", "start", "boot"] = "boot"
            if await self._load_in_place():
                path = "loadvm"
            elif await self._start_from_snapshot() or await self._start_from_snapshot():
                path = "start"  # tried twice: a cold boot costs far more
            else:
                await self._boot()
                await self._snapshot()
            seconds = time.monotonic() - begin
        _log.info("guest restored", guest=self.name, path=path, seconds=round(seconds, 3))
        return RestoreMethod(path=path, seconds=seconds)

    async def kill(self, why: str = "killed") -> None:
        """End its QEMU at once, as a crash would; return when the process has ended."""
        if self._process is None or not self._process.alive:
            return
        self._ending = why
        try:
            self._process.kill()
        except PermissionError:  # a system libvirt's QEMU, of another user: libvirt can end it
            if self._domain is not None:
                await self._domain.destroy()
        await self._process.wait()

    async def pause(self) -> None:
        """Stop its CPU.  Raises WrongState unless it is READY."""
        async with self._lock:
            self._require(GuestState.READY)
            await finish(self._set_paused(True))

    async def resume(self) -> None:
        """Continue its CPU.  Raises WrongState unless it is PAUSED."""
        async with self._lock:
            self._require(GuestState.PAUSED)
            await finish(self._set_paused(False))

    async def reset(self) -> None:
        """Press its reset button: it boots again, or its QEMU ends if `on_reset` is "end".

        Returns once QEMU has accepted the command.  Raises WrongState unless it is READY or PAUSED.
        """
        await self._command("system_reset")

    async def nmi(self) -> None:
        """Send its CPU a non-maskable interrupt.  Raises WrongState as `reset` does."""
        await self._command("nmi")

    async def registers(self) -> str:
        """Return its CPU's registers as QEMU prints them.  Raises WrongState as `reset` does."""
        async with self._lock:
            self._require(GuestState.READY, GuestState.PAUSED)
            return await self._running_domain().monitor("info registers", timeout=_MONITOR_TIMEOUT)

    @property
    def yields(self) -> bool:
        """Whether its QEMU has the lowest priority."""
        return self._yielding.yields(self.pid)

    async def yield_processor(self, yields: bool) -> None:
        """Give its QEMU the lowest priority, or the other guests' (see `GuestPort`)."""
        await self._yielding.set(self.pid, yields)

    @contextlib.asynccontextmanager
    async def debug_stub(self) -> AsyncIterator[Path]:
        """Have QEMU's debug stub listen on a unix socket: see `debug_stub.debug_stub`.

        Raises WrongState unless it is READY or PAUSED, HypervisorFailed if QEMU has no stub.
        """
        async with self._lock:
            self._require(GuestState.READY, GuestState.PAUSED)
            domain, alive = self._running_domain(), lambda: self.pid is not None
            async with debug_stub(domain, self.spec, self._account, alive) as path:
                yield path

    async def adopt(self, domain: Domain, pid: int) -> None:
        """Take over a running VM that a former owner left; it has its clean snapshot.

        Raises HypervisorFailed or OSError if that fails; the VM is then unchanged.
        """
        async with self._lock:
            self._require(GuestState.ABSENT)
            state = await domain.state()
            if state not in (RunState.RUNNING, RunState.PAUSED):
                raise GuestEnded(f"guest {self.name} is {state.value}, not running")
            self._watch(domain, pid)
            await self._listen_to_console()
            if self.pid is None:
                raise GuestEnded(f"guest {self.name} ended as it was adopted")
            self.clean = True
            # Its former owner may have ended with another priority set, or during a bounded boot.
            await self._yielding.lift(pid)
            await self._yielding.end(pid)
            self._set(
                GuestState.PAUSED if state is RunState.PAUSED else GuestState.READY, "adopted"
            )
            self.open_link()

    def mark_dead(self) -> None:
        """Record that its QEMU ended while it had no owner; it can be restored."""
        self._require(GuestState.ABSENT)
        self._set(GuestState.DEAD, "found dead")

    async def end(self) -> None:
        """End it for good: its QEMU, sockets and disk.  Does nothing if there is nothing."""
        await self.kill("ended")
        async with self._lock:
            await self.kill("ended")  # a restore may have started it again
            try:
                await self._clear_away()
            except HypervisorFailed as error:  # its QEMU has ended, and must leave no files
                self._warn("libvirt keeps an ended guest", "TV0124", error)
            if self.state is GuestState.DEAD:
                self._set(GuestState.ABSENT, "ended")
            self.clean = False
            for path in self.spec.files:
                Path(path).unlink(missing_ok=True)

    def release(self) -> None:
        """Stop watching it; it continues to run, for the next owner to adopt."""
        if self._hypervisor is not None:
            self._hypervisor.listen(self.spec.uuid, None)
        if self._process is not None:
            self._process.close()
        for task in self._tasks:
            task.cancel()

    # ---- the steps; the caller holds the lock

    async def _boot(self, progress: Progress = lambda _: None) -> None:
        self._require(GuestState.ABSENT, GuestState.DEAD)
        self.clean = False
        ends = time.monotonic() + OVERALL * self._boot_deadline
        for attempt in range(1, BOOT_ATTEMPTS + 1):
            watch = BootWatch(self._boot_deadline)
            await self._boot_once(watch, ends, lambda text: progress(f"{self.name} is {text}"))
            if self._is(GuestState.READY):
                return
            last = qemu.last_message(Path(self.spec.qemu_log)) if watch.ended else ""
            why = f"{watch.failure or self._ending}{last}, at attempt {attempt}"
            if attempt == BOOT_ATTEMPTS or not watch.transient:
                raise GuestNeverReady(self.name, why=why, console=self.tail())
            self._warn("a boot failed", "TV0101", why)
            progress(f"{self.name} does not boot ({why}): trying again")

    async def _boot_once(self, watch: BootWatch, ends: float, progress: Progress) -> None:
        """Boot until the watch is over.  The guest is READY if it succeeded, else DEAD."""
        await self._clear_away()
        await qemu.make_snapshot_disk(Path(self.spec.disk))
        self._set(GuestState.BOOTING, "started")
        deaf = self.console.listen(watch.line)
        self._booting = watch
        try:
            pid, domain = (await self._start()).pid, self._running_domain()
            await domain.resume()
            await watch_boot(watch, pid=pid, page=domain.code_page, ends=ends, progress=progress)
            if watch.ready and self._is(GuestState.BOOTING):
                self._set(GuestState.READY, watch.ready)
            else:
                await self._abort_start(watch.failure)
        except BaseException:
            await self._abort_start()
            raise
        finally:
            self._booting = None
            deaf()

    async def _snapshot(self, template: Path | None = None) -> str:
        self._require(GuestState.READY)
        # Loading proves that it can be loaded, and makes QEMU drop its translation of the boot.
        for line in (f"savevm {_SNAPSHOT}", f"loadvm {_SNAPSHOT}"):
            await self._monitor(line, timeout=_SAVE_TIMEOUT)
        digest = ""
        if template is not None:
            try:
                digest = await keep_template(self._running_domain(), Path(self.spec.disk), template)
            except (OSError, HypervisorFailed) as error:
                self._warn("no template of a guest", "TV0152", error)
        self.clean = True
        self._snapshotted(self.name)
        self.open_link()
        return digest

    async def _load_in_place(self) -> bool:
        """Load the snapshot in the running QEMU; return False, QEMU killed, if that fails."""
        if not self.clean or not self._is(GuestState.READY, GuestState.PAUSED):
            await self.kill("it cannot be restored in place")
            return False
        paused = self._is(GuestState.PAUSED)
        self._set(GuestState.RESTORING, "its snapshot is loaded")
        assert self._process is not None
        self._process.wake()
        try:
            await self._monitor(f"loadvm {_SNAPSHOT}", timeout=_MONITOR_TIMEOUT)
            # After `loadvm` a QEMU that somebody else paused remains paused.
            if paused or await self._running_domain().state() is RunState.PAUSED:
                await self._running_domain().resume(timeout=_MONITOR_TIMEOUT)
        except HypervisorFailed as error:
            self._warn("cannot restore a guest in place", "TV0125", error)
            await self.kill("its snapshot could not be loaded")
            if isinstance(error, HypervisorLost):
                raise
            return False
        except asyncio.CancelledError:
            await self._abort_start()
            raise
        if not self._is(GuestState.RESTORING):
            return False  # its QEMU ended meanwhile
        self._set(GuestState.READY, "restored")
        return True

    async def _start_from_snapshot(self) -> bool:
        """Start a new QEMU and load the snapshot before it runs; return False if that fails."""
        if not self.clean or not self._is(GuestState.DEAD, GuestState.ABSENT):
            return False
        await self._clear_away()
        self._set(GuestState.RESTORING, "started from its snapshot")
        try:
            await self._start()
            await self._monitor(f"loadvm {_SNAPSHOT}", timeout=_SAVE_TIMEOUT)
            await self._running_domain().resume()
        except HypervisorFailed as error:
            self._warn("cannot start a guest's snapshot", "TV0125", error)
            await self._abort_start()
            if isinstance(error, HypervisorLost):
                raise
            return False
        except BaseException:
            await self._abort_start()
            raise
        if not self._is(GuestState.RESTORING):
            return False
        self.open_link()
        self._set(GuestState.READY, "restored")
        return True

    async def _start(self) -> qemu.QemuProcess:
        """Start QEMU paused, watch its process, read its console from the first byte."""
        self.console.mark("started")
        domain = self._domain = await self._attached().start_paused(self._xml, self._yielding.begin)
        try:
            if (pid := qemu.find_qemu(self.spec.uuid, disk=Path(self.spec.disk))) is None:
                raise ProcessLookupError("its QEMU is not found")
            process = self._watch(domain, pid)
            confine(self.spec, self._account)
            await self._listen_to_console()
        except OSError as error:
            raise GuestEnded(f"guest {self.name} ended as it started: {error}") from error
        await self._yielding.started(pid)
        qemu.limit_file_size(pid, memory_mib=self.spec.memory_mib, account=self._account)
        return process

    async def _clear_away(self) -> None:
        """Wait until libvirt has removed the ended domain, so that another may start."""
        if self._domain is not None and self.pid is None:
            await self._domain.stopped(timeout=_CLEAR_TIMEOUT)
            self._domain = None

    async def _abort_start(self, why: str = "its start failed") -> None:
        """End what a failed start has left; the state is DEAD afterwards."""
        if self._process is not None and self._process.alive:
            await self.kill(why)
        elif self._domain is not None:
            with contextlib.suppress(HypervisorLost):  # its next start removes it
                await self._domain.destroy()
        if self.state is not GuestState.DEAD:
            self._set(GuestState.DEAD, why)

    async def _listen_to_console(self) -> None:
        reader, writer = await asyncio.open_unix_connection(self.spec.console_socket)
        self._task(self.console.take(reader, writer), "console")

    async def _set_paused(self, paused: bool) -> None:
        domain = self._running_domain()
        await (domain.suspend if paused else domain.resume)(timeout=_MONITOR_TIMEOUT)
        self._set(GuestState.PAUSED if paused else GuestState.READY, "by request")

    async def _command(self, line: str) -> None:
        async with self._lock:
            self._require(GuestState.READY, GuestState.PAUSED)
            await self._monitor(line, timeout=_MONITOR_TIMEOUT)

    async def _monitor(self, line: str, *, timeout: float) -> None:
        """Run a monitor command that prints nothing on success.  Raises HypervisorFailed."""
        if answer := await self._running_domain().monitor(line, timeout=timeout):
            raise HypervisorFailed(f"QEMU of guest {self.name} rejected `{line}`: {answer}")

    # ---- changes from outside

    def _watch(self, domain: Domain, pid: int) -> qemu.QemuProcess:
        self._domain = domain
        domain.pid = pid
        self._ending = _ENDED
        self._process = qemu.QemuProcess(pid, self._exited)
        self._attached().listen(self.spec.uuid, self._changed)
        return self._process

    def _exited(self) -> None:
        if self._booting is not None:  # an end that was ordered is not tried again
            self._booting.end(self._ending, transient=self._ending == _ENDED)
        if not self._is(GuestState.ABSENT, GuestState.DEAD):
            self._set(GuestState.DEAD, self._ending)

    def _changed(self, change: DomainChange) -> None:
        """Check the state after somebody, perhaps this process, may have changed it."""
        if change is not DomainChange.STOPPED and not self._lock.locked():
            self._task(self._refresh_state(), "refresh state")

    async def _refresh_state(self) -> None:
        async with self._lock:
            if self.pid is None or not self._is(GuestState.READY, GuestState.PAUSED):
                return
            try:
                paused = await self._running_domain().state() is RunState.PAUSED
            except HypervisorFailed as error:
                self._warn("a guest's state is unknown", "TV0126", error)
                return
            if self._is(GuestState.READY if paused else GuestState.PAUSED):
                self._set(GuestState.PAUSED if paused else GuestState.READY, "from outside")

    # ---- helpers

    def _warn(self, event: str, error_code: str, error: object) -> None:
        _log.warning(event, guest=self.name, error=str(error), error_code=error_code)

    def _attached(self) -> Hypervisor:
        if self._hypervisor is None:
            raise WrongState(f"the node of guest {self.name} is not up")
        return self._hypervisor

    def _running_domain(self) -> Domain:
        if self._domain is None or self.pid is None:
            raise GuestEnded(f"guest {self.name} has no QEMU")
        return self._domain

    def _task(self, coroutine: Coroutine[None, None, None], what: str) -> None:
        task = asyncio.create_task(coroutine, name=f"{self.name} {what}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

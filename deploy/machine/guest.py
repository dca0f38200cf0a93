"""One VM: started, snapshotted, put back, killed; always in one of the states of `states`.

cold boot    start, kernel, agent: seconds               boot
fast path    QEMU lives: `loadvm` in its monitor         put_back -> "loadvm"
after a kill new QEMU, started paused, then `loadvm`     put_back -> "start"
else         cold boot and a new clean snapshot          put_back -> "boot"
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Literal

import structlog

from deploy.errors import GuestNeverReady, HypervisorFailed, WrongState
from deploy.host.priority import hold_back, step_aside
from deploy.host.process import QemuProcess, bound_files, find_qemu, ram_file, resident_bytes
from deploy.host.waits import first_of, to_its_end
from deploy.machine.console import Console
from deploy.machine.debug_stub import DebugStub
from deploy.machine.disk import make_snapshot_disk
from deploy.machine.domain_xml import domain_xml
from deploy.machine.hypervisor import Domain, DomainChange, Hypervisor, RunState
from deploy.machine.spec import GuestSpec
from deploy.machine.states import TRANSITIONS, GuestEvent, GuestState, RestoreMethod

__all__ = ["BOOT_DEADLINE", "READY_LINE", "Guest", "RestoreMethod"]

READY_LINE = "trivisor: ready"
"""What the agent's line on the console starts with once it can be spoken to."""

BOOT_DEADLINE = 60.0
"""Seconds; 4 are usual, 20 to 40 have been seen of three guests on two busy cores."""

_SNAPSHOT = "clean"

_MONITOR_TIMEOUT = 3.0
"""Seconds for `loadvm` in a living QEMU (0.1 to 0.2 measured); after that it is given up."""

_SAVE_TIMEOUT = 30.0

_CLEAR_TIMEOUT = 40.0
"""Seconds that libvirt may take to notice that a QEMU has ended (0.2 measured; for one
that it adopted, and that init must bury, as long as init takes)."""

_FILE_SLACK_MIB = 64
"""How much QEMU may write to a file beyond twice the guest's memory; a snapshot is smaller."""

_LIVING = frozenset({GuestState.BOOTING, GuestState.READY, GuestState.PAUSED, GuestState.RESTORING})

_log = structlog.get_logger(__name__)


class Guest:
    """One VM of a node. Its operations exclude each other, but `kill` and `end` do not wait."""

    def __init__(
        self,
        spec: GuestSpec,
        hypervisor: Hypervisor,
        *,
        node_uuid: str,
        run_as: str | None = None,
    ) -> None:
        self.spec = spec
        self.console = Console()
        self.state = GuestState.ABSENT
        self.clean = False
        """Whether its disk holds the clean snapshot."""
        self._hypervisor = hypervisor
        self._xml = domain_xml(spec, node_uuid=node_uuid, run_as=run_as)
        self._domain: Domain | None = None
        self._process: QemuProcess | None = None
        self._aside: int | None = None  # the pid of a QEMU that yields
        self._fixed: int | None = None  # the pid of one that could not be taken back
        self._lock = asyncio.Lock()
        self._subscribers: list[Callable[[GuestEvent], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = ""

    @property
    def name(self) -> str:
        """The node's name for it: g1, g2, ..."""
        return self.spec.name

    @property
    def pid(self) -> int | None:
        """The process id of its living QEMU, or None."""
        return self._process.pid if self._process is not None and self._process.alive else None

    @property
    def memory_bytes(self) -> int | None:
        """The memory that its QEMU holds on the host, in bytes, or None where it has no QEMU."""
        try:
            return None if self.pid is None else resident_bytes(self.pid)
        except OSError:
            return None

    def ram_file(self) -> Path:
        """Return the file that is the guest's memory, if its spec has `ram_file`.

        Raises WrongState if it has no QEMU, FileNotFoundError if its memory is not a file.
        """
        if self.pid is None:
            raise WrongState(f"guest {self.name} has no QEMU")
        return ram_file(self.pid, size=self.spec.memory_mib << 20)

    def tail(self, count: int = 20) -> list[str]:
        """Return the last lines of its console."""
        return self.console.tail(count)

    def subscribe(self, callback: Callable[[GuestEvent], None]) -> Callable[[], None]:
        """Have `callback` called at each change of state; the function returned ends that."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    async def boot(self, deadline: float = BOOT_DEADLINE) -> float:
        """Start it cold and return the seconds to its line that it is ready.

        Its link is not there yet: `snapshot_clean` or `open_link` makes it. Raises GuestNeverReady
        `deadline` seconds after its processor was let run (the VM is ended then), HypervisorFailed
        if QEMU cannot be started.
        """
        async with self._lock:
            return await self._boot(deadline)

    async def snapshot_clean(self) -> float:
        """Keep this moment as the state to put back, open the link; return the seconds taken."""
        async with self._lock:
            return await self._snapshot()

    def open_link(self) -> None:
        """Give the link's socket its real name: from now on the voter may speak to the guest."""
        bound = Path(self.spec.bound_link)
        if bound.exists():
            bound.replace(self.spec.link_socket)

    async def put_back(self, deadline: float = BOOT_DEADLINE) -> RestoreMethod:
        """Put it back to its clean snapshot, whatever its state, by the quickest path that works.

        `deadline` is in seconds, and for a cold boot, if it comes to that. Raises as `boot` does.
        """
        async with self._lock:
            begin = time.monotonic()
            await self.yield_processor(False)  # there are deadlines to keep
            path: Literal["loadvm", "start", "boot"] = "boot"
            if await self._put_back_living():
                path = "loadvm"
            elif await self._start_from_snapshot() or await self._start_from_snapshot():
                path = "start"  # the second time too: a cold boot costs far more
            else:
                await self._boot(deadline)
                await self._snapshot()
            taken = RestoreMethod(path=path, seconds=time.monotonic() - begin)
        _log.info("put back", guest=self.name, path=path, seconds=round(taken.seconds, 3))
        return taken

    async def kill(self, why: str = "killed") -> None:
        """End its QEMU at once, as a crash would, and return when the process is gone."""
        if self._process is None or not self._process.alive:
            return
        self._ending = why
        try:
            self._process.kill()
        except PermissionError:
            # A system libvirt's QEMU is another user's: libvirt may end it, we may not.
            if self._domain is not None:
                await self._domain.destroy()
        await self._process.gone()

    async def pause(self) -> None:
        """Stop its processor. Raises WrongState unless it is READY."""
        async with self._lock:
            self._require(GuestState.READY)
            await to_its_end(self._turn(GuestState.PAUSED, "paused"))

    async def resume(self) -> None:
        """Let it run again. Raises WrongState unless it is PAUSED."""
        async with self._lock:
            self._require(GuestState.PAUSED)
            await to_its_end(self._turn(GuestState.READY, "resumed"))

    async def reset(self) -> None:
        """Press its reset button: it boots anew, or its QEMU ends if its spec has `on_reset` "end".

        Returns once QEMU has taken the order. Raises WrongState unless it is READY or PAUSED.
        """
        await self._order("system_reset")

    async def nmi(self) -> None:
        """Send its processor a non-maskable interrupt. Raises WrongState as `reset` does."""
        await self._order("nmi")

    async def _order(self, line: str) -> None:
        async with self._lock:
            self._require(GuestState.READY, GuestState.PAUSED)
            await self._monitor(line, timeout=_MONITOR_TIMEOUT)

    async def registers(self) -> str:
        """Return its processor's registers in QEMU's words. Raises WrongState, as `reset` does."""
        async with self._lock:
            self._require(GuestState.READY, GuestState.PAUSED)
            return await self._living_domain().monitor("info registers", timeout=_MONITOR_TIMEOUT)

    @property
    def yields(self) -> bool:
        """Whether its QEMU leaves the host's processors to others."""
        return self.pid is not None and self._aside == self.pid

    async def yield_processor(self, yields: bool) -> None:
        """Have its QEMU go behind those of the other guests, or beside them again.

        Not where it could not come back. A return that failed is tried anew by the next call.
        """
        pid = self.pid
        if pid is None or yields == self.yields or (yields and pid == self._fixed):
            return
        if yields:
            self._aside = pid
            if await step_aside(pid, nice=self.spec.nice):
                return
            self._fixed = pid
        if await hold_back(pid, nice=self.spec.nice):
            self._aside = None

    @contextlib.asynccontextmanager
    async def debug_stub(self, path: Path | None = None) -> AsyncIterator[Path]:
        """Have QEMU's debug stub listen on a unix socket, which is given; then no stub is left.

        Its processor stops as a debugger connects; afterwards it is as it was before. Raises
        WrongState unless it is READY or PAUSED, HypervisorFailed if QEMU cannot do it.
        """
        path = path or Path(self.spec.console_socket).with_suffix(".gdb")
        async with self._lock:
            self._require(GuestState.READY, GuestState.PAUSED)
            stub = DebugStub(self._living_domain(), path)
            await stub.start()
            try:
                yield path
            finally:
                await to_its_end(self._end_stub(stub))

    async def _end_stub(self, stub: DebugStub) -> None:
        stub.path.unlink(missing_ok=True)
        if self.pid is not None:  # else it was killed meanwhile, and the stub with it
            await stub.end()

    async def _turn(self, state: GuestState, why: str) -> None:
        domain = self._living_domain()
        act = domain.suspend if state is GuestState.PAUSED else domain.resume
        await act(timeout=_MONITOR_TIMEOUT)
        self._set(state, why)

    async def adopt(self, domain: Domain, pid: int) -> None:
        """Take over a running VM that a former owner left; it has its clean snapshot.

        Raises HypervisorFailed or OSError if it cannot be taken over; it is as it was then.
        """
        async with self._lock:
            self._require(GuestState.ABSENT)
            state = await domain.state()
            if state not in (RunState.RUNNING, RunState.PAUSED):
                raise HypervisorFailed(f"guest {self.name} is {state.value}, not running")
            self._watch(domain, pid)
            await self._listen_to_console()
            if self.pid is None:
                raise HypervisorFailed(f"guest {self.name} ended as it was adopted")
            self.clean = True
            # Its former owner may have died before it did so, or while the guest yielded.
            if not await hold_back(pid, nice=self.spec.nice):
                self._aside = pid
            running = state is RunState.RUNNING
            self._set(GuestState.READY if running else GuestState.PAUSED, "adopted")
            self.open_link()

    def found_dead(self) -> None:
        """Note that its QEMU ended while nobody owned it; it may be put back."""
        self._require(GuestState.ABSENT)
        self._set(GuestState.DEAD, "found dead")

    async def end(self) -> None:
        """End it for good: no QEMU, no sockets, no disk. Nothing happens if there is nothing."""
        await self.kill("ended")
        async with self._lock:
            await self.kill("ended")  # one that was being put back may live again
            try:
                await self._clear_away()
            except HypervisorFailed as error:
                # Its QEMU is gone, which is what counts; that libvirt is slow to see it is no
                # reason to leave the rest behind.
                _log.warning("not cleared away", guest=self.name, error=str(error))
            if self.state is GuestState.DEAD:
                self._set(GuestState.ABSENT, "ended")
            self.clean = False
            spec = self.spec
            for path in (spec.link_socket, spec.bound_link, spec.console_socket, spec.disk):
                Path(path).unlink(missing_ok=True)

    def let_go(self) -> None:
        """Stop watching it; it runs on, for the next owner to adopt."""
        self._hypervisor.listen(self.spec.uuid, None)
        if self._process is not None:
            self._process.close()
        for task in self._tasks:
            task.cancel()

    # ---- the steps; the lock is held ---------------------------------------------------------

    async def _boot(self, deadline: float) -> float:
        self._require(GuestState.ABSENT, GuestState.DEAD)
        begin = time.monotonic()
        await self._clear_away()
        self.clean = False
        await make_snapshot_disk(Path(self.spec.disk))
        self._set(GuestState.BOOTING, "started")
        ready = self.console.line(READY_LINE)
        try:
            await self._start()
            assert self._process is not None
            await self._living_domain().resume()
            await first_of(ready, self._process.gone(), timeout=deadline)
            if not ready.done():
                alive = self._process.alive
                said = "" if self._ending == "its QEMU ended" else f" ({self._ending})"
                raise GuestNeverReady(
                    self.name,
                    why=f"not within {deadline:g} s" if alive else f"its QEMU ended{said}",
                    console=self.console.tail(),
                )
            self._set(GuestState.READY, ready.result())
        except BaseException:
            await self._give_up()
            raise
        finally:
            ready.cancel()
        return time.monotonic() - begin

    async def _snapshot(self) -> float:
        self._require(GuestState.READY)
        begin = time.monotonic()
        await self._monitor(f"savevm {_SNAPSHOT}", timeout=_SAVE_TIMEOUT)
        self.clean = True
        self.open_link()
        return time.monotonic() - begin

    async def _put_back_living(self) -> bool:
        """Load the snapshot in the QEMU that lives; False if there is none, or it is past help."""
        if not self.clean or not self._is(GuestState.READY, GuestState.PAUSED):
            await self.kill("not fit to be put back")
            return False
        paused = self._is(GuestState.PAUSED)
        self._set(GuestState.RESTORING, "being put back")
        assert self._process is not None
        self._process.wake()
        try:
            await self._monitor(f"loadvm {_SNAPSHOT}", timeout=_MONITOR_TIMEOUT)
            # A QEMU paused behind our back stays so after `loadvm`.
            if paused or await self._living_domain().state() is RunState.PAUSED:
                await self._living_domain().resume(timeout=_MONITOR_TIMEOUT)
        except HypervisorFailed as error:
            _log.warning("not put back in place", guest=self.name, error=str(error))
            await self.kill("its QEMU could not be put back")
            return False
        except asyncio.CancelledError:
            await self._give_up()
            raise
        if not self._is(GuestState.RESTORING):
            return False  # its QEMU ended meanwhile
        self._set(GuestState.READY, "put back")
        return True

    async def _start_from_snapshot(self) -> bool:
        """Start a new QEMU and load the snapshot into it before it runs; False if that fails."""
        if not self.clean or not self._is(GuestState.DEAD, GuestState.ABSENT):
            return False
        await self._clear_away()
        self._set(GuestState.RESTORING, "started from its snapshot")
        try:
            await self._start()
            await self._monitor(f"loadvm {_SNAPSHOT}", timeout=_SAVE_TIMEOUT)
            await self._living_domain().resume()
        except HypervisorFailed as error:
            _log.warning("not started from its snapshot", guest=self.name, error=str(error))
            await self._give_up()
            return False
        except BaseException:
            await self._give_up()
            raise
        if not self._is(GuestState.RESTORING):
            return False
        self.open_link()
        self._set(GuestState.READY, "put back")
        return True

    async def _start(self) -> None:
        """Start QEMU paused, take hold of the process, read its console from the first byte."""
        self.console.mark("started")
        domain = await self._hypervisor.start_paused(self._xml)
        self._domain = domain
        try:
            pid = find_qemu(self.spec.uuid, naming=self.spec.disk)
            if pid is None:
                raise ProcessLookupError("its QEMU is not found")
            self._watch(domain, pid)
            await self._listen_to_console()
        except OSError as error:
            raise HypervisorFailed(f"guest {self.name} ended as it started: {error}") from error
        await hold_back(pid, nice=self.spec.nice)
        bound_files(pid, limit=(2 * self.spec.memory_mib + _FILE_SLACK_MIB) << 20)

    async def _clear_away(self) -> None:
        """Wait until libvirt has done with the QEMU that ended, so that another may start."""
        if self._domain is not None and self.pid is None:
            await self._domain.stopped(timeout=_CLEAR_TIMEOUT)
            self._domain = None

    async def _give_up(self) -> None:
        """After a start that failed: no QEMU is left, and the state is DEAD."""
        if self._process is not None and self._process.alive:
            await self.kill("given up")
        elif self._domain is not None:
            await self._domain.destroy()
        if self.state is not GuestState.DEAD:
            self._set(GuestState.DEAD, "given up")

    async def _listen_to_console(self) -> None:
        reader, writer = await asyncio.open_unix_connection(self.spec.console_socket)
        self._task(self.console.take(reader, writer), "console")

    async def _monitor(self, line: str, *, timeout: float) -> None:
        """Give QEMU's monitor a command that answers nothing when it has worked."""
        answer = await self._living_domain().monitor(line, timeout=timeout)
        if answer:
            raise HypervisorFailed(f"QEMU of guest {self.name} refused `{line}`: {answer}")

    # ---- what comes by itself ----------------------------------------------------------------

    def _watch(self, domain: Domain, pid: int) -> None:
        self._domain = domain
        self._ending = "its QEMU ended"
        self._process = QemuProcess(pid, self._exited)
        self._hypervisor.listen(self.spec.uuid, self._changed)

    def _exited(self) -> None:
        if self.state in _LIVING:
            self._set(GuestState.DEAD, self._ending)

    def _changed(self, change: DomainChange) -> None:
        """Somebody, perhaps we, stopped or resumed the processor: see how things stand."""
        if change in (DomainChange.SUSPENDED, DomainChange.RESUMED) and not self._lock.locked():
            self._task(self._look(), "look")

    async def _look(self) -> None:
        async with self._lock:
            if self.pid is None or not self._is(GuestState.READY, GuestState.PAUSED):
                return
            try:
                paused = await self._living_domain().state() is RunState.PAUSED
            except HypervisorFailed as error:
                _log.warning("state unknown", guest=self.name, error=str(error))
                return
            seen = GuestState.PAUSED if paused else GuestState.READY
            if self._is(GuestState.READY, GuestState.PAUSED) and not self._is(seen):
                self._set(seen, "by another than us")

    # ---- small things ------------------------------------------------------------------------

    def _set(self, state: GuestState, why: str) -> None:
        before = self.state
        if state not in TRANSITIONS[before]:
            raise WrongState(f"guest {self.name} cannot become {state.value}: it is {before.value}")
        self.state = state
        _log.info("guest", guest=self.name, state=state.value, why=why, pid=self.pid)
        event = GuestEvent(guest=self.name, before=before, after=state, why=why, pid=self.pid)
        for callback in list(self._subscribers):
            callback(event)

    def _is(self, *states: GuestState) -> bool:
        """Whether it is in one of the states now; an exit of QEMU can change that at any await."""
        return self.state in states

    def _require(self, *states: GuestState) -> None:
        if self.state not in states:
            wanted = " or ".join(state.value for state in states)
            raise WrongState(f"guest {self.name} is {self.state.value}, not {wanted}")

    def _living_domain(self) -> Domain:
        if self._domain is None or self.pid is None:
            raise HypervisorFailed(f"guest {self.name} has no QEMU")
        return self._domain

    def _task(self, coroutine: Coroutine[None, None, None], what: str) -> None:
        task = asyncio.create_task(coroutine, name=f"{self.name} {what}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

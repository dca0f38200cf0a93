"""A node's machines: n guests, brought up side by side, adopted from a dead owner, ended."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit

import msgspec
import structlog

from deploy.errors import CannotRunHere, DeployError, ForeignState, WrongState
from deploy.host.paths import check_socket_paths
from deploy.host.process import QemuProcess, find_qemu
from deploy.machine.domain_xml import owner_in_xml
from deploy.machine.embed import keep_capabilities
from deploy.machine.guest import Guest
from deploy.machine.hypervisor import Domain, Hypervisor
from deploy.machine.records import MachinesLock, MachinesRecord, forget, read_record, write_record
from deploy.machine.spec import GuestSpec, NodeSpec, socket_paths
from deploy.machine.states import GuestEvent

__all__ = ["GuestArrival", "NodeMachines", "Progress"]

T = TypeVar("T")

Progress = Callable[[str], None]
"""Is told, in a few words, of each step that takes time."""

_END_TIMEOUT = 20.0
"""Seconds for a killed QEMU to end: the kernel frees its memory, no more."""

_log = structlog.get_logger(__name__)


class GuestArrival(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a guest came to be ready, in how many seconds, and how long its clean snapshot took.

    `adopted`: it ran already. `restarted`: its QEMU had ended, its snapshot was there. `dead`: its
    QEMU had ended, and it was left so.
    """

    how: Literal["booted", "adopted", "restarted", "dead"]
    seconds: float
    snapshot_seconds: float = 0.0


class NodeMachines:
    """The guests of one directory, owned by this process from `up` until `down` or `let_go`.

    `capabilities` is a directory that outlives nodes, for what libvirt learns of QEMU (it saves the
    first start of a new node some seconds). A process can own one node of the embedded libvirt.
    """

    def __init__(self, spec: NodeSpec, *, capabilities: Path | None = None) -> None:
        self.spec = spec
        self._directory = Path(spec.directory)
        self._root = Path(spec.root)
        self._capabilities = capabilities
        self._lock = MachinesLock(self._directory)
        self._hypervisor: Hypervisor | None = None
        self._guests: dict[str, Guest] = {}
        self._subscribers: list[Callable[[GuestEvent], None]] = []

    @property
    def guests(self) -> dict[str, Guest]:
        """The guests by name, in order; empty before `up`."""
        return self._guests

    def subscribe(self, callback: Callable[[GuestEvent], None]) -> Callable[[], None]:
        """Have `callback` called at each change of a guest; the function returned ends that."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    async def up(
        self, progress: Progress = lambda _: None, *, take_over: bool = False
    ) -> dict[str, GuestArrival]:
        """Have all guests ready, each with its clean snapshot; return how each came, by name.

        What a former owner of this very node left running is adopted; another node's leftovers in
        this directory are ended first. If a guest does not come up, all are ended. Where the rest
        of the node serves already (`take_over`), a guest that does not run is left dead for its
        owner to put back, and an error ends none.

        Raises PathTooLong before anything is started, AlreadyUp, ForeignState, CannotRunHere,
        GuestNeverReady, HypervisorFailed.
        """
        check_socket_paths(socket_paths(self.spec))
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise CannotRunHere(
                f"cannot make the directory {self._directory}: {error.strerror}",
                remedy="choose a directory (--dir) that you may write to",
            ) from error
        self._lock.take()
        try:
            record = self._own_record()
            if record is not None and record.spec != self.spec:
                progress("ending the guests of a former node")
                await self._end_leftovers(record.spec)
                record = None
            clean = set(record.clean) if record is not None else set()
            write_record(MachinesRecord(spec=self.spec, clean=tuple(sorted(clean))))
            await self._open()
            return await self._bring_all(clean, progress, take_over=take_over)
        except BaseException:
            await (self.let_go() if take_over else self.down())
            raise

    async def adopt(self, progress: Progress = lambda _: None) -> dict[str, GuestArrival]:
        """`up`, for a node that was up: raises WrongState where nothing of it is written down."""
        if read_record(self._directory) is None:
            raise WrongState(f"no node was up in {self._directory}")
        return await self.up(progress)

    async def versions(self) -> tuple[str, str]:
        """Return the versions of libvirt and of QEMU. Raises WrongState if it is not up."""
        return await self._living().version()

    async def down(self) -> None:
        """End exactly this node's guests, also those that a former owner left; remove its files.

        Nothing happens where there is nothing. Raises AlreadyUp if another process owns them,
        ForeignState if what is written down cannot be read.
        """
        if not self._directory.exists():
            return
        self._lock.take()
        try:
            for guest in self._guests.values():
                await guest.kill("ended")
            await _all(guest.end() for guest in self._guests.values())
            await self._close()
            self._guests.clear()
            record = self._own_record()
            if record is not None:
                await self._end_leftovers(record.spec)
            self._lock.remove()
        finally:
            self._lock.release()

    async def let_go(self) -> None:
        """Stop owning the guests; they run on, and the next `up` of this node adopts them."""
        for guest in self._guests.values():
            guest.let_go()
        self._guests.clear()
        await self._close()
        self._lock.release()

    # ---- up ----------------------------------------------------------------------------------

    def _own_record(self) -> MachinesRecord | None:
        """What is written down here. Raises ForeignState if there are files but no record."""
        record = read_record(self._directory)
        if record is None:
            stray = [path for path in _files(self.spec) if path.exists()]
            if stray:
                raise ForeignState(
                    f"{stray[0]} exists, but no record of a node stands beside it",
                    remedy="see what it is and remove it, or choose another directory (--dir)",
                )
        return record

    async def _open(self) -> None:
        self._hypervisor = await Hypervisor.open(
            self.spec.uri, root=self._root, capabilities=self._capabilities
        )
        for spec in self.spec.guests:
            guest = Guest(
                spec, self._hypervisor, node_uuid=self.spec.uuid, run_as=_account(self.spec)
            )
            guest.subscribe(self._passed_on)
            self._guests[spec.name] = guest

    async def _bring_all(
        self, clean: set[str], progress: Progress, *, take_over: bool
    ) -> dict[str, GuestArrival]:
        begin = time.monotonic()
        done = await _all(
            self._bring(guest, clean, progress, take_over=take_over)
            for guest in self._guests.values()
        )
        if self.spec.embedded and self._capabilities is not None:
            keep_capabilities(self._root, self._capabilities)
        _log.info("node up", guests=len(done), seconds=round(time.monotonic() - begin, 3))
        return dict(zip(self._guests, done, strict=True))

    async def _bring(
        self, guest: Guest, clean: set[str], progress: Progress, *, take_over: bool
    ) -> GuestArrival:
        begin = time.monotonic()
        if guest.name in clean:
            if await self._adopt(guest):
                arrival = GuestArrival(how="adopted", seconds=time.monotonic() - begin)
                progress(f"{guest.name} runs already: adopted")
                return arrival
            await self._end_one(guest.spec)
            guest.clean = Path(guest.spec.disk).exists()
            if take_over:
                guest.found_dead()
                progress(f"{guest.name} does not run: left to repair")
                return GuestArrival(how="dead", seconds=time.monotonic() - begin)
            if guest.clean:
                await guest.put_back(self.spec.boot_deadline)
                arrival = GuestArrival(how="restarted", seconds=time.monotonic() - begin)
                progress(f"{guest.name} put back in {arrival.seconds:.1f} s")
                return arrival
        else:
            await self._end_one(guest.spec)
        await guest.boot(self.spec.boot_deadline)
        seconds = time.monotonic() - begin
        snapshot = await guest.snapshot_clean()
        clean.add(guest.name)
        write_record(MachinesRecord(spec=self.spec, clean=tuple(sorted(clean))))
        progress(f"{guest.name} ready in {seconds:.1f} s")
        return GuestArrival(how="booted", seconds=seconds, snapshot_seconds=snapshot)

    async def _adopt(self, guest: Guest) -> bool:
        """Take over a guest if it runs and is ours beyond doubt."""
        domain = await self._living().find(guest.spec.uuid)
        pid = find_qemu(guest.spec.uuid, naming=guest.spec.disk)
        if domain is None or pid is None or not await self._is_ours(domain, guest.spec):
            return False
        try:
            await guest.adopt(domain, pid)
        except (DeployError, OSError) as error:
            _log.warning("cannot adopt", guest=guest.name, pid=pid, error=str(error))
            return False
        return True

    async def _is_ours(self, domain: Domain, spec: GuestSpec) -> bool:
        return owner_in_xml(await domain.xml()) == (self.spec.uuid, spec.name)

    # ---- down --------------------------------------------------------------------------------

    async def _end_leftovers(self, spec: NodeSpec) -> None:
        """End what still runs of a node that is written down here, and remove its files."""
        if not spec.embedded:
            await self._end_in_daemon(spec)
        for guest in spec.guests:
            await self._end_one(guest)
        for path in _files(spec):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        forget(self._directory)

    async def _end_one(self, spec: GuestSpec) -> None:
        """End a guest's QEMU by what its own command line proves; nothing if there is none."""
        pid = find_qemu(spec.uuid, naming=spec.disk)
        if pid is None:
            return
        process = QemuProcess(pid, lambda: None)
        _log.info("ending a QEMU left running", guest=spec.name, pid=pid)
        try:
            process.kill()
            async with asyncio.timeout(_END_TIMEOUT):
                await process.gone()
            if self._hypervisor is not None:
                domain = await self._hypervisor.find(spec.uuid)
                if domain is not None:
                    await domain.stopped(timeout=_END_TIMEOUT)
        finally:
            process.close()

    async def _end_in_daemon(self, spec: NodeSpec) -> None:
        """End a node's domains by way of the daemon that runs them (their QEMUs may be its own)."""
        hypervisor = await Hypervisor.open(spec.uri)
        try:
            for guest in spec.guests:
                domain = await hypervisor.find(guest.uuid)
                if domain is not None and owner_in_xml(await domain.xml()) == (
                    spec.uuid,
                    guest.name,
                ):
                    await domain.destroy()
        finally:
            await hypervisor.close()

    async def _close(self) -> None:
        if self._hypervisor is not None:
            hypervisor, self._hypervisor = self._hypervisor, None
            await hypervisor.close()

    def _living(self) -> Hypervisor:
        if self._hypervisor is None:
            raise WrongState(f"the node in {self._directory} is not up")
        return self._hypervisor

    def _passed_on(self, event: GuestEvent) -> None:
        for callback in list(self._subscribers):
            callback(event)


def _account(spec: NodeSpec) -> str | None:
    """Whom a system libvirt is to run our QEMUs as: us."""
    if spec.embedded or not urlsplit(spec.uri).path.endswith("/system"):
        return None
    return f"+{os.geteuid()}:+{os.getegid()}"


def _files(spec: NodeSpec) -> list[Path]:
    """All that a node's machines put into its directory, beside the record."""
    paths = [Path(spec.root)] if spec.embedded else []
    for guest in spec.guests:
        paths += map(Path, (guest.link_socket, guest.bound_link, guest.console_socket, guest.disk))
    return paths


async def _all(coroutines: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """Run them side by side; the first error ends the others and is raised by itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        # Not ``except*``: Python 3.11.2, Debian 12's, wraps what is raised in there into a group.
        _, others = errors.split(DeployError)
        if others is not None:
            raise
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]

"""The machines of one node: its guests, brought up in parallel, adopted, ended.

An owner that dies leaves its QEMUs running.  The next owner adopts those that it can prove to be
the node's: the record in the directory, libvirt's metadata and QEMU's command line must agree.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import structlog

from deploy.errors import (
    CannotRunHere,
    DeployError,
    ForeignState,
    HypervisorFailed,
    WrongState,
)
from deploy.host.files import check_path, check_socket_paths, sweep_links
from deploy.machine.accel import read_facts
from deploy.machine.account import account_of, open_to_guests
from deploy.machine.domain_xml import owner_in_xml
from deploy.machine.embed import keep_capabilities
from deploy.machine.guest import Guest
from deploy.machine.hypervisor import Domain, Hypervisor
from deploy.machine.ownership import (
    MachinesLock,
    MachinesRecord,
    read_record,
    remove_record,
    write_record,
)
from deploy.machine.qemu import QemuProcess, find_qemu
from deploy.machine.spec import GuestEvent, GuestSpec, NodeSpec, Progress, socket_paths
from guests.image import Image, ImageError, verify

__all__ = ["GuestArrival", "NodeMachines"]

T = TypeVar("T")

_END_TIMEOUT = 20.0
"""Seconds for a killed QEMU to end; the kernel only has to free its memory."""

_REOPEN_PAUSE = 1.0
"""Seconds between attempts to open libvirt: nothing reports that its daemon has returned."""

_log = structlog.get_logger(__name__)


class GuestArrival(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a guest became ready with its clean snapshot, and in how many seconds.

    `adopted`: it ran already.  `restarted`: its QEMU had ended, and its snapshot was restored.
    `dead`: its QEMU had ended, and it was left so.
    """

    how: Literal["booted", "adopted", "restarted", "dead"]
    seconds: float


class NodeMachines:
    """The guests of one directory, owned by this process from `up` until `down` or `release`.

    `capabilities` is a directory that outlives nodes.  It caches what libvirt finds out about QEMU,
    which saves a new node's first start some seconds.  `image`, if given, is verified by `up`.  A
    process can own one node of the embedded libvirt.
    """

    def __init__(
        self, spec: NodeSpec, *, capabilities: Path | None = None, image: Image | None = None
    ) -> None:
        self.spec = spec
        self._image = image
        self._directory = Path(spec.directory)
        self._root = Path(spec.root)
        self._capabilities = capabilities
        self._lock = MachinesLock(self._directory)
        self._hypervisor: Hypervisor | None = None
        self._waiting = ""
        self._guests: dict[str, Guest] = {}
        self._subscribers: list[Callable[[GuestEvent], object]] = []
        self._host = ""
        self._loadable = False  # whether this host's QEMU may load the record's snapshots
        self._renew_guests()

    @property
    def guests(self) -> dict[str, Guest]:
        """The guests by name, in order; absent before `up`, and other objects after each `up`."""
        return self._guests

    @property
    def problem(self) -> str:
        """Why libvirt cannot be used now, and the remedy; empty if it can."""
        return self._hypervisor.problem if self._hypervisor is not None else self._waiting

    def subscribe(self, callback: Callable[[GuestEvent], object]) -> None:
        """Call `callback` at each change of a guest's state."""
        self._subscribers.append(callback)

    async def up(
        self, progress: Progress = lambda _: None, *, take_over: bool = False
    ) -> dict[str, GuestArrival]:
        """Make all guests ready, each with its clean snapshot; return how each became so, by name.

        Adopts the guests that a former owner of this node left running, and ends those of another
        node in this directory.  If a guest does not become ready, all are ended.  With `take_over`
        the rest of the node serves already: a guest that does not run is left dead, to be restored
        later, and an error ends no guest.

        Raises PathUnusable before anything is started, AlreadyUp, ForeignState, CannotRunHere,
        GuestNeverReady, HypervisorFailed, DeployError if the image is damaged.
        """
        if self._image is not None:
            try:
                verify(self._image)
            except ImageError as error:
                raise DeployError(str(error), error_code="TV0206") from error
        check_path(self.spec.directory)
        check_socket_paths(socket_paths(self.spec))
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise CannotRunHere(
                f"cannot make the directory {self._directory}: {error.strerror}",
                remedy="choose a writable directory (--dir)",
                error_code="TV0704",
            ) from error
        self._lock.take()
        try:
            record = self._own_record()
            if record is not None and record.spec != self.spec:
                progress("ending the guests of a former node")
                await self._end_leftovers(record.spec)
                record = None
            clean = set(record.clean) if record is not None else set()
            self._host = (await read_facts()).snapshots
            self._loadable = record is not None and record.host == self._host
            self._record_clean(clean)
            open_to_guests(self.spec)
            await self._open(progress, patient=take_over)
            return await self._bring_all(clean, progress, take_over=take_over)
        except BaseException:
            await (self.release() if take_over else self.down())
            raise

    async def versions(self) -> tuple[str, str]:
        """Return the versions of libvirt and of QEMU.  Raises WrongState if the node is not up."""
        return await self._connected().version()

    async def down(self) -> None:
        """End exactly this node's guests, including those a former owner left; remove its files.

        Does nothing if there is nothing.  If the directory was moved or deleted meanwhile, ends the
        guests and leaves the files, as another node may have taken the path.  Raises AlreadyUp if
        another process owns them, ForeignState if the record cannot be read.
        """
        if self._hypervisor is not None:  # else these guests never started
            for guest in self._guests.values():
                await guest.kill("ended")
            if not self._lock.in_place:
                await self.release()
                return
        if not self._directory.exists():
            return
        self._lock.take()
        try:
            if self._hypervisor is not None:
                await _all(guest.end() for guest in self._guests.values())
            await self._close()
            record = self._own_record()
            if record is not None:
                await self._end_leftovers(record.spec)
            self._lock.remove()
        finally:
            self._lock.release()

    async def release(self) -> None:
        """Stop owning the guests; they continue to run, and the node's next `up` adopts them."""
        for guest in self._guests.values():
            guest.release()
        await self._close()
        self._lock.release()

    # ---- up

    def _renew_guests(self) -> None:
        """Replace the guests by new ones that are absent."""
        for spec in self.spec.guests:
            former = self._guests.get(spec.name)
            guest = self._guests[spec.name] = Guest(
                spec,
                node_uuid=self.spec.uuid,
                account=account_of(self.spec, spec),
                boot_deadline=self.spec.boot_deadline,
            )
            guest.subscribe(self._forward)
            if former is not None:
                guest.console = former.console  # it outlives the guest, for `trivisor logs`

    def _own_record(self) -> MachinesRecord | None:
        """Return the directory's record.  Raises ForeignState for files without a record."""
        record = read_record(self._directory)
        if record is None:
            stray = [path for path in _files(self.spec) if path.exists()]
            if stray:
                raise ForeignState(
                    f"{stray[0]} exists, but the directory has no node's record",
                    remedy="move this file away, or choose another directory (--dir)",
                    error_code="TV0705",
                )
        return record

    async def _open(self, progress: Progress, *, patient: bool) -> None:
        """Open libvirt.  With `patient`, wait for its daemon."""
        while self._hypervisor is None:
            try:
                self._hypervisor = await Hypervisor.open(
                    self.spec.uri,
                    root=self._root,
                    capabilities=self._capabilities,
                    **({"timeout": None} if patient else {}),
                )
            except CannotRunHere as error:
                if not patient or self.spec.embedded:
                    raise
                if str(error) != self._waiting:
                    progress(f"waiting for libvirt: {error}")
                self._waiting = str(error)
                await asyncio.sleep(_REOPEN_PAUSE)
        self._waiting = ""
        for guest in self._guests.values():
            guest.attach(self._hypervisor)

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
                progress(f"{guest.name} already runs: adopted")
                return arrival
            await self._end_one(guest.spec)
            guest.clean = self._loadable and Path(guest.spec.disk).exists()
            if take_over:
                guest.mark_dead()
                progress(f"{guest.name} does not run: repair will restore it")
                return GuestArrival(how="dead", seconds=time.monotonic() - begin)
            if guest.clean:
                await guest.restore()
                arrival = GuestArrival(how="restarted", seconds=time.monotonic() - begin)
                progress(f"{guest.name} restored in {arrival.seconds:.1f} s")
                return arrival
        else:
            await self._end_one(guest.spec)
        await guest.boot(progress)
        await guest.snapshot_clean()
        seconds = time.monotonic() - begin
        clean.add(guest.name)
        self._record_clean(clean)
        progress(f"{guest.name} ready in {seconds:.1f} s")
        return GuestArrival(how="booted", seconds=seconds)

    def _record_clean(self, clean: set[str]) -> None:
        write_record(MachinesRecord(spec=self.spec, clean=tuple(sorted(clean)), host=self._host))

    async def _adopt(self, guest: Guest) -> bool:
        """Take over a guest if it runs and is provably this node's; return whether it was."""
        domain = await self._connected().find(guest.spec.uuid)
        pid = find_qemu(guest.spec.uuid, disk=Path(guest.spec.disk))
        if domain is None or pid is None or not await _is_ours(domain, self.spec, guest.spec):
            return False
        try:
            await guest.adopt(domain, pid)
        except (DeployError, OSError) as error:
            _log.warning(
                "cannot adopt a guest",
                guest=guest.name,
                pid=pid,
                error=str(error),
                error_code="TV0128",
            )
            return False
        return True

    # ---- down

    async def _end_leftovers(self, spec: NodeSpec) -> None:
        """End what still runs of the recorded node, and remove its files."""
        if not spec.embedded:
            await self._end_in_daemon(spec)
        for guest in spec.guests:
            await self._end_one(guest)
        for path in _files(spec):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        sweep_links()
        remove_record(self._directory)

    async def _end_one(self, spec: GuestSpec) -> None:
        """End the QEMU whose command line proves that it is this guest's, if there is one."""
        pid = find_qemu(spec.uuid, disk=Path(spec.disk))
        if pid is None:
            return
        process = QemuProcess(pid, lambda: None)
        _log.info("ending a QEMU that was left running", guest=spec.name, pid=pid)
        try:
            process.kill()
            async with asyncio.timeout(_END_TIMEOUT):
                await process.wait()
            if self._hypervisor is not None:
                domain = await self._hypervisor.find(spec.uuid)
                if domain is not None:
                    await domain.stopped(timeout=_END_TIMEOUT)
        finally:
            process.close()

    async def _end_in_daemon(self, spec: NodeSpec) -> None:
        """End a node's domains through their daemon, if it answers.

        Their QEMUs may belong to another user.  Somebody may have defined the domains.
        """
        try:
            hypervisor = await Hypervisor.open(spec.uri, timeout=_END_TIMEOUT)
        except CannotRunHere as error:
            _log.warning(
                "the guests are ended without libvirt", error=str(error), error_code="TV0129"
            )
            return
        try:
            for guest in spec.guests:
                if not await hypervisor.remove(guest.uuid, (spec.uuid, guest.name)):
                    _log.warning(
                        "another node's domain is left",
                        guest=guest.name,
                        uuid=guest.uuid,
                        error_code="TV0112",
                    )
        except HypervisorFailed as error:
            _log.warning("libvirt keeps ended guests", error=str(error), error_code="TV0124")
        finally:
            await hypervisor.close()

    async def _close(self) -> None:
        if self._hypervisor is not None:
            hypervisor, self._hypervisor = self._hypervisor, None
            await hypervisor.close()
        self._renew_guests()

    def _connected(self) -> Hypervisor:
        if self._hypervisor is None:
            raise WrongState(f"the node in {self._directory} is not up")
        return self._hypervisor

    def _forward(self, event: GuestEvent) -> None:
        for callback in list(self._subscribers):
            callback(event)


async def _is_ours(domain: Domain, node: NodeSpec, guest: GuestSpec) -> bool:
    return owner_in_xml(await domain.xml()) == (node.uuid, guest.name)


def _files(spec: NodeSpec) -> list[Path]:
    """Return the paths that a node's machines create in its directory, without the record."""
    paths = [Path(spec.root)] if spec.embedded else []
    for guest in spec.guests:
        paths += map(Path, guest.files)
    return paths


async def _all(coroutines: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """Run them in parallel; the first error cancels the others and is raised alone."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        # Not ``except*``: Python 3.11.2 (Debian 12) wraps what is raised in it into a group.
        _, others = errors.split(DeployError)
        if others is not None:
            raise
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]

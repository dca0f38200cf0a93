"""The machines of one node: its guests, brought up in parallel, adopted, ended.

An owner that dies leaves its QEMUs running.  The next owner adopts those that it can prove to be
the node's: the record in the directory, libvirt's metadata and QEMU's command line must agree.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Iterable
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import structlog

from deploy.errors import (
    CannotRunHere,
    DeployError,
    ForeignState,
    WrongState,
)
from deploy.host.cpu_share import FULL_SHARE, Mechanism, sweep
from deploy.host.files import check_path, check_socket_paths
from deploy.machine.accel import read_facts
from deploy.machine.account import account_of, open_to_guests
from deploy.machine.domain_xml import owner_in_xml
from deploy.machine.embed import keep_capabilities
from deploy.machine.guest import Guest
from deploy.machine.hypervisor import Domain, Hypervisor
from deploy.machine.leftovers import end_guest, end_leftovers, node_files
from deploy.machine.ownership import (
    MachinesLock,
    MachinesRecord,
    read_record,
    write_record,
)
from deploy.machine.qemu import find_qemu
from deploy.machine.room import require_memory
from deploy.machine.spec import (
    GuestArrival,
    GuestEvent,
    GuestSpec,
    GuestState,
    NodeSpec,
    Progress,
    RestoreMethod,
    StartMethod,
    socket_paths,
)
from deploy.machine.template import TemplateDamaged, Templates
from guests.image import Image, ImageError, verify

__all__ = ["NodeMachines"]

T = TypeVar("T")

_REOPEN_PAUSE = 1.0
"""Seconds between attempts to open libvirt: nothing reports that its daemon has returned."""

_log = structlog.get_logger(__name__)


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
        self._clean: set[str] = set()  # the guests whose disks hold a clean snapshot
        self._templates = Templates(self._directory, {})
        self._slots = asyncio.Lock()
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
        self,
        progress: Progress = lambda _: None,
        *,
        take_over: bool = False,
        empty: Collection[str] | None = None,
    ) -> dict[str, GuestArrival]:
        """Make all guests ready, each with its clean snapshot; return how each became so, by name.

        `empty` names the slots in which no VM starts; those of the spec's `spares` by default.

        Adopts the guests that a former owner of this node left running, and ends those of another
        node in this directory.  If a guest does not become ready, all are ended.  With `take_over`
        the rest of the node serves already: a guest that does not run is left dead, to be restored
        later, a VM that a former owner started in an empty slot is adopted, and an error ends no
        guest.

        Raises PathUnusable before anything is started, AlreadyUp, ForeignState, CannotRunHere,
        GuestNeverReady, HypervisorFailed, DeployError if the image is damaged.
        """
        if self._image is not None:
            _verify(self._image)
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
            if record is not None and not record.spec.is_same_node(self.spec):
                progress("ending the guests of a former node")
                await end_leftovers(record.spec, self._hypervisor)
                record = None
            if record is not None and record.spec != self.spec:
                self.spec = record.spec  # a guest keeps the image that it was started with
                self._renew_guests()
            self._clean = set(record.clean) if record is not None else set()
            self._host = (await read_facts()).snapshots
            self._loadable = record is not None and record.host == self._host
            kept = record.templates if record is not None and self._loadable else {}
            self._templates = Templates(self._directory, kept)
            self._record()
            sweep()
            open_to_guests(self.spec)
            await self._open(progress, patient=take_over)
            spares = self.spec.spare_names if empty is None else frozenset(empty)
            return await self._bring_all(spares, progress, take_over=take_over)
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
                await end_leftovers(record.spec, self._hypervisor)
            self._lock.remove()
        finally:
            self._lock.release()

    # ---- one slot

    async def start(
        self,
        name: str,
        *,
        by: StartMethod = "clone",
        share: int = FULL_SHARE,
        image: Image | None = None,
        progress: Progress = lambda _: None,
    ) -> GuestArrival:
        """Start a VM in an empty slot, and return once it is ready with its clean snapshot.

        By "clone" it starts from a template; it is booted if there is none for this image, or if
        the template was damaged.  A boot is bounded to `share` percent of one processor, 0 to 100
        (see `cpu_share.limit`).  `image`, if not the slot's own, is verified first.

        Raises NotEnoughMemory before anything is started, WrongState unless the slot is empty,
        DeployError if the image is damaged, and what `Guest.boot` raises; the slot is empty then.
        """
        async with self._slots:
            guest = self._guests[name]
            if guest.state not in (GuestState.ABSENT, GuestState.DEAD):
                raise WrongState(f"guest {name} is {guest.state.value}: its slot is not empty")
            spec = guest.spec
            if image is not None:
                await asyncio.to_thread(_verify, image)
                spec = msgspec.structs.replace(
                    spec, kernel=str(image.kernel), initrd=str(image.initrd)
                )
            require_memory(spec)
            if guest.state is GuestState.DEAD:
                await guest.end()
            if spec != guest.spec:
                self.spec = self.spec.with_guest(spec)
                self._record()
                open_to_guests(self.spec)
                guest = self._renew_guest(spec)
            begin, bounded = time.monotonic(), "none"
            try:
                done = await self._clone(guest) if by == "clone" else None
                if done is None:
                    bounded = await self._boot(guest, progress, share)
            except BaseException:
                await guest.end()
                self._forget(guest)
                raise
            finally:
                await guest.lift_share()
            how: Literal["cloned", "booted"] = (
                "cloned" if done is not None and done.path == "start" else "booted"
            )
            return GuestArrival(how=how, seconds=time.monotonic() - begin, bounded=bounded)

    def initrd(self, name: str) -> str:
        """Return the path of the initramfs that the guest in a slot was started with."""
        return self._guests[name].spec.initrd

    async def end(self, name: str) -> None:
        """End the VM in a slot for good; the slot is empty afterwards.  Does nothing if it is."""
        async with self._slots:
            guest = self._guests[name]
            await guest.end()
            self._forget(guest)

    async def _clone(self, guest: Guest) -> RestoreMethod | None:
        """Start a guest from the template; return None if there is none that can be used."""
        try:
            if not await self._templates.clone(guest.spec):
                return None
        except (TemplateDamaged, OSError) as error:
            _log.warning("a template cannot be used", error=str(error), error_code="TV0151")
            self._record()
            return None
        guest.clean = True
        self._note_snapshot(guest.name)
        return await guest.restore()

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
            self._renew_guest(spec)

    def _renew_guest(self, spec: GuestSpec) -> Guest:
        former = self._guests.get(spec.name)
        guest = self._guests[spec.name] = Guest(
            spec,
            node_uuid=self.spec.uuid,
            account=account_of(self.spec, spec),
            boot_deadline=self.spec.boot_deadline,
            snapshotted=self._note_snapshot,
        )
        guest.subscribe(self._forward)
        if former is not None:
            guest.console = former.console  # it outlives the guest, for `trivisor logs`
        if self._hypervisor is not None:
            guest.attach(self._hypervisor)
        return guest

    def _own_record(self) -> MachinesRecord | None:
        """Return the directory's record.  Raises ForeignState for files without a record."""
        record = read_record(self._directory)
        if record is None:
            stray = [path for path in node_files(self.spec) if path.exists()]
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
        self, empty: frozenset[str], progress: Progress, *, take_over: bool
    ) -> dict[str, GuestArrival]:
        begin = time.monotonic()
        done = await _all(
            self._bring_spare(guest, take_over=take_over)
            if guest.name in empty
            else self._bring(guest, progress, take_over=take_over)
            for guest in self._guests.values()
        )
        if self.spec.embedded and self._capabilities is not None:
            keep_capabilities(self._root, self._capabilities)
        _log.info("node up", guests=len(done), seconds=round(time.monotonic() - begin, 3))
        return dict(zip(self._guests, done, strict=True))

    async def _bring(self, guest: Guest, progress: Progress, *, take_over: bool) -> GuestArrival:
        begin = time.monotonic()
        if guest.name in self._clean:
            if await self._adopt(guest):
                arrival = GuestArrival(how="adopted", seconds=time.monotonic() - begin)
                progress(f"{guest.name} already runs: adopted")
                return arrival
            await end_guest(guest.spec, self._hypervisor)
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
            await end_guest(guest.spec, self._hypervisor)
        await self._boot(guest, progress)
        seconds = time.monotonic() - begin
        progress(f"{guest.name} ready in {seconds:.1f} s")
        return GuestArrival(how="booted", seconds=seconds)

    async def _bring_spare(self, guest: Guest, *, take_over: bool) -> GuestArrival:
        """Adopt what a former owner started in an empty slot, if the rest of the node runs."""
        begin = time.monotonic()
        if take_over and guest.name in self._clean and await self._adopt(guest):
            return GuestArrival(how="adopted", seconds=time.monotonic() - begin)
        await end_guest(guest.spec, self._hypervisor)
        self._forget(guest)
        return GuestArrival(how="empty", seconds=time.monotonic() - begin)

    async def _boot(self, guest: Guest, progress: Progress, share: int = FULL_SHARE) -> Mechanism:
        """Boot a guest and take its snapshot, with a template if there is none for such a guest."""
        bounded = await guest.boot(progress, share=share)
        with self._templates.make(guest.spec, wanted=self.spec.spares > 0) as template:
            template.digest = await guest.snapshot_clean(template.path)
        self._record()
        return bounded

    def _note_snapshot(self, name: str) -> None:
        self._clean.add(name)
        self._record()

    def _forget(self, guest: Guest) -> None:
        """Record that a slot is empty, and remove its files.

        Once the node is down nothing may be written: another node may have taken the directory.
        """
        if not self._lock.in_place:
            return
        self._clean.discard(guest.name)
        self._record()
        for path in guest.spec.files:
            Path(path).unlink(missing_ok=True)

    def _record(self) -> None:
        clean, templates = tuple(sorted(self._clean)), self._templates.digests
        write_record(
            MachinesRecord(spec=self.spec, clean=clean, host=self._host, templates=templates)
        )

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


def _verify(image: Image) -> None:
    """Raise DeployError if an image is damaged."""
    try:
        verify(image)
    except ImageError as error:
        raise DeployError(str(error), error_code="TV0206") from error


async def _is_ours(domain: Domain, node: NodeSpec, guest: GuestSpec) -> bool:
    return owner_in_xml(await domain.xml()) == (node.uuid, guest.name)


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

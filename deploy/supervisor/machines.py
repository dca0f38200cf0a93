"""The machines of a node as the supervisor sees them: ``deploy.machine.node`` behind the ports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from deploy.errors import DeployError, WrongState
from deploy.machine.guest import Guest
from deploy.machine.node import NodeMachines
from deploy.machine.spec import NodeSpec, plan_node
from deploy.machine.states import GuestState
from deploy.node.interfaces import Progress
from deploy.node.records import Layout, NodeRecord, cache_directory
from guests.image import COMMAND_LINE, Image, ImageError, verify

__all__ = ["SupervisedGuest", "SupervisedGuests", "make_node", "node_spec"]


class SupervisedGuest:
    """One guest, also while the node has not made it yet."""

    def __init__(
        self, node: NodeMachines, name: str, link_socket: Path, boot_deadline: float
    ) -> None:
        self.name = name
        self.link_socket = link_socket
        self._node = node
        self._boot_deadline = boot_deadline

    @property
    def _guest(self) -> Guest | None:
        return self._node.guests.get(self.name)

    def _living(self) -> Guest:
        guest = self._guest
        if guest is None:
            raise WrongState(f"the node of guest {self.name} is not up")
        return guest

    @property
    def state(self) -> str:
        """A word of deploy.machine.states."""
        guest = self._guest
        return (GuestState.ABSENT if guest is None else guest.state).value

    @property
    def pid(self) -> int | None:
        """Its QEMU, or None while there is none."""
        guest = self._guest
        return None if guest is None else guest.pid

    async def put_back(self) -> None:
        """Bring it back to its clean snapshot, whatever state it is in.  Raises DeployError."""
        await self._living().put_back(self._boot_deadline)

    async def kill(self) -> None:
        """End its QEMU at once; return when it is gone.  Raises DeployError."""
        await self._living().kill("killed by a fault")

    async def pause(self) -> None:
        """Stop its processor.  Raises DeployError."""
        await self._living().pause()

    async def resume(self) -> None:
        """Let its processor go on.  Raises DeployError."""
        await self._living().resume()

    async def yield_processor(self, yields: bool) -> None:
        """Have it leave the host's processors to the other guests, or not any more."""
        guest = self._guest
        if guest is not None:
            await guest.yield_processor(yields)

    async def reset(self) -> None:
        """Press its reset button.  Raises DeployError."""
        await self._living().reset()

    async def nmi(self) -> None:
        """Send its processor a non-maskable interrupt.  Raises DeployError."""
        await self._living().nmi()

    async def registers(self) -> str:
        """Return its processor's registers in QEMU's words.  Raises DeployError."""
        return await self._living().registers()

    def debug_stub(self) -> AbstractAsyncContextManager[Path]:
        """Have QEMU's debug stub listen on the unix socket that is given.  Raises DeployError."""
        return self._living().debug_stub()

    def ram(self) -> Path:
        """Return the file that is its memory.  Raises DeployError, OSError."""
        return self._living().ram_file()

    def tail(self, count: int) -> list[str]:
        """Return the last lines of its console."""
        guest = self._guest
        return [] if guest is None else guest.console.tail(count)


class SupervisedGuests:
    """The VMs of a node."""

    def __init__(self, spec: NodeSpec, image: Image, *, capabilities: Path | None = None) -> None:
        self.accel = spec.guests[0].accel
        self._image = image
        self._node = NodeMachines(spec, capabilities=capabilities)
        self._machines = {
            guest.name: SupervisedGuest(
                self._node, guest.name, Path(guest.link_socket), spec.boot_deadline
            )
            for guest in spec.guests
        }

    @property
    def guests(self) -> Mapping[str, SupervisedGuest]:
        """The guests by name, in order."""
        return self._machines

    async def up(self, progress: Progress, *, take_over: bool = False) -> None:
        """Have all guests run: adopt those that do, start the others.  Raises DeployError.

        ``take_over``: the voter serves already; guests that do not run are left dead, for repair.
        """
        try:
            verify(self._image)
        except ImageError as error:
            raise DeployError(str(error)) from error
        await self._node.up(progress, take_over=take_over)

    async def down(self) -> None:
        """End all guests, also those that a former supervisor left.  Raises DeployError."""
        await self._node.down()

    async def let_go(self) -> None:
        """Let the guests live on without this process."""
        await self._node.let_go()

    def listen(self, changed: Callable[[str], None]) -> None:
        """Have ``changed`` called with a guest's name whenever its state has changed."""
        self._node.subscribe(lambda event: changed(event.guest))


def node_spec(layout: Layout, record: NodeRecord) -> NodeSpec:
    """Return what the machines of a node are to be.  Pure."""
    settings = record.settings
    return plan_node(
        directory=str(layout.directory),
        uuids=record.uuids,
        kernel=record.kernel,
        initrd=record.initrd,
        cmdline=COMMAND_LINE,
        accel=record.accel,
        uri=settings.connect,
        memory_mib=settings.memory_mib,
        ram_file=settings.allow_faults,
        boot_deadline=settings.boot_deadline,
    )


def make_node(layout: Layout, record: NodeRecord) -> SupervisedGuests:
    """Return the machines of a node; nothing is started yet."""
    image = Image(
        kernel=Path(record.kernel),
        initrd=Path(record.initrd),
        sha256=record.image,
        manifest=Path(record.manifest),
    )
    return SupervisedGuests(
        node_spec(layout, record), image, capabilities=cache_directory() / "capabilities"
    )

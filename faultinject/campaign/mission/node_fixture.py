"""A node for missions: its own guests, links with a proxy, voters, and clean starts.

Guests boot once.  Between two missions the node goes back to a clean start:

- ``begin_reverts`` and ``revert_guests`` revert the guests marked as dirty to their snapshots.
- ``start_voter`` forks a new voter (``zygote``).  It greets all guests and restores their services
  to the empty state, as it does with any replica that is ahead of it.

Only the links that will be hit go through the proxy, which is in this process.  A fixture is a
``faults.site.Site``: faults are applied to it directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import platform
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path

import msgspec

from deploy.machine.accel import decide
from deploy.machine.guest import Guest
from deploy.machine.node_machines import NodeMachines
from deploy.machine.spec import plan_node
from deploy.machine.ssh import GuestShell, free_ports, make_keys
from deploy.node.records import cache_directory
from faultinject.campaign.mission.host_function import HostFunction
from faultinject.campaign.mission.voters import MissionVoter, Voters
from faultinject.campaign.planning.spec import is_file
from faultinject.campaign.records import NodeSpec
from faultinject.faults.proxy import ProxiedLink
from faultinject.faults.site import NotApplied, Site
from faultinject.history.workload import KEY
from faultinject.host_facts import describe_host, own_version
from faultinject.results.outcome import NodeFacts
from faultinject.services import FRAIL, poisoned
from guests.image import COMMAND_LINE, Overlay, add_overlay, build_image
from voter.core.vote import Policy

__all__ = ["NodeFixture"]

ProgressCallback = Callable[[str], None]
Headers = tuple[tuple[str, str], ...]
Sender = Callable[[str, str, bytes, Headers], Awaitable[tuple[int, bytes]]]
"""Sends a request (method, target, body, headers); returns status (0: no reply) and body."""


class NodeFixture(Site):
    """A node with its voters and links.  Use ``open``; one mission at a time.

    ``sender``: set by the mission that runs, for faults that consist of a request.
    """

    def __init__(
        self,
        spec: NodeSpec,
        directory: Path,
        node: NodeMachines,
        voters: Voters,
        links: dict[str, ProxiedLink],
        shells: dict[str, GuestShell],
        facts: NodeFacts,
        function: HostFunction | None,
    ) -> None:
        self.spec = spec
        self.facts = facts
        self.function = function
        self.voter: MissionVoter | None = None
        self.sender: Sender | None = None
        self._directory = directory
        self._node = node
        self._voters = voters
        self._links = links
        self._shells = shells
        self._dirty: set[str] = set()
        self._reverting: dict[str, asyncio.Task[object]] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, spec: NodeSpec, directory: Path, progress: ProgressCallback = lambda _: None
    ) -> AsyncIterator[NodeFixture]:
        """Boot the guests and get everything ready; end and remove everything afterwards.

        ``directory`` has a short path (it holds sockets) and is the fixture's alone.  Raises
        DeployError, ImageError, OSError, TimeoutError.
        """
        began = time.monotonic()
        cache = cache_directory() / "images"
        image = await asyncio.to_thread(build_image, cache, progress=progress)
        base = image.sha256
        keys = make_keys() if spec.ssh else None
        ports = free_ports(spec.guests) if spec.ssh else ()
        overlay = msgspec.structs.replace(_overlay(spec), access=keys.access if keys else None)
        image = await asyncio.to_thread(add_overlay, image, directory / "image", overlay)
        accel = await decide(image, cache_directory(), spec.accel, progress)
        node = NodeMachines(
            plan_node(
                directory=str(directory / "n"),
                uuids=tuple(str(uuid.uuid4()) for _ in range(spec.guests + 1)),
                kernel=str(image.kernel),
                initrd=str(image.initrd),
                cmdline=COMMAND_LINE,
                accel=accel.name,
                memory_mib=spec.memory,
                ram_file=True,
                on_reset="restart",
                ssh_ports=tuple(ports),
            )
        )
        (directory / "v").mkdir()
        (directory / "p").mkdir()
        async with contextlib.AsyncExitStack() as stack:  # ended in reverse order
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            stack.push_async_callback(node.down)
            await node.up(progress)
            shells = {}
            if keys is not None:
                for name, port in zip(node.guests, ports, strict=True):
                    shells[name] = GuestShell(name, port=port, keys=keys)
                    stack.push_async_callback(shells[name].close)
            function = HostFunction(directory / "f") if spec.function == "host" else None
            if function is not None:
                stack.push_async_callback(function.end)
                await function.renew()
            voters = await Voters.open(directory / "v")
            stack.push_async_callback(voters.close)
            links = {
                name: ProxiedLink(name, str(directory / "p" / name), guest.spec.link_socket)
                for name, guest in node.guests.items()
            }
            for link in links.values():
                stack.callback((await link.listen()).close)
            facts = await _facts(node, accel.name, base)
            progress(f"node ready in {time.monotonic() - began:.1f} s")
            fixture = cls(spec, directory, node, voters, links, shells, facts, function)
            stack.push_async_callback(fixture._end_reverts)
            yield fixture

    # ------------------------------------------------------------ the site of faults

    @property
    def names(self) -> Sequence[str]:
        """Return the guests' names."""
        return tuple(self._node.guests)

    @property
    def scratch(self) -> Path:
        """Return a directory with a short path, for sockets."""
        return self._directory / "p"

    def machine(self, name: str) -> Guest:
        """Return a guest's machine."""
        return self._node.guests[name]

    def link(self, name: str) -> ProxiedLink:
        """Return a guest's link."""
        return self._links[name]

    def voter_pid(self) -> int | None:
        """Return the voter's process, or None where there is none (NV)."""
        return None if self.voter is None else self.voter.pid

    def function_pid(self) -> int | None:
        """Return F's process, or None where there is none."""
        return None if self.function is None else self.function.pid

    def shell(self, name: str) -> GuestShell:
        """Return a guest's shell.  Raises NotApplied if the fixture was opened without."""
        if name not in self._shells:
            raise NotApplied(f"no shell in {name}: the node is without ssh", error_code="TV0508")
        return self._shells[name]

    async def send(
        self, method: str, target: str, body: bytes, headers: Headers = ()
    ) -> tuple[int, bytes]:
        """Send a request that a fault consists of; return status (0: no reply) and body."""
        if self.sender is None:
            raise NotApplied("no mission is under way", error_code="TV0508")
        return await self.sender(method, target, body, headers)

    # ------------------------------------------------------------ clean starts

    def link_address(self, name: str, *, proxied: bool) -> str:
        """Return the address of a guest's agent, directly or through the proxy."""
        direct = self.machine(name).spec.link_socket
        return f"unix:{self._links[name].voter_side if proxied else direct}"

    @property
    def journal(self) -> Path:
        """Return the directory of the last voter's journal."""
        return self._directory / "v" / "journal"

    @property
    def client_address(self) -> str:
        """Return the address where the voter serves clients."""
        return self._voters.native

    def mark_dirty(self, names: Collection[str]) -> None:
        """Have these guests reverted at the next clean start."""
        self._dirty.update(names)

    def begin_reverts(self) -> None:
        """Begin to revert the dirty guests, as soon as a mission has ended; do not wait."""
        for name in sorted(self._dirty - self._reverting.keys()):
            self._dirty.discard(name)
            revert = asyncio.ensure_future(self.machine(name).restore())
            self._reverting[name] = revert

    async def revert_guests(self) -> None:
        """Wait until the dirty guests have their clean snapshots again.  Raises DeployError."""
        self.begin_reverts()
        reverting, self._reverting = self._reverting, {}
        results = await asyncio.gather(*reverting.values(), return_exceptions=True)
        failures = []
        for name, result in zip(reverting, results, strict=True):
            if name in self._shells:
                self._shells[name].disconnect()  # the snapshot does not have this connection
            if isinstance(result, BaseException):
                self._dirty.add(name)
                failures.append(result)
        for failure in failures:
            raise failure

    async def _end_reverts(self) -> None:
        reverts = list(self._reverting.values())
        for revert in reverts:
            revert.cancel()
        await asyncio.gather(*reverts, return_exceptions=True)

    async def start_voter(
        self,
        vote: str,
        *,
        proxied: Collection[str] = (),
        journal: bool = False,
        limits: Mapping[str, float] | None = None,
        function: str = "",
    ) -> MissionVoter:
        """Fork a voter over the first guests of the policy ``vote``.

        ``proxied``: guests whose links go through the proxy.  With ``journal`` it can be started
        again after its death.  ``limits``: its limits, instead of the node's.  ``function``: the
        address of a function F that another process serves.  Raises OSError, TimeoutError.
        """
        if self.function is not None:
            await self.function.renew()
        names = self.names[: Policy.parse(vote).of]
        self.voter = await self._voters.start(
            vote,
            {name: self.link_address(name, proxied=name in proxied) for name in names},
            limits or {"hang": self.spec.hang},
            journal=journal,
            function=function if self.function is None else self.function.address,
        )
        return self.voter

    async def end_voter(self) -> None:
        """End the voter, if there is one."""
        if self.voter is not None:
            voter, self.voter = self.voter, None
            await voter.end()


def _overlay(spec: NodeSpec) -> Overlay:
    path = Path(poisoned.__file__) if spec.service == "poisoned" else None
    if is_file(spec.service):
        path = Path(spec.service)
    inside = spec.function == "guest"
    return Overlay(
        service=None if path else spec.service,
        service_file=path,
        key=KEY if inside else b"",
        function_file=FRAIL if inside else None,
    )


async def _facts(node: NodeMachines, accel: str, image: str) -> NodeFacts:
    host = describe_host(accel=accel, load_before=os.getloadavg()[0])
    libvirt, qemu = await node.versions()
    return NodeFacts(
        host=hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest(),
        cpus=host.cores,
        cpu=host.cpu,
        kernel=host.kernel,
        python=host.python,
        qemu=qemu,
        libvirt=libvirt,
        accel=accel,
        image=image,
        build=image[:16],
        trivisor=own_version(),
    )

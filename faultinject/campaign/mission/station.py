"""A station: a node of its own on which one mission after another is run, each from a clean start.

A clean start is: guests that were hit are put back to their clean snapshots; a new voter is forked
(``zygote``), greets all guests and restores their services to the empty state, as it does with any
replica that is ahead of it; all of them vote.  Link faults are told by a proxy in this process,
which only the links that will be hit go through.
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
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import structlog

from deploy.errors import DeployError, GuestNeverReady
from deploy.machine.accel import decide
from deploy.machine.guest import Guest
from deploy.machine.node import NodeMachines
from deploy.machine.spec import plan_node
from deploy.machine.ssh import GuestShell, free_ports, make_keys
from deploy.node.records import cache_directory
from faultinject.campaign.mission.direct import DirectLink, LinkBroken
from faultinject.campaign.mission.host_function import HostFunction
from faultinject.campaign.mission.injection import FaultInjections, Repairs
from faultinject.campaign.mission.mission import DirectTarget, Mission, MissionTrace, VotedTarget
from faultinject.campaign.mission.outcome import classify
from faultinject.campaign.mission.voters import MissionVoter, VoterGone, Voters
from faultinject.campaign.records import (
    GuestFate,
    HitResult,
    MissionPlan,
    MissionRow,
    Outcome,
    StationFacts,
    StationSpec,
    Timings,
)
from faultinject.faults import CATALOGUE
from faultinject.faults.proxy import ProxiedLink
from faultinject.faults.site import NotApplied
from faultinject.history.workload import KEY
from faultinject.host_facts import describe_host
from faultinject.services import FRAIL, poisoned
from guests.image import COMMAND_LINE, Overlay, add_overlay, build_image
from voter.address import parse_address
from voter.client import Client
from voter.client.errors import RequestError
from voter.core.vote import Policy

__all__ = ["Station", "StationLost"]

BOOT_DEADLINE, BOOTS = 120.0, 3
"""Seconds for the guests to boot, and how often that is tried: under TCG, with all of them starting
on few processors, a kernel now and then stalls in its first lines."""
CLEAN_START = 30.0
"""Seconds for all guests to vote, once they are put back: a busy host is no fault."""
LAG_POLL = 0.005
"""Seconds between looks at whether a guest has answered: nothing tells."""
ATTEMPTS = 3
"""Clean starts that are tried for a mission."""

Progress = Callable[[str], None]

_log = structlog.get_logger(__name__)


class StationLost(Exception):
    """The node cannot be brought back to a clean start."""


class _NotClean(Exception):
    """A clean start did not come about; the next one may."""


class Station:
    """A node, its voters, its links.  Make one with ``open``; one mission at a time."""

    def __init__(
        self,
        spec: StationSpec,
        directory: Path,
        node: NodeMachines,
        voters: Voters,
        links: dict[str, ProxiedLink],
        shells: dict[str, GuestShell],
        facts: StationFacts,
        function: HostFunction | None,
    ) -> None:
        self.spec = spec
        self._function = function
        self.facts = facts
        self._directory = directory
        self._node = node
        self._voters = voters
        self._links = links
        self._dirty: set[str] = set()
        self._shells = shells
        self._voter: MissionVoter | None = None
        self._mission: Mission | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, spec: StationSpec, directory: Path, progress: Progress = lambda _: None
    ) -> AsyncIterator[Station]:
        """Boot the guests and make ready; end everything afterwards.

        ``directory`` has a short path and is the station's alone.  Raises DeployError, ImageError,
        OSError, TimeoutError.
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
        node_spec = plan_node(
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
            boot_deadline=BOOT_DEADLINE,
        )
        node = NodeMachines(node_spec)
        (directory / "v").mkdir()
        (directory / "p").mkdir()
        voters: Voters | None = None
        function = HostFunction(directory / "f") if spec.function == "host" else None
        servers: list[asyncio.Server] = []
        shells: dict[str, GuestShell] = {}
        try:
            await _boot(node, progress)
            if keys is not None:
                shells = {
                    name: GuestShell(name, port=port, keys=keys)
                    for name, port in zip(node.guests, ports, strict=True)
                }
            voters = await Voters.open(directory / "v")
            links = {
                name: ProxiedLink(name, str(directory / "p" / name), guest.spec.link_socket)
                for name, guest in node.guests.items()
            }
            servers += [await link.listen() for link in links.values()]
            if function is not None:
                await function.renew()
            facts = await _facts(node, accel.name, base)
            progress(f"station ready in {time.monotonic() - began:.1f} s")
            yield cls(spec, directory, node, voters, links, shells, facts, function)
        finally:
            for shell in shells.values():
                await shell.close()
            for server in servers:
                server.close()
            if voters is not None:
                await voters.close()
            if function is not None:
                await function.end()
            await node.down()
            shutil.rmtree(directory, ignore_errors=True)

    # ------------------------------------------------------------ faults' site

    @property
    def names(self) -> Sequence[str]:
        """The guests' names."""
        return tuple(self._node.guests)

    @property
    def scratch(self) -> Path:
        """A directory with a short path, for sockets."""
        return self._directory / "p"

    def machine(self, name: str) -> Guest:
        """Return a guest's machine."""
        return self._node.guests[name]

    def link(self, name: str) -> ProxiedLink:
        """Return a guest's link."""
        return self._links[name]

    def voter_pid(self) -> int | None:
        """Return the voter's process, or None where there is none (NV)."""
        return None if self._voter is None else self._voter.pid

    def function_pid(self) -> int | None:
        """Return F's process, or None where there is none."""
        return None if self._function is None else self._function.pid

    def shell(self, name: str) -> GuestShell:
        """Return a guest's shell.  Raises NotApplied if the station was opened without."""
        if name not in self._shells:
            raise NotApplied(f"no shell in {name}: the station is without ssh")
        return self._shells[name]

    async def send(
        self, method: str, target: str, body: bytes, headers: tuple[tuple[str, str], ...] = ()
    ) -> tuple[int, bytes]:
        """Send a request that a fault consists in; return status (0: no reply) and body."""
        if self._mission is None:
            raise NotApplied("no mission is under way")
        return await self._mission.send(method, target, body, headers)

    # ------------------------------------------------------------ a mission

    async def run(self, plan: MissionPlan) -> MissionRow:
        """Run one mission from a clean start; what goes wrong in it is what its row tells.

        Raises StationLost if there is no clean start any more.
        """
        began, words = time.time(), ""
        for _ in range(ATTEMPTS):
            start = time.perf_counter()
            try:
                await self._put_back()
                if plan.design == "nv":
                    return await self._direct(plan, began, start)
                return await self._voted(plan, began, start)
            except (_NotClean, DeployError) as error:
                words = str(error)
                _log.warning("no clean start", mission=plan.index, error=words)
                self._dirty.update(self.names)
                await self._end_voter()
        raise StationLost(f"no clean start for mission {plan.index} in {ATTEMPTS} tries: {words}")

    async def _put_back(self) -> None:
        """Put the guests that were hit back to their clean snapshots.  Raises DeployError."""
        dirty, self._dirty = self._dirty, set()
        guests = [self._node.guests[name] for name in sorted(dirty)]
        results = await asyncio.gather(
            *(guest.put_back() for guest in guests), return_exceptions=True
        )
        for name in sorted(dirty & self._shells.keys()):
            self._shells[name].drop()  # the connection is not one of the snapshot's
        for guest, result in zip(guests, results, strict=True):
            if isinstance(result, BaseException):
                self._dirty.add(guest.name)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _voted(self, plan: MissionPlan, began: float, start: float) -> MissionRow:
        through = {hit.target for hit in plan.hits if "proxy" in CATALOGUE[hit.kind].needs}
        vote = plan.vote or self.spec.vote
        links = {
            name: f"unix:{self._links[name].voter_side}" if name in through
            else f"unix:{self._node.guests[name].spec.link_socket}"
            for name in self.names[: Policy.parse(vote).of]
        }  # fmt: skip
        limits = {"hang": self.spec.hang}
        strikes = FaultInjections(self, plan)
        try:
            try:
                address = ""
                if self._function is not None:
                    await self._function.renew()
                    self._function.dirty = plan.host_function_hit  # however this ends
                    address = self._function.address
                voter = await self._voters.start(
                    vote, links, limits, journal=plan.repair, function=address
                )
                self._voter = voter
                status = await voter.all_vote(CLEAN_START)
                client = await Client.connect(self._voters.native, retry=plan.repair)
            except (OSError, TimeoutError, VoterGone, RequestError) as error:
                raise _NotClean(str(error)) from error
            patience = self.spec.deadline if plan.repair else None
            first = {each["name"]: each["incarnation"] for each in status["replicas"]}
            repairs = None
            if plan.repair:
                voter.keep()
                repairs = strikes.repairs = Repairs(voter, self._node.guests)
            reset = time.perf_counter() - start
            try:
                self._mission = Mission(plan, self.spec, VotedTarget(client, patience))
                flight = await self._mission.fly(strikes.strike)
            finally:
                if repairs is not None:
                    await repairs.end()
                await client.close()
            looked = time.perf_counter()
            hits = await strikes.results()
            fates, alive = await self._fates(voter, first, hits)
        finally:
            await strikes.undo()
            await self._end_voter()
        self._soil(plan, fates)
        settle = time.perf_counter() - looked
        timings = Timings(
            reset=reset, inject=flight.inject, workload=flight.workload, settle=settle
        )
        return _row(plan, began, flight, hits, fates, timings, alive=alive)

    async def _direct(self, plan: MissionPlan, began: float, start: float) -> MissionRow:
        name = next((hit.target for hit in plan.hits if hit.target in self.names), self.names[0])
        through = any("proxy" in CATALOGUE[hit.kind].needs for hit in plan.hits)
        path = self._links[name].voter_side if through else self.machine(name).spec.link_socket
        strikes = FaultInjections(self, plan)
        try:
            try:
                link = await DirectLink.open(
                    parse_address(f"unix:{path}"), plan.seed or 1, patience=CLEAN_START
                )
            except (OSError, TimeoutError, LinkBroken) as error:
                raise _NotClean(f"{name} does not greet: {error!r}") from error
            reset = time.perf_counter() - start
            try:
                self._mission = Mission(plan, self.spec, DirectTarget(link))
                flight = await self._mission.fly(strikes.strike)
            finally:
                link.close()
            looked = time.perf_counter()
            hits = await strikes.results()
        finally:
            await strikes.undo()
        self._soil(plan, ())
        settle = time.perf_counter() - looked
        timings = Timings(
            reset=reset, inject=flight.inject, workload=flight.workload, settle=settle
        )
        row = _row(plan, began, flight, hits, (), timings, alive=True)
        failed = row.outcome is not Outcome.CORRECT
        state = "failed" if failed else "served"
        if failed:
            self._dirty.add(name)
        return msgspec.structs.replace(
            row, guests=(GuestFate(name=name, state=state, reason="", failed=failed),)
        )

    async def _fates(
        self, voter: MissionVoter, first: Mapping[str, int], hits: Sequence[HitResult]
    ) -> tuple[tuple[GuestFate, ...], bool]:
        """Return how the guests stand, as the voter says, and whether it can say so at all.

        A guest that has still to answer, and need not fail, is given the time after which the
        voter takes it for hanging.
        """
        surely = {each.target for each in hits if each.applied and CATALOGUE[each.kind].fails}
        end = time.monotonic() + self.spec.hang
        try:
            if not voter.alive:
                raise VoterGone("its process has ended")
            status = await voter.status()
            while time.monotonic() < end and any(
                each["lag"] and each["state"] == "active" and each["name"] not in surely
                for each in status["replicas"]
            ):
                await asyncio.sleep(LAG_POLL)
                status = await voter.status()
        except VoterGone:
            return tuple(
                GuestFate(name=name, state="unknown", reason="the voter is lost") for name in first
            ), False
        return tuple(
            GuestFate(
                name=each["name"],
                state=each["state"],
                reason=each["reason"],
                dissents=each["dissents"],
                failed=each["name"] in surely
                or each["state"] != "active"
                or bool(each["dissents"] or each["expulsions"] or each["lag"])
                or each["incarnation"] != first[each["name"]],
            )
            for each in status["replicas"]
        ), True

    def _soil(self, plan: MissionPlan, fates: Sequence[GuestFate]) -> None:
        """Note which guests are not as their clean snapshots were (services apart)."""
        on_links = set()
        for hit in plan.hits:
            fault = CATALOGUE[hit.kind]
            if hit.target == "host":
                self._dirty.update(self.names)
            elif hit.target in self.names and "proxy" in fault.needs:
                on_links.add(hit.target)
            elif hit.target in self.names:
                self._dirty.add(hit.target)
        for fate in fates:
            if fate.failed and fate.name not in on_links:
                self._dirty.add(fate.name)

    async def _end_voter(self) -> None:
        if self._voter is not None:
            voter, self._voter = self._voter, None
            await voter.end()


def _row(
    plan: MissionPlan,
    began: float,
    flight: MissionTrace,
    hits: tuple[HitResult, ...],
    fates: tuple[GuestFate, ...],
    timings: Timings,
    *,
    alive: bool,
) -> MissionRow:
    verdict = classify(flight.judged, voter_alive=alive)
    return MissionRow(
        index=plan.index,
        outcome=verdict.outcome,
        words=verdict.words,
        correct=verdict.correct,
        wrong=verdict.wrong,
        refused=verdict.refused,
        unanswered=verdict.unanswered,
        masked=verdict.masked,
        hits=hits,
        guests=fates,
        latencies=tuple(round(each, 6) for each in flight.latencies),
        timings=timings,
        began=began,
    )


async def _boot(node: NodeMachines, progress: Progress) -> None:
    for left in reversed(range(BOOTS)):
        try:
            await node.up(progress)
            break
        except GuestNeverReady as error:
            if not left:
                raise
            progress(f"{str(error).splitlines()[0]}; once more")
            await node.down()


def _overlay(spec: StationSpec) -> Overlay:
    path = Path(poisoned.__file__) if spec.service == "poisoned" else None
    if spec.service.endswith(".py"):
        path = Path(spec.service)
    inside = spec.function == "guest"
    return Overlay(
        service=None if path else spec.service,
        service_file=path,
        key=KEY if inside else b"",
        function_file=FRAIL if inside else None,
    )


async def _facts(node: NodeMachines, accel: str, image: str) -> StationFacts:
    host = describe_host(accel=accel, load_before=os.getloadavg()[0])
    libvirt, qemu = await node.versions()
    return StationFacts(
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
        trivisor=_own_version(),
    )


@lru_cache
def _own_version() -> str:
    """Return the version, and a digest of the sources: versions are rare, and changes are not."""
    root = Path(__file__).resolve().parents[3]
    digest = hashlib.blake2b(digest_size=6)
    for package in ("deploy", "faultinject", "guests", "voter"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{_release()}, sources {digest.hexdigest()}"


def _release() -> str:
    try:
        return version("trivisor")
    except PackageNotFoundError:
        return "not installed"  # run from a source tree

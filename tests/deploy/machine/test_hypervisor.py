"""A libvirt in which QEMU cannot use io_uring."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree as ET

import libvirt
import pytest

from deploy.errors import HypervisorFailed
from deploy.machine.connection import Connection
from deploy.machine.domain_xml import domain_xml
from deploy.machine.hypervisor import Hypervisor, finish
from deploy.machine.qemu import make_snapshot_disk
from deploy.machine.spec import EMBED
from tests.deploy.machine.test_spec import UUIDS, planned
from tests.errors import logs, raises

T = TypeVar("T")


class WithoutIoUring(Hypervisor):
    """It fails to start a domain whose disk uses io_uring, with ``error``."""

    def __init__(self, root: Path, error: str) -> None:
        super().__init__(EMBED, root)
        self.tried: list[str] = []
        self._error = error

    def createXML(self, xml: str, _flags: int) -> None:
        driver = ET.fromstring(xml).find("devices/disk/driver")
        assert driver is not None
        self.tried.append(driver.get("io", ""))
        if self.tried[-1] == "io_uring":
            raise HypervisorFailed(self._error)

    async def _call(
        self, function: Callable[[Any], T], timeout: float = 0.0, pid: int = 0
    ) -> T:  # instead of libvirt
        return function(self)


async def start(libvirt: Hypervisor, directory: Path, number: int) -> None:
    guest = planned(directory=str(directory)).guests[number]
    await make_snapshot_disk(Path(guest.disk))
    await libvirt.start_paused(domain_xml(guest, node_uuid=UUIDS[0]))


@pytest.mark.parametrize(
    "error",
    [
        "Unable to use io_uring: failed to init linux io_uring ring: Operation not permitted",
        "io uring is not supported by this QEMU binary",
    ],
)
async def test_guests_start_with_threads_where_io_uring_cannot_be_used(
    tmp_path: Path, error: str
) -> None:
    libvirt = WithoutIoUring(tmp_path / "r", error)
    await start(libvirt, tmp_path, 0)
    await start(libvirt, tmp_path, 1)  # it is not tried again
    assert libvirt.tried == ["io_uring", "threads", "threads"]


async def test_another_error_of_a_start_is_raised(tmp_path: Path) -> None:
    libvirt = WithoutIoUring(tmp_path / "r", "out of memory")
    with pytest.raises(HypervisorFailed, match="out of memory"):
        await start(libvirt, tmp_path, 0)
    assert libvirt.tried == ["io_uring"]


class _ForeignDomain:
    """A domain of somebody else, under the name and uuid of a guest."""

    def __init__(self, xml: str) -> None:
        self._xml = xml

    def name(self) -> str:
        return "foreign"

    def UUIDString(self) -> str:
        return UUIDS[1]

    def XMLDesc(self) -> str:
        return self._xml


class _Shared(Hypervisor):
    """A daemon that already has a domain with the uuid of the first guest."""

    def __init__(self, xml: str) -> None:
        super().__init__("qemu:///system", None)
        self._domain = _ForeignDomain(xml)

    def lookupByUUIDString(self, _uuid: str) -> _ForeignDomain:
        return self._domain

    def listAllDomains(self) -> list[_ForeignDomain]:
        return [self._domain]

    async def _call(
        self, function: Callable[[Any], T], timeout: float = 0.0, pid: int = 0
    ) -> T:  # instead of libvirt
        return function(self)


async def test_domain_of_another_node_is_left_alone_and_named(tmp_path: Path) -> None:
    guest = planned(directory=str(tmp_path)).guests[0]
    foreign = domain_xml(guest, node_uuid=UUIDS[2])
    with raises("TV0112", match="another domain foreign"):
        await _Shared(foreign).start_paused(domain_xml(guest, node_uuid=UUIDS[0]))


async def test_failure_after_a_cancellation_is_logged() -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await go.wait()
        raise HypervisorFailed("too late")

    task = asyncio.create_task(finish(work()))
    await begun.wait()
    task.cancel()
    go.set()
    with logs("TV0127"), pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.vm
async def test_call_that_takes_too_long_and_connection_that_is_lost_are_errors() -> None:
    async def reopened() -> None:
        pass

    handle, release = _Handle(), threading.Event()
    connection = Connection("test:///default", handle, lambda *_: None, reopened)
    try:
        with raises("TV0110", match="did not answer within"):
            await connection.call(lambda _: release.wait(60), timeout=0.05)
        with logs("TV0109"), raises("TV0109"):
            await connection.call(_fail)
        with raises("TV0109"):
            await connection.call(lambda _: None)
    finally:
        release.set()
        await connection.close()


class _Handle:
    """The handle of a connection whose daemon has ended."""

    def isAlive(self) -> bool:
        return False

    def close(self) -> None:
        pass


def _fail(_: object) -> None:
    raise libvirt.libvirtError("its daemon has ended")

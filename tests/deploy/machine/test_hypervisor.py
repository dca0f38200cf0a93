"""A libvirt in which QEMU cannot use io_uring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree as ET

import pytest

from deploy.errors import HypervisorFailed
from deploy.machine.domain_xml import domain_xml
from deploy.machine.hypervisor import Hypervisor
from deploy.machine.qemu import make_snapshot_disk
from deploy.machine.spec import EMBED
from tests.deploy.machine.test_spec import UUIDS, planned

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

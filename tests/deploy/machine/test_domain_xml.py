"""The XML of a guest equals a golden file; TRIVISOR_REWRITE_GOLDEN=1 rewrites it."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest

from deploy.host.files import check_path
from deploy.machine.domain_xml import domain_xml, owner_in_xml
from tests.deploy.conftest import NASTY
from tests.deploy.machine.test_spec import UUIDS, planned

GOLDEN = Path(__file__).parent / "golden.xml"
GUEST = planned().guests[0]

ARGUMENTS = (
    "-netdev",
    "user,id=ssh,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:22022-:22",
    "-device",
    "virtio-net-pci,netdev=ssh,mac=52:54:00:00:00:01,bus=pcie.0,addr=0x10,romfile=",
)
QEMU = 'xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0"'


def lines(**changes: object) -> set[str]:
    """The stripped lines of the guest's XML with these changes of its spec."""
    guest = msgspec.structs.replace(GUEST, **changes)
    return {line.strip() for line in domain_xml(guest, node_uuid=UUIDS[0]).splitlines()}


def test_xml_equals_the_golden_file() -> None:
    xml = domain_xml(GUEST, node_uuid=UUIDS[0])
    if os.environ.get("TRIVISOR_REWRITE_GOLDEN"):
        GOLDEN.write_text(xml)
    assert xml == GOLDEN.read_text(), "if intended: TRIVISOR_REWRITE_GOLDEN=1 pytest, then check"


@pytest.mark.parametrize(
    ("changes", "added"),
    [
        (
            {"accel": "kvm"},
            {
                '<domain xmlns:trivisor="urn:trivisor:node" type="kvm">',
                '<cpu mode="host-passthrough">', "</cpu>",
                '<feature policy="disable" name="svm" />',
                '<feature policy="disable" name="vmx" />',
            },
        ),
        (
            {"ram_file": True},
            {
                '<source type="memfd" />', '<access mode="shared" />',
            },
        ),
        (
            {"ssh_port": 22022, "on_reset": "restart"},
            {
                f'<domain {QEMU} xmlns:trivisor="urn:trivisor:node" type="qemu">',
                "<on_reboot>restart</on_reboot>",
                "<qemu:commandline>", "</qemu:commandline>",
                *(f'<qemu:arg value="{argument}" />' for argument in ARGUMENTS),
            },
        ),
    ],
    ids=["kvm", "memory in a file", "faults inside"],
)  # fmt: skip
def test_option_adds_these_lines(changes: dict[str, object], added: set[str]) -> None:
    assert lines(**changes) - lines() == added


def test_system_libvirt_runs_qemu_as_the_given_account() -> None:
    xml = domain_xml(GUEST, node_uuid=UUIDS[0], run_as="+1000:+1000")
    label = '<seclabel type="static" model="dac" relabel="yes">\n    <label>+1000:+1000</label>'
    assert label in xml
    assert 'relabel="no"' in domain_xml(GUEST, node_uuid=UUIDS[0], run_as="+0:+0")


def test_owner_is_read_from_the_xml() -> None:
    assert owner_in_xml(domain_xml(GUEST, node_uuid=UUIDS[0])) == (UUIDS[0], "g1")
    assert owner_in_xml("<domain><name>g1</name></domain>") is None
    with pytest.raises(ValueError, match="not XML"):
        owner_in_xml("<domain>")


def test_virsh_shows_whose_the_domain_is_and_how_to_stop_the_node() -> None:
    spec = planned(directory="/a b").guests[0]
    read = ET.fromstring(domain_xml(spec, node_uuid=UUIDS[0]))
    title, description = read.findtext("title", ""), read.findtext("description", "")
    assert "g1" in title
    assert "/a b" in title
    assert UUIDS[0] in description
    assert "trivisor down --dir '/a b'" in description


def test_any_directory_that_is_accepted_survives_the_xml() -> None:
    spec = planned(directory=f"/tmp/{NASTY}").guests[0]
    check_path(spec.disk)
    read = ET.fromstring(domain_xml(spec, node_uuid=UUIDS[0]))
    assert [each.get("file") for each in read.iter("source") if "file" in each.attrib] == [
        spec.disk
    ]
    sockets = [each.get("path") for each in read.iter("source") if "path" in each.attrib]
    assert sockets == [spec.console_socket, spec.bound_link]
    assert spec.directory in read.findtext("title", "")
    assert "\n" not in read.findtext("title", "\n")  # which libvirt rejects


def test_user_supplied_text_is_escaped() -> None:
    guest = msgspec.structs.replace(GUEST, kernel="/a b/<&'\">/vmlinuz", cmdline='x="</cmdline>"')
    assert owner_in_xml(domain_xml(guest, node_uuid=UUIDS[0])) == (UUIDS[0], "g1")

"""The XML of a guest against golden files; TRIVISOR_REWRITE_GOLDEN=1 writes them anew."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from deploy.machine.domain_xml import domain_xml, owner_in_xml
from deploy.machine.spec import GuestSpec
from tests.deploy.machine.test_spec import UUIDS, planned

GOLDEN = Path(__file__).parent / "golden"


def variants() -> dict[str, tuple[GuestSpec, str | None]]:
    guest = planned().guests[0]
    replace = msgspec.structs.replace
    return {
        "tcg": (guest, None),
        "kvm": (replace(guest, accel="kvm"), None),
        "ram-file": (replace(guest, ram_file=True, memory_mib=192), None),
        "system": (planned(uri="qemu:///system").guests[1], "+1000:+1000"),
        "ssh": (replace(guest, ssh_port=22022, on_reset="restart"), None),
    }


@pytest.mark.parametrize("name", ["tcg", "kvm", "ram-file", "system", "ssh"])
def test_the_xml_is_the_golden_one(name: str) -> None:
    guest, run_as = variants()[name]
    xml = domain_xml(guest, node_uuid=UUIDS[0], run_as=run_as)
    file = GOLDEN / f"{name}.xml"
    if os.environ.get("TRIVISOR_REWRITE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(xml)
    assert xml == file.read_text(), "if this is meant: TRIVISOR_REWRITE_GOLDEN=1 pytest, then look"


def test_the_owner_can_be_read_back() -> None:
    xml = domain_xml(planned().guests[0], node_uuid=UUIDS[0])
    assert owner_in_xml(xml) == (UUIDS[0], "g1")


def test_a_stranger_has_no_owner() -> None:
    assert owner_in_xml("<domain><name>g1</name></domain>") is None
    with pytest.raises(ValueError, match="not XML"):
        owner_in_xml("<domain>")


def test_only_a_guest_that_allows_faults_inside_has_a_card() -> None:
    guest = planned().guests[0]
    assert "netdev" not in domain_xml(guest, node_uuid=UUIDS[0])
    xml = domain_xml(msgspec.structs.replace(guest, ssh_port=22022), node_uuid=UUIDS[0])
    assert "restrict=on" in xml
    assert "hostfwd=tcp:127.0.0.1:22022-:22" in xml
    assert xml.count("hostfwd") == 1


def test_what_a_user_names_cannot_break_out_of_the_xml() -> None:
    guest = msgspec.structs.replace(
        planned().guests[0], kernel="/a b/<&'\">/vmlinuz", cmdline='x="</cmdline>"'
    )
    assert owner_in_xml(domain_xml(guest, node_uuid=UUIDS[0])) == (UUIDS[0], "g1")

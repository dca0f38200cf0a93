"""Specs: their checks, the plan of a node, the paths of its sockets."""

from __future__ import annotations

import msgspec
import pytest

from deploy.machine.spec import GuestSpec, NodeSpec, plan_node, socket_paths

UUIDS = (
    "11111111-2222-4333-8444-555555555555",
    "aaaaaaaa-0000-4000-8000-000000000001",
    "aaaaaaaa-0000-4000-8000-000000000002",
)


def planned(directory: str = "/n", **more: object) -> NodeSpec:
    return plan_node(
        directory=directory,
        uuids=UUIDS,
        kernel="/image/vmlinuz",
        initrd="/image/initrd",
        cmdline="console=ttyS0",
        accel="tcg",
        **more,  # type: ignore[arg-type]
    )


def test_plan_gives_each_guest_a_name_and_its_own_files() -> None:
    node = planned()
    assert [guest.name for guest in node.guests] == ["g1", "g2"]
    assert [guest.uuid for guest in node.guests] == list(UUIDS[1:])
    for word in ("disk", "link_socket", "console_socket", "domain"):
        assert len({getattr(guest, word) for guest in node.guests}) == 2
    assert node.embedded
    assert node.root == "/n/r"


def test_domain_in_a_shared_libvirt_is_named_after_its_node() -> None:
    node = planned(uri="qemu:///system")
    assert [guest.domain for guest in node.guests] == [
        "trivisor-11111111-g1",
        "trivisor-11111111-g2",
    ]
    # Libvirt truncates names to 20 bytes in paths.
    assert all(len(guest.domain) <= 20 for guest in node.guests)
    assert not node.embedded


def test_spec_with_an_unknown_key_is_rejected() -> None:
    data = msgspec.to_builtins(planned())
    data["colour"] = "red"
    with pytest.raises(msgspec.ValidationError, match="colour"):
        msgspec.convert(data, NodeSpec)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"memory_mib": 16}, "memory_mib must be 64 to 65536"),
        ({"nice": 20}, "nice must be 0 to 19"),
        ({"vcpus": 0}, "vcpus must be 1"),
        ({"translation_mib": 1}, "translation_mib"),
        ({"name": "../g1"}, "letters and digits"),
        ({"ssh_port": 22}, "ssh_port must be 1024 to 65535"),
        ({"on_reset": "wait"}, "on_reset"),
    ],
)
def test_invalid_guest_is_rejected(wrong: dict[str, object], message: str) -> None:
    data = msgspec.to_builtins(planned().guests[0]) | wrong
    with pytest.raises((msgspec.ValidationError, ValueError), match=message):
        msgspec.convert(data, GuestSpec)


def test_invalid_node_is_rejected() -> None:
    node = planned()
    with pytest.raises(ValueError, match="at least one guest"):
        msgspec.structs.replace(node, guests=())
    with pytest.raises(ValueError, match="absolute"):
        planned(directory="n")
    with pytest.raises(ValueError, match="the same name"):
        msgspec.structs.replace(node, guests=(node.guests[0], node.guests[0]))


def test_socket_paths_are_those_of_the_guests() -> None:
    assert socket_paths(planned()) == ["/n/g1.link~", "/n/g1.con", "/n/g2.link~", "/n/g2.con"]


def test_guests_have_one_ssh_port_each_or_none() -> None:
    assert [guest.ssh_port for guest in planned().guests] == [None, None]
    node = planned(ssh_ports=(22001, 22002), on_reset="restart")
    assert [guest.ssh_port for guest in node.guests] == [22001, 22002]
    assert {guest.on_reset for guest in node.guests} == {"restart"}
    with pytest.raises(ValueError, match="one ssh port each, or none"):
        planned(ssh_ports=(22001,))
    with pytest.raises(ValueError, match="the same ssh_port"):
        planned(ssh_ports=(22001, 22001))

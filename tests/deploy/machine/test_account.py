"""The users of the guests' QEMUs: which numbers, and when there are none."""

from __future__ import annotations

import os
import stat
import subprocess
from functools import partial
from pathlib import Path

import msgspec
import pytest

from deploy.machine import account
from deploy.machine.account import account_of, open_to_guests, why_shared
from deploy.machine.spec import NodeSpec
from tests.deploy.machine.test_spec import planned

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give guests users")


def node_in(directory: Path, **changes: object) -> NodeSpec:
    """Plan a node that could run there."""
    directory.mkdir(mode=0o700, exist_ok=True)
    kernel = directory / "vmlinux"
    kernel.touch()
    spec = planned(directory=str(directory))
    initrd = directory / "image" / "initrd"
    initrd.parent.mkdir(exist_ok=True)
    initrd.touch()
    files = {"kernel": str(kernel), "initrd": str(initrd)}
    guests = tuple(msgspec.structs.replace(each, **files) for each in spec.guests)
    return msgspec.structs.replace(spec, guests=guests, **changes)


@root_only
def test_each_guest_has_a_user_and_all_have_one_group(scratch: Path) -> None:
    node = node_in(scratch / "n")
    assert why_shared(node) == ""
    accounts = [account_of(node, guest) for guest in node.guests]
    uids = {each.uid for each in accounts if each is not None}
    assert len(uids) == len(node.guests)
    assert all(0x7000_0000 <= uid <= 0x7FFF_FFFF for uid in uids)
    assert len({each.gid for each in accounts if each is not None}) == 1
    open_to_guests(node)
    found = (scratch / "n").stat()
    assert stat.S_IMODE(found.st_mode) == 0o710
    assert {found.st_gid} == {each.gid for each in accounts if each is not None}


@root_only
def test_all_guests_read_an_image_that_holds_a_secret_key_and_others_do_not(scratch: Path) -> None:
    node = node_in(scratch / "n")
    (scratch / "n").chmod(0o755)
    initrd = Path(node.guests[0].initrd)
    initrd.chmod(0o600)
    open_to_guests(node)
    assert why_shared(node) == "", "a supervisor that takes over comes to the same result"
    uids = [each.uid for each in map(partial(account_of, node), node.guests) if each is not None]
    gid = initrd.parent.stat().st_gid
    read = ["cat", str(initrd)]
    for uid in uids:
        os.chown(initrd, uids[0], gid)  # as libvirt does for the first guest
        subprocess.run(read, user=uid, group=gid, extra_groups=[], check=True)
    other = subprocess.run(read, user=uids[0] ^ 1, group=65534, extra_groups=[], check=False)
    assert other.returncode != 0


@root_only
def test_closed_directory_above_the_node_is_named(scratch: Path) -> None:
    (scratch / "home").mkdir(mode=0o700)
    node = node_in(scratch / "home" / "n")
    assert f"{scratch / 'home'} is closed to other users" in why_shared(node)
    assert account_of(node, node.guests[0]) is None
    open_to_guests(node)
    assert stat.S_IMODE((scratch / "home" / "n").stat().st_mode) == 0o700


@root_only
@pytest.mark.parametrize(
    ("status", "map_", "reason"),
    [
        ("CapEff:\t00000000a80425fb\n", "0 0 4294967295\n", "no CAP_SYS_PTRACE, CAP_SYS_NICE"),
        ("CapEff:\t000001ffffffffff\n", "0 100000 65536\n", "no user numbers above 0x70000000"),
        ("CapEff:\t000001ffffffffff\n", "0 0 4294967295\n", ""),
    ],
)
def test_container_that_allows_no_other_users_is_named(
    scratch: Path, status: str, map_: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scratch / "status").write_text(status)
    (scratch / "uid_map").write_text(map_)
    monkeypatch.setattr(account, "PROC", scratch)
    found = why_shared(node_in(scratch / "n"))
    assert reason in found
    assert bool(found) == bool(reason)


def test_another_libvirt_or_user_shares_one(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = node_in(scratch / "n", uri="qemu:///session")
    assert "libvirt's daemon runs all guests as one user" in why_shared(node)
    assert account_of(node, node.guests[0]) is None
    system = node_in(scratch / "n", uri="qemu:///system")
    found = account_of(system, system.guests[0])
    assert found is not None
    assert (found.uid, found.own) == (os.geteuid(), False)
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    assert "the supervisor is not root: all guests run as its user, uid 1234" in why_shared(
        node_in(scratch / "n")
    )

"""The embedded libvirt's directory, and the errors when libvirt cannot be opened."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from deploy.errors import CannotRunHere
from deploy.host.files import sweep_links
from deploy.machine.connection import opening_error
from deploy.machine.embed import (
    carried_root,
    check_owner,
    embed_uri,
    keep_capabilities,
    prepare_root,
)
from deploy.machine.hypervisor import Hypervisor
from tests.deploy.conftest import NASTY
from tests.errors import logs, raises


def test_root_is_private_and_qemu_runs_as_the_user_that_probes_it(scratch: Path) -> None:
    root = scratch / "r"
    prepare_root(root)
    assert root.stat().st_mode & 0o777 == 0o700
    conf = (root / "etc" / "qemu.conf").read_text().splitlines()
    assert f'user = "+{os.geteuid()}"' in conf
    assert 'stdio_handler = "file"' in conf
    prepare_root(root)  # again, as at each start


def test_qemus_capabilities_are_cached_across_nodes(scratch: Path) -> None:
    first, second, kept = scratch / "a", scratch / "b", scratch / "kept"
    prepare_root(first, capabilities=kept)
    (first / "cache/qemu/capabilities/1.xml").write_text("<qemuCaps/>")
    keep_capabilities(first, kept)
    prepare_root(second, capabilities=kept)
    assert (second / "cache/qemu/capabilities/1.xml").read_text() == "<qemuCaps/>"
    assert [path.name for path in kept.iterdir()] == ["1.xml"]


@pytest.mark.parametrize("name", [NASTY, "plain", "%2e%2e", "a&root=b", "a#b", "+", "a?b;c"])
def test_root_is_one_parameter_of_the_uri(name: str) -> None:
    uri = embed_uri(Path("/n") / name)
    assert uri.isascii()
    parts = urlsplit(uri)
    assert (parts.path, parts.fragment) == ("/embed", "")
    assert parse_qs(parts.query, strict_parsing=True) == {"root": [f"/n/{name}"]}


def test_root_that_libvirt_cannot_carry_has_a_link_and_others_have_none(scratch: Path) -> None:
    plain = scratch / "d".ljust(60 - len(str(scratch)), "d") / "r"
    assert carried_root(plain) == plain
    for name in ("a,b", "a=b", NASTY, "d" * 62):
        root = scratch / name / "r"
        root.mkdir(parents=True)
        link = carried_root(root)
        assert link.is_symlink()
        assert link.samefile(root)
        assert not {",", "="} & set(str(link))
        assert len(str(link)) < 50
    shutil.rmtree(scratch)
    sweep_links()
    assert not link.is_symlink()


def test_libvirt_that_uses_another_directory_is_noticed(scratch: Path) -> None:
    with raises("TV0118", match="does not use"):
        check_owner(scratch)
    prepare_root(scratch)
    (scratch / "run/qemu/driver.pid").write_text("1\n")  # another process's, left behind
    with raises("TV0118", match="names process 1"):
        check_owner(scratch)
    (scratch / "run/qemu/driver.pid").write_text(f"{os.getpid()}\n")
    check_owner(scratch)


def test_long_log_is_truncated(scratch: Path) -> None:
    prepare_root(scratch)
    log = scratch / "log/qemu/g1.log"
    log.write_bytes(b"x" * (2 << 20))
    prepare_root(scratch)
    assert log.stat().st_size == 0


@pytest.mark.parametrize(
    "text, target, code, said",
    [
        ("Failed to parse user 'libvirt-qemu'", "qemu:///embed", "TV0105", "adduser"),
        ("already open with path '/x'", "qemu:///embed", "TV0106", "in use"),
        ("no connection driver", "qemu:///embed", "TV0103", "apt-get install"),
        ("Failed to connect socket", "qemu:///system", "TV0104", "start libvirt's daemon"),
        ("Connection refused", "qemu:///session", "TV0104", "apt-get install libvirt-daemon"),
        (
            "'/run/libvirt/libvirt-sock': Permission denied",
            "qemu:///system",
            "TV0104",
            "usermod -aG libvirt",
        ),
        (
            "authentication unavailable: no polkit agent available to authenticate",
            "qemu+unix:///system",
            "TV0104",
            "usermod -aG libvirt",
        ),
        ("Failed to create state dir '/x'", "qemu:///embed", "TV0107", "XDG_CACHE_HOME"),
    ],
)
def test_each_error_has_its_code_and_remedy(text: str, target: str, code: str, said: str) -> None:
    error = opening_error(text, target)
    assert error.error_code == code
    assert text in str(error)
    assert said in str(error)


def test_capabilities_that_cannot_be_copied_are_logged(scratch: Path) -> None:
    prepare_root(scratch / "root")
    found = scratch / "root" / "cache/qemu/capabilities"
    (found / "a.xml").mkdir()
    (scratch / "kept").mkdir()
    (scratch / "kept/a.xml").write_text("<qemuCaps/>")
    with logs("TV0123"):
        prepare_root(scratch / "root", capabilities=scratch / "kept")


@pytest.mark.vm
async def test_daemon_that_does_not_answer_is_named(scratch: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{scratch}/silent")
        listener.listen()
        with raises("TV0108"):
            await Hypervisor.open(f"qemu+unix:///system?socket={scratch}/silent", timeout=0.5)


@pytest.mark.vm
async def test_driver_without_what_a_node_needs_is_an_error() -> None:
    with raises("TV0111", match="not supported by the connection driver"):
        await Hypervisor.open("test:///default")


@pytest.mark.vm
async def test_missing_daemon_is_named(scratch: Path) -> None:
    uri = f"qemu+unix:///system?socket={scratch}/none"
    with pytest.raises(CannotRunHere, match="start libvirt's daemon"):
        await Hypervisor.open(uri)

"""Commands inside a guest: keys, ports, refusals; and on a real guest, who is let in and how."""

from __future__ import annotations

import asyncio
import base64
import socket
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from deploy.errors import DeployError
from deploy.machine.ssh import GuestShell, ShellFailed, free_ports, make_keys, read_keys, write_keys
from tests.deploy.conftest import Booted
from tests.deploy.open_guest import OpenGuest, open_guest

in_shared_loop = pytest.mark.asyncio(loop_scope="session")


def test_each_node_has_keys_of_its_own() -> None:
    one, other = make_keys(), make_keys()
    assert "BEGIN OPENSSH PRIVATE KEY" in one.client
    assert one.host.startswith("ssh-ed25519 ")
    assert len({one.client, other.client, one.host, other.host}) == 4
    assert one.access.client != one.host


def test_the_guests_key_is_the_one_that_is_pinned() -> None:
    keys = make_keys()
    # Two strings, each after its length: the kind; then 32 bytes private and 32 public.
    host = keys.access.host
    assert host[:4] == bytes((0, 0, 0, 11))
    assert host[4:15] == b"ssh-ed25519"
    assert host[15:19] == bytes((0, 0, 0, 64))
    assert len(host) == 83
    assert base64.b64decode(keys.host.split()[1]).endswith(host[-32:])


def test_keys_are_kept_for_their_owner_alone(tmp_path: Path) -> None:
    keys, path = make_keys(), tmp_path / "keys"
    write_keys(keys, path)
    assert read_keys(path) == keys
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("{}")
    with pytest.raises(DeployError, match=r"keys does not hold a node's keys.*start the node anew"):
        read_keys(path)


def test_ports_are_free_and_different() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


async def test_a_port_where_nobody_listens_is_named() -> None:
    [port] = free_ports(1)
    shell = GuestShell("g2", port=port, keys=make_keys())
    with pytest.raises(ShellFailed, match=rf"guest g2 by port {port}: .*refused.*faults allowed"):
        await shell.run("true")
    await shell.close()


@pytest.mark.parametrize("mute", [True, False])
async def test_who_does_not_speak_ssh_is_waited_for_no_longer_than_asked(mute: bool) -> None:
    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if mute:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(meet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    shell = GuestShell("g1", port=port, keys=make_keys())
    begin = time.monotonic()
    with pytest.raises(ShellFailed, match="no SSH connection to guest g1"):
        await shell.open(timeout=0.5)
    assert time.monotonic() - begin < 5
    await shell.close()
    server.close()
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)  # one that was accepted last may not have been met yet


# ---- on a real guest -----------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def opened(shared_scratch: Path, capabilities: Path) -> AsyncIterator[OpenGuest]:
    async with open_guest(shared_scratch, capabilities, "s") as one:
        yield one


@pytest.mark.vm
@in_shared_loop
async def test_a_command_tells_status_and_words(opened: OpenGuest) -> None:
    await opened.clean()
    assert await opened.shell.run("echo one; echo two >&2; exit 3") == (3, "one\ntwo\n")
    assert await opened.shell.run("cat", stdin=b"three") == (0, "three")
    status, who = await opened.shell.run("id -u; hostname -i 2>/dev/null; true")
    assert (status, who.split()[0]) == (0, "0")
    both = await asyncio.gather(opened.shell.run("echo a"), opened.shell.run("echo b"))
    assert [answer.out for answer in both] == ["a\n", "b\n"]


@pytest.mark.vm
@in_shared_loop
async def test_a_connection_is_made_again_after_the_guest_was_put_back(opened: OpenGuest) -> None:
    await opened.shell.run("echo mark >/tmp/mark")
    await opened.clean()
    assert (await opened.shell.run("cat /tmp/mark")).status != 0
    await opened.tell("clean")  # and the shell is not told
    assert await opened.shell.run("echo again") == (0, "again\n")


@pytest.mark.vm
@in_shared_loop
async def test_a_command_without_end_is_given_up_and_the_next_one_works(opened: OpenGuest) -> None:
    await opened.clean()
    await opened.shell.open(timeout=30)
    begin = time.monotonic()
    with pytest.raises(ShellFailed, match=r"guest g1, `sleep 1000`: not done after 1 s"):
        await opened.shell.run("sleep 1000", timeout=1)
    assert time.monotonic() - begin < 5
    running = asyncio.create_task(opened.shell.run("sleep 1000", timeout=60))
    await asyncio.sleep(0.5)  # it may be connecting, or running: either must be left at once
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await opened.shell.run("echo on", timeout=30) == (0, "on\n")


@pytest.mark.vm
@in_shared_loop
async def test_another_guest_than_the_pinned_one_is_refused(opened: OpenGuest) -> None:
    keys = msgspec.structs.replace(opened.keys, host=make_keys().host)
    shell = GuestShell("g1", port=opened.port, keys=keys)
    with pytest.raises(ShellFailed, match="not this node's guest: its host key is another"):
        await shell.run("true", timeout=30)
    await shell.close()


@pytest.mark.vm
@in_shared_loop
async def test_nobody_else_is_let_in(opened: OpenGuest) -> None:
    keys = msgspec.structs.replace(opened.keys, client=make_keys().client)
    shell = GuestShell("g1", port=opened.port, keys=keys)
    with pytest.raises(ShellFailed, match="Authentication"):
        await shell.run("true", timeout=30)
    await shell.close()


@pytest.mark.vm
@in_shared_loop
async def test_the_guest_reaches_nothing_by_its_card(opened: OpenGuest) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.2)
        port = listener.getsockname()[1]
        # 10.0.2.2 is the host, where QEMU's user network is not restricted.
        _, said = await opened.shell.run(
            f"cat /proc/net/route; echo x | nc -w 3 10.0.2.2 {port} && echo reached", timeout=30
        )
        with pytest.raises(TimeoutError):
            listener.accept()
    assert "reached" not in said
    routes = [line.split()[1] for line in said.splitlines()[1:] if line.startswith("eth0")]
    assert "00000000" not in routes  # no way out of its own network


@pytest.mark.vm
@in_shared_loop
async def test_its_port_is_open_to_this_host_alone(opened: OpenGuest) -> None:
    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(table).exists()
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{opened.port:04X}")
    ]
    assert listening == [f"0100007F:{opened.port:04X}"]


@pytest.mark.vm
@in_shared_loop
async def test_a_guest_that_restarts_after_a_reset_keeps_its_qemu(opened: OpenGuest) -> None:
    await opened.clean()
    pid = await opened.pid()
    boots = len([x for x in (await opened.tell("look"))["console"] if "trivisor: ready" in x])
    await opened.shell.run("(usleep 100000; reboot -f) >/dev/null 2>&1 </dev/null &")
    await opened.says("trivisor: ready", times=boots + 1)
    assert await opened.pid() == pid
    await opened.clean()
    assert await opened.pid() == pid
    assert await opened.shell.run("echo back", timeout=30) == (0, "back\n")


@pytest.mark.vm
@in_shared_loop
async def test_a_guest_that_allows_no_faults_has_no_card(booted: Booted) -> None:
    for guest in booted.node.guests.values():
        line = Path(f"/proc/{guest.pid}/cmdline").read_bytes()
        assert b"-nodefaults" in line
        assert b"-netdev" not in line
        assert b"virtio-net" not in line

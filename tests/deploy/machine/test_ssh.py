"""Commands inside a guest: keys, ports, errors; and on a real guest, authentication."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from deploy.machine.ssh import GuestShell, ShellFailed, free_ports, make_keys
from tests.deploy.conftest import Booted
from tests.deploy.open_guest import OpenGuest, open_guest
from tests.errors import raises

in_shared_loop = pytest.mark.asyncio(loop_scope="session")


def test_no_free_port_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        monkeypatch.setattr("deploy.machine.ssh._PORTS", range(port, port + 1))
        with raises("TV0116"):
            free_ports(1)


def test_free_ports_are_free_and_different() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


async def test_closed_port_is_named() -> None:
    [port] = free_ports(1)
    shell = GuestShell("g2", port=port, keys=make_keys())
    with raises("TV0115", match=rf"guest g2 at port {port}: .*refused.*faults allowed"):
        await shell.run("true")
    await shell.close()


@pytest.mark.parametrize("mute", [True, False])
async def test_connection_to_another_server_fails_within_the_timeout(mute: bool) -> None:
    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if mute:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(meet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    shell = GuestShell("g1", port=port, keys=make_keys())
    begin = time.monotonic()
    with raises("TV0115", match="no SSH connection to guest g1"):
        await shell.run("true", timeout=0.5)
    assert time.monotonic() - begin < 5
    await shell.close()
    server.close()
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)  # the last connection may not have been handled yet


# ---- on a real guest


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def opened(shared_scratch: Path, capabilities: Path) -> AsyncIterator[OpenGuest]:
    async with open_guest(shared_scratch, capabilities, "s") as one:
        yield one


@pytest.mark.vm
@in_shared_loop
async def test_command_returns_status_and_output(opened: OpenGuest) -> None:
    await opened.clean()
    assert await opened.shell.run("echo one; echo two >&2; exit 3") == (3, "one\ntwo\n")
    assert await opened.shell.run("cat", stdin=b"three") == (0, "three")
    status, who = await opened.shell.run("id -u; hostname -i 2>/dev/null; true")
    assert (status, who.split()[0]) == (0, "0")
    both = await asyncio.gather(opened.shell.run("echo a"), opened.shell.run("echo b"))
    assert [answer.out for answer in both] == ["a\n", "b\n"]


@pytest.mark.vm
@in_shared_loop
async def test_connection_is_made_again_after_a_restore(opened: OpenGuest) -> None:
    await opened.shell.run("echo mark >/tmp/mark")
    await opened.clean()
    assert (await opened.shell.run("cat /tmp/mark")).status != 0
    await opened.command("restore")  # without a disconnect of the shell
    assert await opened.shell.run("echo again") == (0, "again\n")


@pytest.mark.vm
@in_shared_loop
async def test_endless_command_times_out_and_the_next_one_works(opened: OpenGuest) -> None:
    await opened.clean()
    await opened.shell.run("true", timeout=30)
    begin = time.monotonic()
    with pytest.raises(ShellFailed, match=r"guest g1, `sleep 1000`: not finished after 1 s"):
        await opened.shell.run("sleep 1000", timeout=1)
    assert time.monotonic() - begin < 5
    running = asyncio.create_task(opened.shell.run("sleep 1000", timeout=60))
    await asyncio.sleep(0.5)  # it may be connecting or running: both must end at once
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await opened.shell.run("echo on", timeout=30) == (0, "on\n")


@pytest.mark.vm
@in_shared_loop
async def test_guest_with_another_host_key_is_rejected(opened: OpenGuest) -> None:
    keys = msgspec.structs.replace(opened.keys, host=make_keys().host)
    shell = GuestShell("g1", port=opened.port, keys=keys)
    with pytest.raises(ShellFailed, match="not this node's guest: its host key differs"):
        await shell.run("true", timeout=30)
    await shell.close()


@pytest.mark.vm
@in_shared_loop
async def test_guest_rejects_another_client_key(opened: OpenGuest) -> None:
    keys = msgspec.structs.replace(opened.keys, client=make_keys().client)
    shell = GuestShell("g1", port=opened.port, keys=keys)
    with pytest.raises(ShellFailed, match="Authentication"):
        await shell.run("true", timeout=30)
    await shell.close()


@pytest.mark.vm
@in_shared_loop
async def test_guest_cannot_reach_the_host_through_its_network_card(opened: OpenGuest) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.2)
        port = listener.getsockname()[1]
        # 10.0.2.2 would be the host if QEMU's user network were not restricted.
        _, output = await opened.shell.run(
            f"cat /proc/net/route; echo x | nc -w 3 10.0.2.2 {port} && echo reached", timeout=30
        )
        with pytest.raises(TimeoutError):
            listener.accept()
    assert "reached" not in output
    routes = [line.split()[1] for line in output.splitlines()[1:] if line.startswith("eth0")]
    assert "00000000" not in routes  # no way out of its own network


@pytest.mark.vm
@in_shared_loop
async def test_guests_port_listens_on_the_loopback_only(opened: OpenGuest) -> None:
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
async def test_guest_with_on_reset_restart_keeps_its_qemu(opened: OpenGuest) -> None:
    await opened.clean()
    pid = await opened.pid()
    boots = await opened.count("trivisor: ready")
    await opened.shell.run("(usleep 100000; reboot -f) >/dev/null 2>&1 </dev/null &")
    await opened.says("trivisor: ready", times=boots + 1)
    assert await opened.pid() == pid
    await opened.clean()
    assert await opened.pid() == pid
    assert await opened.shell.run("echo back", timeout=30) == (0, "back\n")


@pytest.mark.vm
@in_shared_loop
async def test_guest_without_faults_has_no_network_card(booted: Booted) -> None:
    for guest in booted.node.guests.values():
        line = Path(f"/proc/{guest.pid}/cmdline").read_bytes()
        assert b"-nodefaults" in line
        assert b"-netdev" not in line
        assert b"virtio-net" not in line

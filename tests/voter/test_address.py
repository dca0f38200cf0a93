"""Addresses of links."""

from __future__ import annotations

import asyncio

import pytest

from tests.errors import raises
from tests.waiting import until
from voter.address import UNIX_PATH_MAX, check_unix_path, connect, parse_address, split_host_port
from voter.errors import AddressError


def test_a_unix_address() -> None:
    address = parse_address("unix:/run/a b:c")
    assert (address.kind, address.path, address.text) == ("unix", "/run/a b:c", "unix:/run/a b:c")


def test_a_tcp_address() -> None:
    address = parse_address("tcp:[::1]:80")
    assert (address.kind, address.host, address.port) == ("tcp", "::1", 80)


def test_a_command() -> None:
    address = parse_address("exec:/bin/sh -c 'echo \"a b\"'")
    assert (address.kind, address.command) == ("exec", ("/bin/sh", "-c", 'echo "a b"'))


@pytest.mark.parametrize(
    "text",
    ["", "unix", "unix:", "tcp:", "exec:", "http://host", "/run/socket", "tcp:host", "tcp:host:",
     "tcp:host:x", "tcp:host:65536", "tcp:host:-1", "tcp::80", "exec:'open", "exec: ",
     "tcp:[]:80", "tcp:::1:80", "tcp:[::1:80", "tcp:a..b:80", "tcp:a b:80", "tcp:host:\u0663",
     "tcp:host:" + "9" * 5000, "tcp:" + "x" * 64 + ":80", "tcp:a\0b:80", "unix:/a\0b"],
)  # fmt: skip
def test_invalid_address_is_named(text: str) -> None:
    with pytest.raises(AddressError) as error:
        parse_address(text)
    assert repr(text.removeprefix("tcp:").removeprefix("unix:"))[1:-1] in str(error.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("a:0", ("a", 0)), ("127.0.0.1:65535", ("127.0.0.1", 65535)), ("[fe80::1]:7", ("fe80::1", 7))],
)
def test_host_and_port(text: str, wanted: tuple[str, int]) -> None:
    assert split_host_port(text) == wanted


def test_too_long_path_error_gives_the_excess() -> None:
    check_unix_path("/" + "x" * (UNIX_PATH_MAX - 1))
    with raises("TV0202", match=r"2 bytes too long.*shorter directory"):
        check_unix_path("/" + "ä" * (UNIX_PATH_MAX // 2) + "xx")
    with raises("TV0202", match="too long"):
        parse_address("unix:/" + "x" * UNIX_PATH_MAX)


class Echo(asyncio.Protocol):
    """Collects what comes, and when it ends."""

    def __init__(self) -> None:
        self.data = b""
        self.made = asyncio.get_running_loop().create_future()
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made.set_result(transport)

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


async def test_tcp_connects() -> None:
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    protocol = Echo()
    transport = await connect(parse_address(f"tcp:127.0.0.1:{port}"), lambda: protocol)
    assert await protocol.made is transport
    transport.close()
    await protocol.lost
    server.close()


async def test_a_process_is_connected_by_its_standard_input_and_output() -> None:
    protocol = Echo()
    transport = await connect(parse_address("exec:/bin/cat"), lambda: protocol)
    assert isinstance(transport, asyncio.WriteTransport)
    transport.write(b"there and back")
    await until(lambda: protocol.data == b"there and back")
    transport.abort()
    await protocol.lost


async def test_a_process_that_ends_ends_the_connection() -> None:
    protocol = Echo()
    await connect(parse_address("exec:/bin/echo last words"), lambda: protocol)
    async with asyncio.timeout(5):
        await protocol.lost
    assert protocol.data == b"last words\n"


async def test_failed_connect_is_an_os_error() -> None:
    for text in ("unix:/nowhere/at/all", "exec:/nowhere/at/all", "exec:/", "tcp:127.0.0.1:1"):
        with pytest.raises(OSError, match=r"."):
            await connect(parse_address(text), Echo)

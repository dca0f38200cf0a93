"""Who may use the front ends over TCP: TLS, client certificates, tokens."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import warnings
from hashlib import sha256
from pathlib import Path

import pytest

from guests.context import Context
from guests.protocol.message import Reply, Request
from guests.protocol.wire import FrameKind
from guests.services.kv import KeyValue
from tests.errors import raises
from tests.voter.certificates import Authority, Pair
from tests.voter.conftest import Nodes
from tests.voter.frontend.raw import OPEN, raw
from tests.voter.http_client import HttpClient
from tests.voter.node import Node
from tests.waiting import until
from voter import access
from voter.client import Client
from voter.client.errors import ConnectionFailed, Unauthorized
from voter.frontend import handshake
from voter.tls import client_context

TOKEN = "tvt_a-token-of-this-test"
HASH = sha256(TOKEN.encode()).hexdigest()
BEARER = ("Authorization", f"Bearer {TOKEN}")
pytestmark = pytest.mark.asyncio


class WhoAsks(KeyValue):
    """Answers with the caller and the headers that it was sent."""

    def apply(self, request: Request, context: Context) -> Reply:
        """Answer."""
        return Reply(200, json.dumps([context.caller, sorted(request.headers)]).encode())


ALL = dict.fromkeys(range(3), WhoAsks)


def security(
    pair: Pair | None = None, *, ca: Path | None = None, tokens: Path | None = None
) -> str:
    """The configuration's section."""
    lines = ["[security]"]
    if pair is not None:
        lines += [f'certificate = "{pair.certificate}"', f'key = "{pair.key}"']
    if ca is not None:
        lines.append(f'client_ca = "{ca}"')
    if tokens is not None:
        lines.append(f'tokens = "{tokens}"')
    return "\n".join(lines)


def write_tokens(path: Path, text: str) -> Path:
    """Replace the file of tokens."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)
    return path


async def open_tls(port: int, context: ssl.SSLContext) -> HttpClient:
    """Open an encrypted HTTP connection."""
    return HttpClient(*await asyncio.open_connection("127.0.0.1", port, ssl=context, limit=1 << 22))


async def native(node: Node, **more: object) -> Client:
    """Open a native connection by TCP."""
    address = f"tcp:127.0.0.1:{node.native_port}"
    return await Client.connect(address, retry=False, **more)  # type: ignore[arg-type]


# ------------------------------------------------------------ TLS


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed files are read sooner than every second."""
    monkeypatch.setattr(access, "PAUSE", 0.02)


async def test_both_front_ends_speak_tls(nodes: Nodes, scratch: Path) -> None:
    authority = Authority(scratch)
    node = await nodes.make(security(authority.sign("server")))
    trusting = client_context(authority.file)
    body = bytes(range(256)) * 2048
    async with await open_tls(node.port, trusting) as client:
        for _ in range(3):  # the connection is kept
            assert (await client.ask("PUT", "/kv/a", body)).status in (201, 204)
            assert (await client.ask("GET", "/kv/a")).body == body
        version = client.writer.get_extra_info("ssl_object").version()
        assert version == "TLSv1.3"
    async with await native(node, tls=trusting) as client:
        answers = await asyncio.gather(*(client.request("GET", "/kv/a") for _ in range(100)))
        assert {answer.body for answer in answers} == {body}
    async with await node.client() as client:  # the unix socket stays as it is
        assert (await client.request("GET", "/kv/a")).body == body


async def test_client_that_trusts_another_authority_or_name_rejects_the_voter(
    nodes: Nodes, scratch: Path
) -> None:
    authority, other = Authority(scratch), Authority(scratch, "other")
    node = await nodes.make(security(authority.sign("server", host="voter.example")))
    with pytest.raises(ConnectionFailed, match="unable to get local issuer certificate"):
        await native(node, tls=client_context(other.file))
    with pytest.raises(ConnectionFailed, match="IP address mismatch"):
        await native(node, tls=client_context(authority.file))


async def test_voter_with_client_ca_takes_only_clients_with_a_certificate_of_it(
    nodes: Nodes, scratch: Path
) -> None:
    authority, other = Authority(scratch), Authority(scratch, "other")
    pair = authority.sign("server")
    node = await nodes.make(security(pair, ca=authority.file), services=ALL)
    good = client_context(authority.file, *authority.sign("billing", client=True))
    async with await open_tls(node.port, good) as client:
        caller, _ = (await client.ask("GET", "/")).json
        assert caller == "cert:billing"
    async with await native(node, tls=good) as other_client:
        assert json.loads((await other_client.request("GET", "/")).body)[0] == "cert:billing"
    for bad in (
        client_context(authority.file),
        client_context(authority.file, *other.sign("mallory", client=True)),
        client_context(authority.file, *authority.sign("late", client=True, days=-1)),
    ):
        with pytest.raises(ConnectionFailed):
            await native(node, tls=bad)
        client = await open_tls(node.port, bad)  # TLS 1.3: the refusal comes with the first byte
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            await client.ask("GET", "/livez")
        client.writer.transport.abort()
    async with await open_tls(node.port, good) as client:
        assert (await client.ask("GET", "/")).status == 200


async def test_old_tls_is_refused(nodes: Nodes, scratch: Path) -> None:
    authority = Authority(scratch)
    node = await nodes.make(security(authority.sign("server")))
    old = client_context(authority.file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await open_tls(node.port, old)


async def test_plain_client_of_a_tls_port_is_closed_and_others_are_served(
    nodes: Nodes, scratch: Path
) -> None:
    authority = Authority(scratch)
    node = await nodes.make(security(authority.sign("server")))
    for data in (
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        OPEN,
        b"\x16\x03\x01\xff\xff" + bytes(70000),
    ):
        async with await HttpClient.open(node.port) as client:
            client.writer.write(data)
            assert b"HTTP" not in await client.ended()
    with pytest.raises(ConnectionFailed, match=r"lost|timed out"):
        await native(node)
    async with await open_tls(node.port, client_context(authority.file)) as client:
        assert (await client.ask("GET", "/kv/none")).status == 404


async def test_tls_client_of_a_plain_port_gets_an_error(nodes: Nodes, scratch: Path) -> None:
    node = await nodes.make()
    with pytest.raises(ConnectionFailed, match=r"(?i)ssl|tls"):
        await native(node, tls=client_context(Authority(scratch).file))


async def test_handshake_that_never_ends_is_closed(nodes: Nodes, scratch: Path) -> None:
    authority = Authority(scratch)
    more = security(authority.sign("server")) + "\n[timing]\nheader = 0.3"
    node = await nodes.make(more)
    async with await HttpClient.open(node.port) as silent, await HttpClient.open(node.port) as slow:
        await slow.send(b"\x16\x03\x01")
        assert await silent.ended() == b""
        assert await slow.ended() == b""
    async with await open_tls(node.port, client_context(authority.file)) as client:
        assert (await client.ask("GET", "/livez")).status == 200


async def test_handshakes_under_way_are_bounded(
    nodes: Nodes, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent clients cannot keep others out: the oldest of them is closed."""
    monkeypatch.setattr(handshake, "MOST", 4)
    authority = Authority(scratch)
    node = await nodes.make(security(authority.sign("server")))
    silent = [await HttpClient.open(node.port) for _ in range(6)]
    try:
        assert await silent[0].ended() == b""
        async with await open_tls(node.port, client_context(authority.file)) as client:
            assert (await client.ask("GET", "/livez")).status == 200
    finally:
        for client in silent:
            client.writer.transport.abort()


async def test_renewed_certificate_is_used_without_a_restart(nodes: Nodes, scratch: Path) -> None:
    authority = Authority(scratch)
    pair = authority.sign("server")
    node = await nodes.make(security(pair))
    trusting = client_context(authority.file)
    assert node.access is not None
    other = authority.sign("other").certificate.read_text()
    former = None
    for changed in ("-----BEGIN CERTIFICATE-----\n", other):  # half written; its key comes later
        pair.certificate.write_text(changed)
        before = node.access.problem
        await until(lambda: node.access is not None and node.access.problem != before)  # noqa: B023
        async with await open_tls(node.port, trusting) as client:  # the former one serves
            former = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    authority.sign("server", days=20)
    await until(lambda: node.access is not None and not node.access.problem)
    async with await open_tls(node.port, trusting) as client:
        current = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    assert current != former
    assert node.access.expires is not None


# ------------------------------------------------------------ tokens


async def test_only_requests_with_a_token_are_executed(nodes: Nodes, scratch: Path) -> None:
    tokens = write_tokens(scratch / "tokens", f"# of the test\nbilling {HASH} today\n")
    node = await nodes.make(security(tokens=tokens), services=ALL)
    for headers in (
        [],
        [("Authorization", "Bearer wrong")],
        [("Authorization", f"Basic {TOKEN}")],
        [("Authorization", f"Bearer {HASH}")],
        [("Authorization", "Bearer")],
        [BEARER, BEARER],
    ):
        response = await node.ask("PUT", "/kv/a", b"1", *headers)
        assert (response.status, response.problem) == (401, "unauthorized")
        assert response.headers["www-authenticate"].startswith("Bearer")
    assert node.runner.counters["requests"] == 0
    caller, headers_seen = (await node.ask("PUT", "/kv/a", b"1", BEARER)).json
    assert caller == "token:billing"
    assert "authorization" not in headers_seen, "a guest must not get the token"
    async with await native(node, token=TOKEN) as client:
        assert json.loads((await client.request("GET", "/")).body)[0] == "token:billing"
    async with await node.client() as client:  # the unix socket needs none
        caller = json.loads((await client.request("GET", "/")).body)[0]
        assert caller == f"uid:{os.geteuid()}"


@pytest.mark.parametrize(
    ("path", "status"),
    [("/livez", 200), ("/readyz", 200), ("/readyz?verbose", 401), ("/metrics", 401)],
)
async def test_health_needs_no_token_and_details_do(
    nodes: Nodes, scratch: Path, path: str, status: int
) -> None:
    node = await nodes.make(security(tokens=write_tokens(scratch / "tokens", f"billing {HASH}\n")))
    assert (await node.ask("GET", path)).status == status
    assert (await node.ask("GET", path, b"", BEARER)).status == 200


@pytest.mark.parametrize("token", ["", "wrong", HASH])
async def test_native_client_without_a_valid_token_is_refused(
    nodes: Nodes, scratch: Path, token: str
) -> None:
    node = await nodes.make(security(tokens=write_tokens(scratch / "tokens", f"billing {HASH}\n")))
    with raises("TV0971"):
        await native(node, token=token)
    async with raw(node, opened=False, tcp=True) as connection:  # and cannot skip OPEN
        await connection.send(b"" if token else OPEN)
        if not token:
            assert (await connection.failure())[0] == "unauthorized"


async def test_client_with_a_token_works_with_a_voter_that_needs_none(nodes: Nodes) -> None:
    node = await nodes.make()
    async with await native(node, token=TOKEN) as client:
        assert (await client.request("GET", "/kv/none")).status == 404
    async with raw(node, opened=False, tcp=True) as connection:
        await connection.send(OPEN)
        assert (await connection.frame()).kind == FrameKind.OPENED


async def test_revoked_token_ends_connections_and_new_ones_count_at_once(
    nodes: Nodes, scratch: Path
) -> None:
    second = "tvt_second"
    tokens = write_tokens(scratch / "tokens", f"billing {HASH}\n")
    node = await nodes.make(security(tokens=tokens))
    async with await native(node, token=TOKEN) as client, await node.open() as http:
        assert (await http.ask("GET", "/kv/a", b"", BEARER)).status == 404
        write_tokens(tokens, f"second {sha256(second.encode()).hexdigest()}\n")

        async def refused() -> bool:
            try:
                await client.request("GET", "/kv/a")
            except (Unauthorized, ConnectionFailed):
                return True
            return False

        await until(refused)
        assert (await http.ask("GET", "/kv/a", b"", BEARER)).status == 401
    async with await native(node, token=second) as client:
        assert (await client.request("GET", "/kv/a")).status == 404


async def test_damaged_file_of_tokens_changes_nothing_while_the_voter_runs(
    nodes: Nodes, scratch: Path
) -> None:
    tokens = write_tokens(scratch / "tokens", f"billing {HASH}\n")
    node = await nodes.make(security(tokens=tokens))
    write_tokens(tokens, "billing secret-in-clear\n")
    await until(lambda: node.access is not None and "line 1" in node.access.problem)
    assert (await node.ask("GET", "/kv/a", b"", BEARER)).status == 404
    assert (await node.ask("GET", "/kv/a")).status == 401

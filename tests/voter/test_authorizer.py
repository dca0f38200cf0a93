"""A function in each replica (C1) or once on the host (C2): equal for clients, and fail-safe.

F is the real process (``deploy.authorizer``), or a socket that answers as a test selects.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from guests.function import sign
from guests.protocol.function import BLOCK, FORBID, NO, REFUSAL, YES
from guests.protocol.message import Reply, encode_request
from guests.protocol.wire import Decoder, Frame, FrameKind, encode
from tests.errors import raises
from tests.voter.conftest import Nodes
from tests.voter.node import EXEC_KV, Node, configure, running
from tests.waiting import until
from voter.authorizer import AuthorizingRunner
from voter.client import Client
from voter.client.errors import NotExecuted, Overload

__all__: list[str] = []

KEY = bytes(range(32))
ROOT = Path(__file__).parents[2]


def key_file(directory: Path) -> Path:
    path = directory / "key"
    path.write_text(KEY.hex())
    return path


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@asynccontextmanager
async def f_process(directory: Path, *words: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """F, serving at ``directory/f.sock``."""
    path = directory / "f.sock"
    command = [sys.executable, "-m", "deploy.authorizer", "--key", str(key_file(directory))]
    command += ["--listen", str(path), *words]
    with subprocess.Popen(command, cwd=ROOT) as process:  # noqa: ASYNC220 - a test double
        try:
            await until(lambda: listens(path), "F listens")
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()


def gate(directory: Path, seconds: float = 5.0) -> str:
    """Voter configuration with F there, for replicas in the test's own loop."""
    return f'function = "unix:{directory}/f.sock"\n[timing]\nfunction = {seconds}\n'


async def signed_client(node: Node) -> Client:
    return await Client.connect(f"unix:{node.native_path}", retry=False, key=KEY)


Answers = Callable[[Frame], bytes]


@asynccontextmanager
async def scripted_f(directory: Path, answers: Answers) -> AsyncIterator[list[Frame]]:
    """Run an F that answers by ``answers``; give the questions it got."""
    asked: list[Frame] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        decoder = Decoder()
        while data := await reader.read(1 << 16):
            for frame in decoder.feed(data):
                asked.append(frame)
                writer.write(answers(frame))
        writer.close()

    server = await asyncio.start_unix_server(serve, directory / "f.sock")
    try:
        yield asked
    finally:
        server.close()
        for writer in writers:
            writer.close()
        (directory / "f.sock").unlink()


async def exercise(node: Node) -> list[tuple[int, bytes]]:
    """Signed and unsigned requests, over both front ends; what clients saw."""
    seen = []
    async with await signed_client(node) as client, await node.client() as stranger:
        for each in (client, stranger):
            for method, target, body in (
                ("PUT", "/kv/a", b"blue"), ("GET", "/kv/a", b""), ("DELETE", "/kv/a", b""),
            ):  # fmt: skip
                answer = await each.request(method, target, body)
                seen.append((answer.status, answer.body))
    for header in ((), (sign(KEY, "PUT", "/kv/h", b"red"),)):
        response = await node.ask("PUT", "/kv/h", b"red", *header)
        seen.append((response.status, response.body))
        assert (response.status == 401) == ("www-authenticate" in response.headers)
    response = await node.ask("HEAD", "/kv/h")
    return [*seen, (response.status, response.body)]


async def test_function_in_guests_and_on_the_host_answers_clients_alike(scratch: Path) -> None:
    for name in ("guests", "host"):
        (scratch / name).mkdir()
    inside = f"{EXEC_KV} --function hmac-sha256 --key {key_file(scratch)}"
    async with running(configure([inside] * 3), scratch / "guests") as node:
        await node.until_status("ready")
        first = await exercise(node)
        assert node.runner.engine.log.seq > 6, "what is refused in guests is ordered"
    async with f_process(scratch):
        config = configure([EXEC_KV] * 3, gate(scratch))
        async with running(config, scratch / "host") as node:
            await node.until_status("ready")
            second = await exercise(node)
            assert node.runner.counters["denied"] == 5
            ordered = node.runner.counters["released"]
    assert first == second
    assert [status for status, _ in first] == [201, 200, 204, 401, 401, 401, 401, 201, 401]
    assert ordered == 4, "what F refuses is not ordered"


async def test_idempotency_key_repeats_the_reply_in_c1_and_asks_f_in_c2(
    scratch: Path,
) -> None:
    signed = sign(KEY, "PUT", "/kv/a", b"blue")

    async def statuses(node: Node) -> list[int]:
        await node.until_status("ready")
        tries = (("1", False), ("1", True), ("2", True), ("2", False))
        return [
            (
                await node.ask(
                    "PUT",
                    "/kv/a",
                    b"blue",
                    ("Idempotency-Key", key),
                    *([signed] if sign_it else []),
                )
            ).status
            for key, sign_it in tries
        ]

    for name in ("guests", "host"):
        (scratch / name).mkdir()
    inside = f"{EXEC_KV} --function hmac-sha256 --key {key_file(scratch)}"
    async with running(configure([inside] * 3), scratch / "guests") as node:
        assert await statuses(node) == [401, 401, 201, 201]
    async with f_process(scratch):
        config = configure([EXEC_KV] * 3, gate(scratch))
        async with running(config, scratch / "host") as node:
            assert await statuses(node) == [401, 201, 204, 401]


async def test_dead_f_admits_no_request_until_it_is_back(nodes: Nodes, scratch: Path) -> None:
    node = await nodes.make(gate(scratch))
    async with await signed_client(node) as client:
        with raises("TV0301", match="no function listens"):
            await client.request("GET", "/kv/a")
        async with f_process(scratch) as process:
            assert (await client.request("PUT", "/kv/a", b"blue")).status == 201
            process.kill()
            process.wait()
            with pytest.raises(NotExecuted, match="the function F"):
                await client.request("GET", "/kv/a")
            assert (await node.ask("GET", "/kv/a")).problem == "not-executed"
        (scratch / "f.sock").unlink(missing_ok=True)
        async with f_process(scratch):
            assert (await client.request("GET", "/kv/a")).body == b"blue"
    assert node.runner.failures["not-executed"] == 3


async def test_stopped_f_admits_no_request(nodes: Nodes, scratch: Path) -> None:
    node = await nodes.make(gate(scratch, 1.5))
    async with f_process(scratch) as process, await signed_client(node) as client:
        assert (await client.request("PUT", "/kv/a", b"blue")).status == 201
        process.send_signal(signal.SIGSTOP)
        for _ in range(2):
            with pytest.raises(NotExecuted, match=r"no answer within 1\.5 s"):
                await client.request("GET", "/kv/a")
        process.send_signal(signal.SIGCONT)
        assert (await client.request("GET", "/kv/a")).body == b"blue"
    assert node.runner.counters["released"] == 2


async def test_f_with_keep_is_restarted(nodes: Nodes, scratch: Path) -> None:
    node = await nodes.make(gate(scratch))
    async with f_process(scratch, "--keep") as parent, await signed_client(node) as client:
        assert (await client.request("PUT", "/kv/a", b"blue")).status == 201
        [child] = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)

        async def serves() -> bool:
            try:
                return (await client.request("GET", "/kv/a")).status == 200
            except NotExecuted:
                return False

        await until(serves)
    assert parent.wait(10) == 0


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (lambda frame: encode(FrameKind.REPLY, 0, frame.seq + 1, YES), "unexpected answer"),
        (lambda frame: encode(FrameKind.REPLY, 0, frame.seq, b"yes"), "unexpected answer"),
        (lambda frame: encode(FrameKind.REQUEST, 0, frame.seq, YES), "unexpected answer"),
        (lambda frame: b"yes\n" * 100, "not a frame"),
        (lambda frame: encode(FrameKind.REPLY, 0, frame.seq, YES)[:-1], "no answer"),
    ],
)
async def test_malformed_answer_of_f_admits_no_request(
    nodes: Nodes, scratch: Path, answers: Answers, said: str
) -> None:
    node = await nodes.make(gate(scratch, 0.3))
    async with scripted_f(scratch, answers), await signed_client(node) as client:
        with pytest.raises(NotExecuted, match=said):
            await client.request("PUT", "/kv/a", b"blue")
        assert sum(agent.orders for agent in node.agents) == 0


async def test_lying_f_is_trusted(nodes: Nodes, scratch: Path) -> None:
    """F belongs to the trusted part: its reliability R_F counts as R_V does."""
    node = await nodes.make(gate(scratch))
    async with node_clients(node) as (client, stranger):
        async with scripted_f(scratch, lambda frame: encode(FrameKind.REPLY, 0, frame.seq, YES)):
            assert (await stranger.request("PUT", "/kv/a", b"blue")).status == 201
        async with scripted_f(scratch, lambda frame: encode(FrameKind.REPLY, 0, frame.seq, NO)):
            await until(lambda: says_no(client))


async def says_no(client: Client) -> bool:
    """Return whether F rejects a signed request (the old connection may end first)."""
    try:
        answer = await client.request("GET", "/kv/a")
    except NotExecuted:
        return False
    return (answer.status, answer.vote) == (401, (0, 0, 0))


@asynccontextmanager
async def node_clients(node: Node) -> AsyncIterator[tuple[Client, Client]]:
    async with await signed_client(node) as client, await node.client() as stranger:
        yield client, stranger


async def test_requests_keep_their_order_and_wait_for_f(nodes: Nodes, scratch: Path) -> None:
    node = await nodes.make(gate(scratch))
    async with f_process(scratch), await signed_client(node) as client:
        header = [sign(KEY, "POST", "/kv/n?increment=1")]
        request = encode_request("POST", "/kv/n?increment=1", header)
        forged = encode_request("POST", "/kv/n?increment=1", [(header[0][0], "HMAC-SHA256 00")])
        futures = [client.start(forged if n % 5 == 4 else request) for n in range(200)]
        replies = [data for _, data in await asyncio.gather(*futures)]
        counts = [int(Reply.decode(each).body) for each in replies if each != REFUSAL]
        assert counts == list(range(1, 161))
        assert [n for n, each in enumerate(replies) if each == REFUSAL] == list(range(4, 200, 5))


async def test_request_of_a_lost_client_is_not_ordered(nodes: Nodes, scratch: Path) -> None:
    node = await nodes.make(gate(scratch, 5.0))
    runner = node.runner
    assert isinstance(runner, AuthorizingRunner)
    async with scripted_f(scratch, lambda frame: b"") as asked:
        client = await node.open()
        await client.send(b"PUT /kv/a HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n")
        await until(lambda: asked)
        client.reset()
        await until(lambda: runner._gone)
        line = runner._f
        assert line is not None
        runner.decide(line, asked[0].seq, YES)
    assert not (runner._asked or runner._gone or runner._passed or runner._asked_bytes)
    assert runner.counters["requests"] == 0


async def test_requests_that_wait_for_f_are_bounded(
    nodes: Nodes, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voter.authorizer.ASKED", 3)
    node = await nodes.make(gate(scratch, 0.5))
    async with scripted_f(scratch, lambda frame: b""), await signed_client(node) as client:
        tries = [client.request("GET", f"/kv/{n}") for n in range(5)]
        found = await asyncio.gather(*tries, return_exceptions=True)
    assert [type(each) for each in found] == [NotExecuted] * 3 + [Overload] * 2


async def test_too_large_request_is_refused_as_without_f(nodes: Nodes, scratch: Path) -> None:
    node = await nodes.make(gate(scratch))
    async with f_process(scratch):
        fits = 1 << 20
        header = sign(KEY, "PUT", "/kv/a", bytes(fits))
        assert (await node.ask("PUT", "/kv/a", bytes(fits), header)).status == 201
        assert (await node.ask("PUT", "/kv/a", bytes(fits + 1), header)).status == 413


async def test_unexpected_answer_of_f_ends_its_connection_only(nodes: Nodes, scratch: Path) -> None:
    node, problems = await nodes.make(gate(scratch)), []
    runner = node.runner
    assert isinstance(runner, AuthorizingRunner)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))

    def twice(frame: Frame) -> bytes:
        return encode(FrameKind.REPLY, 0, frame.seq, YES) + encode(FrameKind.REPLY, 0, 0, YES)

    async with scripted_f(scratch, twice), await signed_client(node) as client:
        assert (await client.request("PUT", "/kv/a", b"blue")).status == 201
        await until(lambda: runner._f is None)
        assert (await client.request("PUT", "/kv/a", b"red")).status == 204
    assert not problems


async def test_monitor_as_f_forbids_a_request_and_blocks_its_client(
    nodes: Nodes, scratch: Path
) -> None:
    node = await nodes.make(gate(scratch))

    def judge(frame: Frame) -> bytes:
        answer = FORBID if b"odd" in frame.payload else BLOCK if b"evil" in frame.payload else YES
        return encode(FrameKind.REPLY, 0, frame.seq, answer)

    async with scripted_f(scratch, judge), await node.client() as client:
        assert (await client.request("PUT", "/kv/odd", b"1")).status == 403
        assert (await client.request("PUT", "/kv/a", b"1")).status == 201
        async with await node.open() as attacker:
            await attacker.send(b"GET /kv/evil HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await attacker.ended() == b"", "its connection is closed without a reply"
        refused = await node.ask("GET", "/kv/a")
        assert (refused.status, refused.problem) == (403, "blocked")
        assert (await client.request("GET", "/kv/a")).body == b"1", "another client is served"
        seen = node.runner.counters["denied"], node.runner.counters["requests"]
    assert seen == (2, 2), "forbidden requests were not ordered"


async def test_retry_of_an_executed_request_is_outcome_unknown_without_f(
    nodes: Nodes, scratch: Path
) -> None:
    node = await nodes.make(gate(scratch, 1.5))
    headers = (sign(KEY, "PUT", "/kv/a", b"blue"), ("Idempotency-Key", "k1"))
    other = (sign(KEY, "PUT", "/kv/a", b"blue"), ("Idempotency-Key", "k2"))
    async with f_process(scratch) as process:
        assert (await node.ask("PUT", "/kv/a", b"blue", *headers)).status == 201
        for number in (signal.SIGSTOP, signal.SIGKILL):
            process.send_signal(number)
            again = await node.ask("PUT", "/kv/a", b"blue", *headers)
            assert again.problem == "outcome-unknown"
            new = await node.ask("PUT", "/kv/a", b"blue", *other)
            assert new.problem == "not-executed"
        process.wait()
    async with f_process(scratch):
        again = await node.ask("PUT", "/kv/a", b"blue", *headers)
        assert (again.status, again.headers["idempotency-replayed"]) == (201, "true")


async def test_requests_that_wait_for_f_fail_when_the_voter_ends(
    nodes: Nodes, scratch: Path
) -> None:
    node = await nodes.make(gate(scratch))
    async with scripted_f(scratch, lambda frame: b"") as asked, await signed_client(node) as client:
        waits = asyncio.create_task(client.request("PUT", "/kv/a", b"blue"))
        await until(lambda: asked)
        assert node.runner.waiting == 1
        await node.runner.drained()
        with pytest.raises(NotExecuted, match="the voter stops"):
            async with asyncio.timeout(1):
                await waits
        with pytest.raises(NotExecuted, match="the voter stops"):
            await client.request("PUT", "/kv/a", b"blue")
    assert len(asked) == 1, "F is asked nothing any more"

"""The stream, the actions and the bounds of the dashboard's server."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from yarl import URL

from deploy.dashboard import collector, server
from deploy.dashboard.dashboard import Dashboard, listen
from tests.deploy.dashboard.shown import Browser, FakeSource, browser
from tests.errors import logs, raises
from tests.waiting import PATIENCE, until

Event = tuple[str, str, dict[str, Any]]


class Stream:
    """An open stream of server-sent events."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer

    async def next(self) -> Event:
        """Return the next event: its id, its name, its data."""
        async with asyncio.timeout(PATIENCE):
            text = (await self.answer.content.readuntil(b"\n\n")).decode()
        fields = dict(line.split(": ", 1) for line in text.splitlines() if line)
        return fields["id"], fields["event"], json.loads(fields["data"])


async def open_stream(user: Browser, stack: AsyncExitStack, last_id: str = "") -> Stream:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    answer = await stack.enter_async_context(
        user.session.get(
            f"{user.base}/api/stream", headers=headers,
            timeout=aiohttp.ClientTimeout(total=None), read_bufsize=1 << 20,
        )
    )  # fmt: skip
    assert answer.status == 200, await answer.text()
    return Stream(answer)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "WATCHED_INTERVAL", 0.02)
    monkeypatch.setattr(collector, "UNWATCHED_INTERVAL", 0.02)
    monkeypatch.setattr(collector, "HELD", 0.02)


async def test_stream_begins_with_the_whole_state_and_continues_with_changes(
    node: FakeSource, user: Browser
) -> None:
    node.add("fault injected", "g1", kind="crash")
    asked = node.asked
    await until(lambda: node.asked > asked + 1)
    async with AsyncExitStack() as stack:
        stream = await open_stream(user, stack)
        assert stream.answer.content_type == "text/event-stream"
        first, kind, full = await stream.next()
        assert kind == "full"
        assert [guest["name"] for guest in full["state"]["guests"]] == ["g1", "g2", "g3"]
        assert [event["event"] for event in full["events"]] == ["fault injected"]
        node.add("healed", "g1", seconds=0.5)
        while not (update := (await stream.next())[2])["events"]:
            assert len(update["points"]) == 1
        assert update["events"][0]["event"] == "healed"
        assert update["state"]["guests"][0]["repaired"]["seconds"] == 0.5
        assert first


async def test_interrupted_browser_continues_where_it_was(user: Browser) -> None:
    async with AsyncExitStack() as stack:
        stream = await open_stream(user, stack)
        await stream.next()
        last_id = (await stream.next())[0]
    async with AsyncExitStack() as stack:
        again = await open_stream(user, stack, last_id)
        identity, kind, _ = await again.next()
        assert kind == "update"
        assert int(identity.split("-")[1]) == int(last_id.split("-")[1]) + 1


@pytest.mark.parametrize("last_id", ["", "0", "x-1", "-", "abc-999999999999999999999", "%s-999"])
async def test_browser_with_an_unknown_position_gets_the_whole_state(
    user: Browser, last_id: str
) -> None:
    async with AsyncExitStack() as stack:
        stream = await open_stream(user, stack)
        run = (await stream.next())[0].split("-")[0]
    async with AsyncExitStack() as stack:
        stream = await open_stream(user, stack, last_id.replace("%s", run))
        assert (await stream.next())[1] == "full"


async def test_browser_that_slept_gets_the_whole_state(
    monkeypatch: pytest.MonkeyPatch, user: Browser, node: FakeSource
) -> None:
    async with AsyncExitStack() as stack:
        stream = await open_stream(user, stack)
        last_id = (await stream.next())[0]
    asked = node.asked
    await until(lambda: node.asked > asked + collector.MOST_MESSAGES + 1)
    async with AsyncExitStack() as stack:
        again = await open_stream(user, stack, last_id)
        assert (await again.next())[1] == "full"


async def test_many_browsers_cost_one_sample_each_interval(
    node: FakeSource, user: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncExitStack() as stack:
        streams = [await open_stream(user, stack) for _ in range(20)]
        seen = [await stream.next() for stream in streams]
        asked = node.asked
        for _ in range(3):
            seen = [await stream.next() for stream in streams]
        assert len({event[0].split("-")[0] for event in seen}) == 1
        assert node.asked - asked < 3 * 20


async def test_too_many_streams_are_answered_503(
    user: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_STREAMS", 2)
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await (await open_stream(user, stack)).next()
        for path in ("/api/stream", "/api/session"):
            status, text = await user.get(path)
            assert status == 503
            assert "too many dashboards" in text
            assert json.loads(text)["error_code"] == "TV0905"
    await until(lambda: _opens(user))


async def _opens(user: Browser) -> bool:
    return (await user.get("/api/session"))[0] == 204


async def test_connections_beyond_the_limit_are_answered_503_and_closed(
    shown: Dashboard, user: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 4)
    monkeypatch.setattr(server, "CROWD", 3)
    host, port = shown.address.split(":")
    connections = [await asyncio.open_connection(host, int(port)) for _ in range(12)]
    try:
        answers = []
        for reader, writer in connections:
            writer.write(b"GET /api/session HTTP/1.1\r\nHost: localhost\r\n\r\n")
            try:
                async with asyncio.timeout(PATIENCE):
                    answers.append((await reader.readline())[9:12])
            except ConnectionError:
                answers.append(b"")
        assert answers.count(b"401") == 3  # the user's browser keeps one connection
        assert answers.count(b"503") >= 1
        assert answers.count(b"") >= 1
    finally:
        for _, writer in connections:
            writer.close()
    await until(lambda: _opens(user))


async def test_connection_that_sends_nothing_is_closed(
    shown: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_TIMEOUT", 0.05)
    host, port = shown.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\n")  # and no more
    async with asyncio.timeout(PATIENCE):
        await until(lambda: _is_lost(reader))
    writer.close()


async def _is_lost(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True


async def test_reader_that_reads_nothing_is_disconnected_and_delays_no_other(
    shown: Dashboard, user: Browser, node: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "WRITE_TIMEOUT", 0.2)
    node.add("fault injected", "g1", proof="x" * 500_000)  # more than the buffers of a socket
    host, port = shown.address.split(":")
    lazy = socket.socket()
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    lazy.setblocking(False)
    asked = node.asked
    await until(lambda: node.asked > asked + 1)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(lazy, (host, int(port)))
    jar = user.session.cookie_jar.filter_cookies(URL(user.base))
    cookies = "; ".join(f"{name}={morsel.value}" for name, morsel in jar.items())
    request = f"GET /api/stream HTTP/1.1\r\nHost: localhost\r\nCookie: {cookies}\r\n\r\n"
    await loop.sock_sendall(lazy, request.encode())
    async with AsyncExitStack() as stack:
        stream = await open_stream(user, stack)
        await stream.next()

        async def watchers() -> int:
            watching: int = (await stream.next())[2]["state"]["watchers"]
            return watching

        await until(lambda: _is(watchers, 2))
        await until(lambda: _is(watchers, 1))
    lazy.close()


async def _is(number: Any, wanted: int) -> bool:
    return bool(await number() == wanted)


async def test_log_out_ends_the_open_stream(user: Browser) -> None:
    async with AsyncExitStack() as stack:
        stream = await open_stream(user, stack)
        await stream.next()
        await user.post("/api/logout", {})
        async with asyncio.timeout(PATIENCE):
            await stream.answer.content.read()  # to its end


async def test_actions_reach_the_node(node: FakeSource, user: Browser) -> None:
    order = {"kind": "crash", "guest": "g2", "seconds": 5}
    assert (await user.post("/api/inject", order))[0] == 204
    status, text = await user.post("/api/heal", {"guest": "g2"})
    assert (status, json.loads(text)["seconds"]) == (200, 0.5)
    assert node.orders == [("inject", "crash", "g2", 5.0), ("heal", "g2")]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/inject", {"kind": "crash", "guest": "g9", "seconds": None}, 409),
        ("/api/inject", {"kind": "crash"}, 400),
        ("/api/inject", {"kind": "crash", "guest": "g1", "seconds": -1}, 400),
        ("/api/inject", {"kind": "crash", "guest": "g1", "seconds": 1e99}, 400),
        ("/api/inject", {"kind": "x" * 101, "guest": "g1"}, 400),
        ("/api/inject", {"kind": "crash", "guest": "g1", "more": 1}, 400),
        ("/api/heal", {}, 400),
        ("/api/heal", [], 400),
        ("/api/heal", {"guest": "x" * 5000}, 413),
        ("/api/nothing", {}, 404),
        ("/api/stream", {}, 405),
    ],
)
async def test_wrong_request_is_answered_with_an_error(
    node: FakeSource, user: Browser, path: str, body: object, status: int
) -> None:
    answered, text = await user.post(path, body)
    assert answered == status, text
    assert status == 409 or json.loads(text)["error_code"] == "TV0906"
    assert json.loads(text)["error"]
    assert node.orders == []


async def test_heal_continues_when_the_browser_leaves(shown: Dashboard, node: FakeSource) -> None:
    node.healing.clear()
    async with browser(shown) as leaving:
        await leaving.log_in()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await leaving.post("/api/heal", {"guest": "g1"})
    node.healing.set()
    await until(lambda: node.orders == [("heal", "g1")])


async def test_page_is_served_with_tags_and_strict_headers(user: Browser) -> None:
    async with user.session.get(f"{user.base}/") as answer:
        page, headers = await answer.text(), answer.headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "style=" not in page
    async with user.session.get(
        f"{user.base}/", headers={"If-None-Match": headers["ETag"]}
    ) as answer:
        assert answer.status == 304
    async with user.session.head(f"{user.base}/dashboard.js") as answer:
        assert (answer.status, answer.content_type) == (200, "text/javascript")


@pytest.mark.parametrize(
    "path", ["/nothing.js", "/../server.py", "/%2e%2e/server.py", "/server.py", "/static/", "/api"]
)
async def test_other_paths_are_not_found(user: Browser, path: str) -> None:
    async with user.session.get(URL(user.base + path, encoded=True)) as answer:
        assert answer.status == 404
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_taken_port_that_was_asked_for_is_an_error() -> None:
    with listen("127.0.0.1:0", None) as taken:
        address = "{}:{}".format(*taken.getsockname())
        with raises("TV0203", match=address):
            listen(address, None)


def test_taken_default_port_is_replaced_by_a_free_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with listen("127.0.0.1:0", None) as taken:
        address = "{}:{}".format(*taken.getsockname())
        monkeypatch.setattr("deploy.dashboard.dashboard.DEFAULT_DASHBOARD", address)
        with listen(None, None) as other:
            assert other.getsockname()[0] == "127.0.0.1"
            assert other.getsockname() != taken.getsockname()
        with listen(None, address) as other:
            assert other.getsockname() != taken.getsockname()


async def test_sample_that_fails_is_logged_and_the_next_one_is_taken(
    node: FakeSource, shown: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> list[dict[str, Any]]:
        raise ZeroDivisionError("a defect of the dashboard")

    monkeypatch.setattr(collector, "UNWATCHED_INTERVAL", 0.05)
    with logs("TV0908"), monkeypatch.context() as failing:
        failing.setattr(node, "events_after", fail)
        asked = node.asked
        await until(lambda: node.asked > asked + 1)
    asked = node.asked
    await until(lambda: node.asked > asked)


def test_next_supervisor_listens_where_the_one_before_did() -> None:
    with listen("127.0.0.1:0", None) as first:
        address = "{}:{}".format(*first.getsockname())
    for wanted in (None, "127.0.0.1:0"):
        with listen(wanted, address) as second:
            assert "{}:{}".format(*second.getsockname()) == address

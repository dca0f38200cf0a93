"""HTTP through the vote of three local processes."""

from __future__ import annotations

import re

import pytest

from guests.protocol.wire import MAX_PAYLOAD
from tests.voter.node import Node
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_value_is_stored_and_got(shared_node: Node) -> None:
    async with await shared_node.open() as client:
        stored = await client.ask("PUT", "/kv/colour", b"blue")
        assert stored.status == 201
        got = await client.ask("GET", "/kv/colour")
        assert (got.status, got.body) == (200, b"blue")
        assert got.headers["etag"]
        assert got.headers["server"] == "trivisor"
        assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT", got.headers["date"])


async def test_reply_has_a_vote_header(shared_node: Node) -> None:
    async with await shared_node.open() as client:
        seqs = []
        for _ in range(3):
            vote = (await client.ask("GET", "/kv/vote")).headers["trivisor-vote"]
            found = re.fullmatch(r"([23])/3; seq=(\d+)", vote)
            assert found, vote
            seqs.append(int(found[2]))
        assert seqs == sorted(set(seqs))


async def test_any_method_and_path_is_a_request(shared_node: Node) -> None:
    async with await shared_node.open() as client:
        for method in ("PATCH", "PROPFIND", "FROBNICATE", "OPTIONS"):
            response = await client.ask(method, "/somewhere?else")
            assert response.status == 404
            assert "seq=" in response.headers["trivisor-vote"]
        assert (await client.ask("OPTIONS", "*")).status == 404


async def test_target_reaches_the_service_unchanged(shared_node: Node) -> None:
    key = "/kv/%C3%A4%2f%41%20b"
    async with await shared_node.open() as client:
        await client.ask("PUT", key, b"raw")
        assert (await client.ask("GET", "/kv/%C3%A4%2F%41%20b")).body == b"raw"
        assert (await client.ask("GET", "/kv/?prefix=%C3%A4")).json["keys"] == ["%C3%A4%2FA%20b"]


async def test_head_has_no_body_and_the_connection_stays_open(shared_node: Node) -> None:
    async with await shared_node.open() as client:
        await client.ask("PUT", "/kv/head", b"12345")
        head = await client.ask("HEAD", "/kv/head")
        assert head.status == 200
        assert (await client.ask("GET", "/kv/head")).body == b"12345"
        get = await client.ask("GET", "/kv/head")
        assert head.headers["content-length"] == "5"
        for name in ("etag", "content-type", "cache-control"):
            assert head.headers[name] == get.headers[name]
        assert (await client.ask("HEAD", "/livez")).status == 200
        for target in ("/kv/", "/kv/absent", "/livez", "/readyz?verbose"):
            head, get = [await client.ask(method, target) for method in ("HEAD", "GET")]
            assert head.headers["content-length"] == str(len(get.body)), target
        assert (await client.ask("GET", "/livez")).body == b"live\n"


async def test_a_cache_asks_before_it_uses_a_voted_reply(shared_node: Node) -> None:
    async with await shared_node.open() as client:
        await client.ask("PUT", "/kv/cached", b"1")
        got = await client.ask("GET", "/kv/cached")
        assert got.headers["cache-control"] == "no-cache"
        tag = ("If-None-Match", got.headers["etag"])
        same = await client.ask("GET", "/kv/cached", b"", tag)
        assert (same.status, same.headers["cache-control"]) == (304, "no-cache")
        assert (await client.ask("GET", "/kv/absent")).headers["cache-control"] == "no-cache"
        problem = await client.ask("POST", "/livez")
        assert (problem.problem, problem.headers["cache-control"]) == ("method", "no-store")
        assert problem.error_code == "TV0317"


async def test_no_content_has_none(shared_node: Node) -> None:
    async with await shared_node.open() as client:
        await client.ask("PUT", "/kv/gone", b"1")
        deleted = await client.ask("DELETE", "/kv/gone")
        assert deleted.status == 204
        assert "content-length" not in deleted.headers
        assert (await client.ask("GET", "/kv/gone")).status == 404


async def test_conditions_reach_the_service(shared_node: Node) -> None:
    async with await shared_node.open() as client:
        etag = (await client.ask("PUT", "/kv/cond", b"1")).headers["etag"]
        refused = await client.ask("PUT", "/kv/cond", b"2", ("If-Match", '"0"'))
        assert refused.status == 412
        accepted = await client.ask("PUT", "/kv/cond", b"2", ("If-Match", etag))
        assert accepted.status == 204
        same = accepted.headers["etag"]
        assert (await client.ask("GET", "/kv/cond", b"", ("If-None-Match", same))).status == 304
        assert (await client.ask("GET", "/kv/cond")).body == b"2"


async def test_a_chunked_body_is_put_together(shared_node: Node) -> None:
    async with await shared_node.open() as client:
        await client.send(
            b"PUT /kv/chunks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
        )
        await client.send(b"2;x=y\r\nde\r\n0\r\nX-Sum: 1\r\n\r\n")
        assert (await client.read()).status == 201
        assert (await client.ask("GET", "/kv/chunks")).body == b"abcde"


async def test_a_body_of_the_largest_size_goes_there_and_back(shared_node: Node) -> None:
    body = bytes(range(256)) * 4096
    assert len(body) == shared_node.runner.config.max_body
    async with await shared_node.open() as client:
        assert (await client.ask("PUT", "/kv/large", body)).status == 201
        assert (await client.ask("GET", "/kv/large")).body == body
        assert (await client.ask("DELETE", "/kv/large")).status == 204
    assert len(body) < MAX_PAYLOAD


async def test_100_continue_is_sent_before_the_body(shared_node: Node) -> None:
    async with await shared_node.open() as client:
        await client.send(
            b"PUT /kv/wait HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        assert (await client.read()).status == 100
        await client.send(b"ok")
        assert (await client.read()).status == 201
        assert (await client.ask("GET", "/kv/wait")).body == b"ok"


async def test_a_body_too_large_is_not_asked_for(shared_node: Node) -> None:
    async with await shared_node.open() as client:
        await client.send(
            b"PUT /kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        response = await client.read()
        assert (response.status, response.problem) == (413, "too-large")
        assert response.headers["connection"] == "close"
        assert await client.ended() == b""


async def test_pipelined_requests_are_answered_in_order(shared_node: Node) -> None:
    count = 200
    async with await shared_node.open() as client:
        await client.send(
            b"".join(
                b"PUT /kv/pipe HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n%03d"
                b"GET /kv/pipe HTTP/1.1\r\nHost: x\r\n\r\n" % number
                for number in range(count)
            )
        )
        for number in range(count):
            assert (await client.read()).status in (201, 204)
            assert (await client.read()).body == b"%03d" % number


async def test_half_closed_client_gets_its_replies(shared_node: Node) -> None:
    async with await shared_node.open() as client:
        await client.send(
            b"PUT /kv/half HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1"
            b"GET /kv/half HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        client.half_close()
        assert (await client.read()).status == 201
        assert (await client.read()).body == b"1"
        assert await client.ended() == b""


async def test_the_connection_ends_when_the_client_wants_it(shared_node: Node) -> None:
    async with await shared_node.open() as client:
        response = await client.ask("GET", "/kv/none", b"", ("Connection", "close"))
        assert response.headers["connection"] == "close"
        assert await client.ended() == b""


async def test_http_1_0(shared_node: Node) -> None:
    async with await shared_node.open() as client:
        await client.send(b"GET /kv/none HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (await client.read()).headers["connection"] == "keep-alive"
        await client.send(b"GET /kv/none HTTP/1.0\r\n\r\n")
        assert "connection" not in (await client.read()).headers
        assert await client.ended() == b""


async def test_the_reserved_paths(shared_node: Node) -> None:
    released = shared_node.runner.counters["requests"]
    async with await shared_node.open() as client:
        assert (await client.ask("GET", "/livez")).body == b"live\n"
        ready = await client.ask("GET", "/readyz")
        assert (ready.status, ready.body) == (200, b"ready\n")
        verbose = await client.ask("GET", "/readyz?verbose")
        assert verbose.json == {
            "status": "ready",
            "vote": "2/3",
            "active": 3,
            "replicas": {"g1": "active", "g2": "active", "g3": "active"},
        }
        metrics = await client.ask("GET", "/metrics")
        assert b'trivisor_replica_state{replica="g1",state="active"} 1.0' in metrics.body
        refused = await client.ask("POST", "/livez")
        assert (refused.status, refused.problem) == (405, "method")
        assert refused.headers["allow"] == "GET, HEAD"
    assert shared_node.runner.counters["requests"] == released, "none of them is voted on"


async def test_lost_client_leaves_nothing_behind(shared_node: Node) -> None:
    await until(lambda: not shared_node.http.connections, "all clients gone")
    http = shared_node.http
    assert (http.bounds.held, http.bounds.unsent, shared_node.runner.waiting) == (0, 0, 0)

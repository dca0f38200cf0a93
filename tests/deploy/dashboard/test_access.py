"""Tokens work once and for a while; requests that other sites may have caused are rejected."""

from __future__ import annotations

import json

import pytest

from deploy.dashboard.access import (
    MOST_SESSIONS,
    MOST_TOKENS,
    REQUEST_HEADER,
    SESSION_LIFE,
    TOKEN_LIFE,
    Access,
)
from deploy.dashboard.dashboard import Dashboard
from tests.deploy.dashboard.shown import Browser, FakeSource, browser, dashboard


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def access(clock: Clock) -> Access:
    return Access("127.0.0.1", "node", clock=clock)


def test_token_works_once(access: Access) -> None:
    token = access.new_token()
    assert access.log_in(token) is not None
    assert access.log_in(token) is None
    assert access.log_in(token + "x") is None
    assert access.log_in("") is None


def test_token_expires(access: Access, clock: Clock) -> None:
    token = access.new_token()
    clock.now += TOKEN_LIFE
    assert access.log_in(token) is None


def test_tokens_and_secrets_are_long_and_differ(access: Access) -> None:
    tokens = {access.new_token() for _ in range(50)}
    assert len(tokens) == 50
    assert min(map(len, tokens)) >= 43  # 256 bits


def test_oldest_token_is_withdrawn_when_there_are_too_many(access: Access) -> None:
    first, *_, last = [access.new_token() for _ in range(MOST_TOKENS + 1)]
    assert access.log_in(first) is None
    assert access.log_in(last) is not None


def test_session_ends_by_time_number_and_log_out(access: Access, clock: Clock) -> None:
    def session() -> str:
        made = access.log_in(access.new_token())
        assert made is not None
        return made

    first, second = session(), session()
    access.log_out(second)
    assert (access.is_live(first), access.is_live(second)) == (True, False)
    others = [session() for _ in range(MOST_SESSIONS)]
    assert not access.is_live(first)
    assert all(map(access.is_live, others))
    clock.now += SESSION_LIFE
    assert not any(map(access.is_live, others))


def test_cookies_of_two_nodes_differ() -> None:
    assert Access("127.0.0.1", "a").cookie != Access("127.0.0.1", "b").cookie


async def test_without_a_session_only_the_page_is_served(shown: Dashboard) -> None:
    async with browser(shown) as stranger:
        assert (await stranger.get("/"))[0] == 200
        for path in ("/api/stream", "/api/session"):
            status, text = await stranger.get(path)
            assert (status, json.loads(text)["error_code"]) == (401, "TV0901")
        assert (await stranger.post("/api/heal", {"guest": "g1"}))[0] == 401
        assert (await stranger.post("/api/login", {"token": "wrong"}))[0] == 403
        stranger.session.cookie_jar.update_cookies({shown._access.cookie: "forged"})
        assert (await stranger.get("/api/session"))[0] == 401


async def test_link_logs_in_one_browser_once(shown: Dashboard) -> None:
    async with browser(shown) as one, browser(shown) as other:
        token = one.token()
        async with one.session.post(
            f"{one.base}/api/login", json={"token": token}, headers=one.own
        ) as answer:
            (cookie,) = answer.cookies.values()
            assert (cookie["httponly"], cookie["samesite"]) == (True, "Strict")
        assert (await one.get("/api/session"))[0] == 204
        status, text = await other.post("/api/login", {"token": token})
        assert (status, json.loads(text)["error_code"]) == (403, "TV0902")
        assert (await other.get("/api/session"))[0] == 401


async def test_log_out_ends_the_session(user: Browser) -> None:
    assert (await user.get("/api/session"))[0] == 204
    assert (await user.post("/api/logout", {}))[0] == 204
    assert (await user.get("/api/session"))[0] == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8023", "127.0.0.1.evil.example", "10.0.0.7", "", "[::1"]
)
async def test_foreign_host_is_rejected(user: Browser, host: str) -> None:
    """A name that another site's owner has given this host's address (DNS rebinding)."""
    for path in ("/", "/api/session", "/api/stream"):
        status, text = await user.get(path, Host=host)
        assert status in (400, 421), text
        assert status == 400 or json.loads(text)["error_code"] == "TV0903"
    status, _ = await user.post("/api/heal", {"guest": "g1"}, {**user.own, "Host": host})
    assert status in (400, 421)


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1:1", "[::1]:8023", "LOCALHOST"])
async def test_forwarded_port_is_accepted(user: Browser, host: str) -> None:
    assert (await user.get("/api/session", Host=host))[0] == 204


@pytest.mark.parametrize(
    "changed",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
        {REQUEST_HEADER: ""},
        {REQUEST_HEADER: "1"},
    ],
)
async def test_request_of_another_site_changes_nothing(
    node: FakeSource, user: Browser, changed: dict[str, str]
) -> None:
    status, text = await user.post("/api/heal", {"guest": "g1"}, user.own | changed)
    assert (status, json.loads(text)["error_code"]) == (403, "TV0904")
    assert node.orders == []
    assert (await user.post("/api/heal", {"guest": "g1"}))[0] == 200


async def test_stream_is_not_for_scripts_of_other_sites(user: Browser) -> None:
    cross = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
    assert (await user.get("/api/stream", **cross))[0] == 403


async def test_dashboard_for_other_hosts_takes_addresses_but_no_foreign_name() -> None:
    async with dashboard(FakeSource(), "0.0.0.0:0") as shown:
        port = shown.address.rpartition(":")[2]
        shown.address = f"127.0.0.1:{port}"
        async with browser(shown) as user:
            assert (await user.get("/", Host="192.0.2.1:8023"))[0] == 200
            assert (await user.get("/", Host="evil.example"))[0] == 421

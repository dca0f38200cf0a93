"""Rules on requests: each condition, several together, and rates."""

from __future__ import annotations

import pytest

from deploy.monitor import requests as judging
from deploy.monitor.requests import RequestJudge, SeenRequest
from deploy.monitor.rules import RequestRule
from guests.protocol.message import encode_request

ATTACK = encode_request(
    "PUT", "/files/%2e%2e%2fetc?name=a+b%3D", [("user-agent", "Scanner 1.0")], b"\x00\xffbody"
)


def seen(data: bytes = ATTACK, *, caller: str = "http:192.0.2.1", time: float = 0.0) -> SeenRequest:
    return SeenRequest(7, time, caller, data.startswith(b"GET"), data)


@pytest.mark.parametrize(
    "rule",
    [
        RequestRule(name="a", method=["PUT"]),
        RequestRule(name="a", path=r"\.\./"),
        RequestRule(name="a", target="%2e%2e"),
        RequestRule(name="a", query="^name=a b=$"),
        RequestRule(name="a", header={"User-Agent": "(?i)scanner"}),
        RequestRule(name="a", body=r"^\x00\xffbody$"),
        RequestRule(name="a", larger=5),
        RequestRule(name="a", caller=r"192\.0\.2\."),
        RequestRule(name="a", writes=True),
        RequestRule(name="a", path="files", body="body", caller="http:"),
    ],
)
def test_rule_matches_what_it_describes(rule: RequestRule) -> None:
    found = RequestJudge([rule]).judge(seen())
    assert [(match.rule, match.undecided) for match in found] == [(rule, False)]


@pytest.mark.parametrize(
    "rule",
    [
        RequestRule(name="a", method=["GET", "POST"]),
        RequestRule(name="a", path="%2e"),
        RequestRule(name="a", target=r"\.\./"),
        RequestRule(name="a", header={"cookie": "."}),
        RequestRule(name="a", larger=6),
        RequestRule(name="a", writes=False),
        RequestRule(name="a", path="files", body="nobody"),
    ],
)
def test_rule_does_not_match_something_else(rule: RequestRule) -> None:
    assert RequestJudge([rule]).judge(seen()) == []


def test_bytes_that_are_no_request_are_judged_as_a_body() -> None:
    rules = [RequestRule(name="a", body="poison"), RequestRule(name="b", path="poison")]
    found = RequestJudge(rules).judge(seen(b"\xffpoison"))
    assert [match.rule.name for match in found] == ["a"]


def test_rule_on_the_rate_matches_a_client_with_too_many_in_the_time() -> None:
    judge = RequestJudge([RequestRule(name="a", method=["PUT"], more_than=3, within=1.0)])
    times = [0.0, 0.4, 0.8, 0.9, 1.5, 3.0, 3.1]
    found = [bool(judge.judge(seen(time=time))) for time in times]
    assert found == [False, False, False, True, False, False, False]
    assert not judge.judge(seen(time=3.1, caller="http:192.0.2.2"))
    get = encode_request("GET", "/")
    assert not any(judge.judge(seen(get, time=3.2)) for _ in range(9)), "only PUTs are counted"


def test_clients_whose_rate_is_counted_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "MOST_CLIENTS", 3)
    judge = RequestJudge([RequestRule(name="a", more_than=1, within=10.0)])
    for number in range(50):
        assert not judge.judge(seen(caller=f"http:{number}"))
    assert judge.judge(seen(caller="http:49"))
    assert not judge.judge(seen(caller="http:1")), "it was forgotten"


def test_pattern_that_takes_too_long_counts_as_a_match() -> None:
    rule = RequestRule(name="a", body="a.{100}.*c.{100}$")
    data = bytes(b"abc"[(n * n // 7) % 3] for n in range(100_000))
    found = RequestJudge([rule], limit=0.001).judge(seen(encode_request("PUT", "/", (), data)))
    assert [match.undecided for match in found] == [True]

"""Metrics: well-formed in both formats, and equal to what the runner counted."""

from __future__ import annotations

import asyncio
import shutil

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.voter.conftest import Nodes
from tests.voter.node import Node
from tests.waiting import until
from voter.core.replica import State
from voter.exposition import OPENMETRICS, TEXT, wants_openmetrics
from voter.metrics import FAMILIES

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse_openmetrics(text: str) -> list[Metric]:
    """Return the metric families of a scrape."""
    return list(parser.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


async def scrape(node: Node) -> Samples:
    """Read all samples over HTTP."""
    response = await node.ask("GET", "/metrics")
    assert response.status == 200
    assert response.headers["content-type"] == TEXT
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_text(response.body.decode())
        for sample in family.samples
    }


async def test_set_clock_executes_no_key_again_and_is_counted(nodes: Nodes) -> None:
    node = await nodes.make()

    async def add(key: str) -> tuple[bytes, bool]:
        given = ("idempotency-key", key)
        response = await node.ask("POST", "/kv/n?increment=1", b"", given)
        return response.body, "idempotency-replayed" in response.headers

    assert await add("first") == (b"1", False)
    node.wall_offset = 25 * 3600.0
    assert await add("second") == (b"2", False)
    node.wall_offset = 0.0
    assert await add("first") == (b"1", True)
    before = node.runner.engine.log.time_ns
    assert await add("third") == (b"3", False)
    assert node.runner.engine.log.time_ns > before
    assert (await scrape(node))["trivisor_clock_steps_total", ()] == 2


async def test_metrics_equal_the_runners_counters(nodes: Nodes) -> None:
    node = await nodes.make()
    for number in range(10):
        await node.ask("PUT", f"/kv/{number}", b"1")
    samples = await scrape(node)
    assert samples["trivisor_requests_total", ()] == 10
    assert samples["trivisor_released_total", ()] == 10
    assert samples["trivisor_sequence_number", ()] == node.runner.engine.log.seq
    assert samples["trivisor_active_replicas", ()] == 3
    assert samples["trivisor_votes_needed", ()] == 2
    assert samples["trivisor_status", (("status", "ready"),)] == 1
    assert samples["trivisor_status", (("status", "refusing"),)] == 0
    assert samples["trivisor_log_writes", ()] == 10
    assert samples["process_open_fds", ()] > 0


async def test_the_latency_histogram_adds_up(nodes: Nodes) -> None:
    node = await nodes.make()
    for _ in range(5):
        await node.ask("GET", "/kv/a")
    samples = await scrape(node)
    buckets = [
        (float(dict(labels)["le"]), value)
        for (name, labels), value in samples.items()
        if name == "trivisor_request_duration_seconds_bucket"
    ]
    assert [bound for bound, _ in buckets] == sorted(bound for bound, _ in buckets)
    counts = [value for _, value in buckets]
    assert counts == sorted(counts)
    assert counts[-1] == samples["trivisor_request_duration_seconds_count", ()] == 5
    assert 0 < samples["trivisor_request_duration_seconds_sum", ()] < 60


async def test_each_replica_is_in_one_state(nodes: Nodes) -> None:
    node = await nodes.make()
    node.agents[2].mode = "lies"
    await node.ask("GET", "/kv/a")
    await until(lambda: node.state("g3") == "expelled")
    samples = await scrape(node)
    for name, state in (("g1", "active"), ("g2", "active"), ("g3", "expelled")):
        found = {
            other: samples["trivisor_replica_state", (("replica", name), ("state", other))]
            for other in map(str, State)
        }
        assert found == {other: float(other == state) for other in found}
    assert samples["trivisor_replica_dissents_total", (("replica", "g3"),)] == 1
    assert samples["trivisor_dissents_total", ()] == 1
    assert samples["trivisor_status", (("status", "degraded"),)] == 1


async def test_failures_are_counted_by_kind(nodes: Nodes) -> None:
    node = await nodes.make()
    for agent in node.agents[:2]:
        agent.stop()
    await node.until_status("refusing")
    await node.ask("GET", "/kv/a")
    samples = await scrape(node)
    assert samples["trivisor_failures_total", (("failure", "not-executed"),)] == 1


ACCEPT = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
"""What Prometheus 2.42 sends."""


async def test_openmetrics_is_served_to_who_asks_and_has_the_same_samples(nodes: Nodes) -> None:
    node = await nodes.make()
    await node.ask("PUT", "/kv/a", b"1")
    response = await node.ask("GET", "/metrics", b"", ("accept", ACCEPT))
    assert response.headers["content-type"] == OPENMETRICS
    text = response.body.decode()
    assert text.endswith("\n# EOF\n")
    families = {family.name: family for family in parse_openmetrics(text)}
    requests = families["trivisor_requests"]
    assert (requests.type, requests.documentation) == ("counter", "Requests submitted by clients")
    assert [sample.value for sample in requests.samples] == [1.0, pytest.approx(node_started(text))]
    assert families["trivisor_voter"].type == "info"
    assert families["trivisor_request_duration_seconds"].unit == "seconds"
    names = {sample.name for each in families.values() for sample in each.samples}
    plain = {name for name, _ in await scrape(node)}
    assert plain == {name for name in names if not name.endswith("_created")}


def node_started(text: str) -> float:
    """Return when the process started, as a scrape states it."""
    (line,) = (x for x in text.splitlines() if x.startswith("process_start_time_seconds "))
    return float(line.split()[1])


async def test_exemplars_name_requests_whose_traces_are_kept(nodes: Nodes) -> None:
    node = await nodes.make()
    await node.ask("PUT", "/kv/a", b"1", ("x-request-id", "checkout-17"))
    response = await node.ask("GET", "/metrics", b"", ("accept", ACCEPT))
    found = [
        (sample, sample.exemplar)
        for family in parse_openmetrics(response.body.decode())
        for sample in family.samples
        if sample.exemplar is not None
    ]
    ((sample, exemplar),) = found
    assert sample.name == "trivisor_request_duration_seconds_bucket"
    assert 0 < exemplar.value <= float(sample.labels["le"])
    assert exemplar.labels["request_id"] == "checkout-17"
    assert node.runner.trace(exemplar.labels["seq"])["ids"] == ("checkout-17",)


async def test_long_request_id_is_left_out_of_an_exemplar(nodes: Nodes) -> None:
    node = await nodes.make()
    await node.ask("PUT", "/kv/a", b"1", ("x-request-id", "x" * 128))
    response = await node.ask("GET", "/metrics", b"", ("accept", ACCEPT))
    (labels,) = (
        sample.exemplar.labels
        for family in parse_openmetrics(response.body.decode())
        for sample in family.samples
        if sample.exemplar is not None
    )
    assert labels.keys() == {"seq"}


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (ACCEPT.encode(), True),
        (b"application/openmetrics-text", True),
        (b"Application/OpenMetrics-Text; Version=1.0.0", True),
        (b"application/openmetrics-text;q=0.5,text/plain;q=0.5", True),
        (b"application/openmetrics-text;q=0.1,text/plain", False),
        (b"application/openmetrics-text;q=0", False),
        (b"application/openmetrics-text;version=2.0.0", False),
        (b"application/openmetrics-text;q=much", False),
        (b"", False),
        (b"*/*", False),
        (b"text/plain", False),
        (b";;;,=,,;q=", False),
    ],
)
def test_format_follows_the_accept_header(accept: bytes, wanted: bool) -> None:
    assert wants_openmetrics(accept) is wanted


async def test_every_family_is_exported(nodes: Nodes) -> None:
    node = await nodes.make()
    await node.ask("PUT", "/kv/a", b"1")
    response = await node.ask("GET", "/metrics")
    exported = {family.name for family in parse_text(response.body.decode()) if family.samples}
    absent = {"trivisor_denied_total"}  # only with F
    journal = {name for name in FAMILIES if name.startswith("trivisor_journal")}
    assert exported == {name.removesuffix("_total") for name in FAMILIES.keys() - absent - journal}


async def test_promtool_finds_nothing_to_criticize(nodes: Nodes) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    node = await nodes.make()
    response = await node.ask("GET", "/metrics")
    child = await asyncio.create_subprocess_exec(
        promtool, "check", "metrics",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await child.communicate(response.body)
    assert output == b""
    assert child.returncode == 0

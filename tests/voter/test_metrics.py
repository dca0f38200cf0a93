"""Metrics: well-formed, and equal to what the runner counted."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.voter.conftest import Nodes
from tests.voter.node import Node
from tests.waiting import until
from voter.core.replica import State
from voter.metrics import CONTENT_TYPE

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scrape(node: Node) -> Samples:
    """Read all samples over HTTP."""
    response = await node.ask("GET", "/metrics")
    assert response.status == 200
    assert response.headers["content-type"] == CONTENT_TYPE
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.body.decode())
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
    assert samples["trivisor_sequence", ()] == node.runner.engine.log.seq
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
        if name == "trivisor_request_seconds_bucket"
    ]
    assert [bound for bound, _ in buckets] == sorted(bound for bound, _ in buckets)
    counts = [value for _, value in buckets]
    assert counts == sorted(counts)
    assert counts[-1] == samples["trivisor_request_seconds_count", ()] == 5
    assert 0 < samples["trivisor_request_seconds_sum", ()] < 60


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

"""The supervisor's metrics: well-formed, true, and served on its socket and to this host only."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.dashboard import server
from deploy.dashboard.dashboard import Dashboard
from deploy.monitoring.supervisor_metrics import FAMILIES, SupervisorMetrics
from tests.deploy.dashboard.conftest import node, shown
from tests.deploy.supervisor.conftest import plain_node
from tests.deploy.supervisor.running import Running
from tests.waiting import until
from voter.exposition import OPENMETRICS, TEXT

__all__ = ["node", "plain_node", "shown"]

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(text: bytes) -> Samples:
    """Return all samples."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


async def scrape(path: Path, accept: str = "") -> tuple[bytes, str]:
    """Read the metrics from a control socket."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.get("http://s/metrics", headers={"Accept": accept}) as answer,
    ):
        return await answer.read(), answer.headers["Content-Type"]


async def test_metrics_follow_guests_repairs_and_the_voter(plain_node: Running) -> None:
    path = plain_node.layout.supervisor_socket
    text, kind = await scrape(path)
    assert kind == TEXT
    first = read(text)
    assert {name for name, _ in first} == FAMILIES.keys()
    assert first["trivisor_voter_up", ()] == 1
    assert first["trivisor_guest_state", (("guest", "g1"), ("state", "ready"))] == 1
    assert first["trivisor_guest_memory_bytes", (("guest", "g1"),)] > 1 << 20
    assert 0 < first["trivisor_disk_free_bytes", ()] <= first["trivisor_disk_size_bytes", ()]
    await plain_node.guests["g2"].kill()

    async def repaired() -> bool:
        samples = read((await scrape(path))[0])
        return samples["trivisor_guest_repairs_total", (("guest", "g2"),)] == 1

    await until(repaired)
    text, kind = await scrape(path, "application/openmetrics-text")
    assert (kind, text[-6:]) == (OPENMETRICS, b"# EOF\n")
    if promtool := shutil.which("promtool"):
        plain, _ = await scrape(path)
        done = subprocess.run(  # noqa: ASYNC221 - takes milliseconds
            [promtool, "check", "metrics"], input=plain, capture_output=True, check=False
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, b"")


async def test_trace_is_relayed_and_an_unknown_id_is_an_error_of_class_not_found(
    plain_node: Running,
) -> None:
    client = await plain_node.client()
    answer = await client.request("PUT", "/kv/a", b"1")
    await client.close()
    connector = aiohttp.UnixConnector(str(plain_node.layout.supervisor_socket))
    async with aiohttp.ClientSession("http://s", connector=connector) as session:
        async with session.get(f"/trace/{answer.vote.seq}") as found:
            assert (await found.json())["outcome"] == "released"
        async with session.get("/trace/nobody") as found:
            problem = await found.json()
            assert (found.status, problem["code"]) == (404, 1)
            assert problem["error_code"] == "TV0951"
            assert problem["error"].startswith("no recent request has this id")


async def test_trace_without_a_voter_is_an_error_with_a_remedy(plain_node: Running) -> None:
    plain_node.layout.voter_control.unlink()
    connector = aiohttp.UnixConnector(str(plain_node.layout.supervisor_socket))
    async with (
        aiohttp.ClientSession("http://s", connector=connector) as session,
        session.get("/trace/1") as found,
    ):
        problem = await found.json()
    assert (found.status, problem["code"]) == (503, 5)
    assert problem["remedy"]


async def test_dashboard_serves_metrics_to_this_host_without_a_session(
    shown: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with aiohttp.ClientSession(f"http://{shown.address}") as session:
        async with session.get("/metrics") as answer:
            assert (answer.status, answer.headers["Content-Type"]) == (200, TEXT)
            assert ("trivisor_voter_up", ()) in read(await answer.read())
        async with session.get("/metrics", headers={"Host": "attacker.example"}) as answer:
            assert answer.status == 421
        monkeypatch.setattr(server, "ip_address", lambda _: Elsewhere())
        async with session.get("/metrics") as answer:
            assert answer.status == 403
            assert (await answer.json())["error_code"] == "TV0952"


class Elsewhere:
    """An address of another host."""

    is_loopback = False


def test_directory_that_is_gone_and_a_guest_without_a_process_are_no_errors(
    scratch: Path,
) -> None:
    guest: dict[str, Any] = {
        "name": "g1",
        "vm": "dead",
        "pid": None,
        "fault": None,
        "role": "voter",
    }
    guest["repairs"] = {"count": 6, "abandoned": True}
    status = {
        "dir": str(scratch / "gone"), "status": "unreachable", "storage": "it was deleted",
        "vote": "2/3", "accel": "tcg", "repair": "auto", "guests": [guest],
        "voter": {"restarts": 2}, "supervisor": {"restarts": 1},
        "rejuvenation": {"done": 3, "failed": 1},
    }  # fmt: skip
    samples = read(SupervisorMetrics().render(status, b"")[0])
    assert samples["trivisor_storage_failed", ()] == 1
    assert samples["trivisor_voter_up", ()] == 0
    assert samples["trivisor_rejuvenations_total", (("result", "done"),)] == 3
    assert samples["trivisor_guest_votes", (("guest", "g1"),)] == 1
    assert samples["trivisor_guest_memory_bytes", (("guest", "g1"),)] == 0
    assert samples["trivisor_guest_repair_abandoned", (("guest", "g1"),)] == 1
    assert ("trivisor_disk_free_bytes", ()) not in samples

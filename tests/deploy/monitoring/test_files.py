"""The shipped files: promtool accepts them, and they use names that are really exported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deploy.commands import monitoring as command
from deploy.commands.control_client import NotUp
from deploy.monitoring import supervisor_metrics
from deploy.monitoring.install import FILES, MONITORING, RulesRejected, check_rules
from tests.deploy.monitoring.prometheus import promtool
from tests.errors import raises
from voter import metrics

RULES = MONITORING / "trivisor.rules.yml"
GRAFANA: dict[str, Any] = json.loads((MONITORING / "trivisor.grafana.json").read_text())
HISTOGRAM = "trivisor_request_duration_seconds"
EXPORTED = {
    *metrics.FAMILIES, *supervisor_metrics.FAMILIES, "up", "ALERTS",
    *(f"{HISTOGRAM}_{suffix}" for suffix in ("bucket", "count", "sum")),
}  # fmt: skip
NAME = re.compile(r"\b(?:trivisor_[a-z_]+|process_[a-z_]+|up|ALERTS)\b(?!=|\()")


def queries() -> Iterator[str]:
    """Yield the queries of the Grafana dashboard, with its variables replaced."""
    for panel in GRAFANA["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "1m")


def test_promtool_accepts_rules_and_settings() -> None:
    for words in (("rules", "--lint-fatal", RULES), ("config", MONITORING / "prometheus.yml")):
        done = promtool("check", *words)
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_after_its_time_and_not_before() -> None:
    done = promtool("test", "rules", Path(__file__).with_name("rules.test.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    tested = set(
        re.findall(r"alertname=\"(\w+)\"", Path(__file__).with_name("rules.test.yml").read_text())
    )
    assert tested == set(re.findall(r"alert: (\w+)", RULES.read_text()))


def test_each_alert_says_what_happened_and_leads_to_its_section() -> None:
    text = RULES.read_text()
    alerts = re.findall(r"alert: (\w+)", text)
    for key in ("severity", "summary", "description", "runbook_url"):
        assert len(re.findall(rf"\n +{key}: ", text)) == len(alerts)
    page = Path("docs/monitoring.md").read_text()
    for name in alerts:
        assert f"docs/monitoring.md#{name.lower()}" in text
        assert f"\n### {name}\n" in page


def test_rules_and_dashboard_use_exported_names_only() -> None:
    text = "\n".join(
        re.findall(r"expr: (.*?)(?=\n +(?:for|labels):)", RULES.read_text(), re.DOTALL)
    )
    used = set(NAME.findall(text)) | {name for query in queries() for name in NAME.findall(query)}
    assert len(used) > 20
    assert used <= EXPORTED


def test_every_query_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    rules = [{"record": f"q:{n}", "expr": query} for n, query in enumerate(queries())]
    path = tmp_path / "queries.json"  # JSON is YAML
    path.write_text(json.dumps({"groups": [{"name": "grafana", "rules": rules}]}))
    done = promtool("check", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dashboard_has_the_form_that_grafana_imports() -> None:
    panels = GRAFANA["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    required = {entry["id"] for entry in GRAFANA["__requires"]}
    (source,) = GRAFANA["__inputs"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["type"] in required
        assert panel["title"] and panel["description"]
        place = panel["gridPos"]
        cells = {
            (column, row)
            for column in range(place["x"], place["x"] + place["w"])
            for row in range(place["y"], place["y"] + place["h"])
        }
        assert max(column for column, _ in cells) < 24
        assert not taken & cells
        taken |= cells
        for each in (panel, *panel["targets"]):
            assert each["datasource"] == {"type": "prometheus", "uid": f"${{{source['name']}}}"}
    variables = {each["name"] for each in GRAFANA["templating"]["list"]}
    used = {
        name
        for panel in panels
        for t in panel["targets"]
        for name in re.findall(r"\$(\w+)", t["expr"])
    }
    assert used == variables | {"__rate_interval"}


@pytest.fixture
def no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object, **__: object) -> None:
        raise NotUp("no node runs")

    monkeypatch.setattr(command, "ask", ask)


def test_command_names_the_addresses_of_the_node_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = {"http": "127.0.0.1:18080", "dashboard": "127.0.0.1:18023"}
    monkeypatch.setattr(command, "ask", lambda *_, **__: status)
    out = tmp_path / "out"
    done = CliRunner().invoke(command.monitoring, ["--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert {path.name for path in out.iterdir()} == set(FILES)
    text = (out / "prometheus.yml").read_text()
    assert re.findall(r'targets: \["(.*)"\]', text) == list(status.values())
    assert promtool("check", "config", out / "prometheus.yml").returncode == 0


def test_node_that_listens_everywhere_is_scraped_on_loopback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = {"http": "0.0.0.0:18080", "dashboard": "[::]:18023"}
    monkeypatch.setattr(command, "ask", lambda *_, **__: status)
    done = CliRunner().invoke(command.monitoring, ["--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out" / "prometheus.yml").read_text()
    assert re.findall(r'targets: \["(.*)"\]', text) == ["127.0.0.1:18080", "[::1]:18023"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("groups: [", "yaml"),
        (
            "groups:\n  - name: a\n    rules:\n      - alert: A\n        expr: up ===\n",
            "parse error",
        ),
        ("groups:\n  - name: a\n    rules:\n      - alert: A\n", "expr"),
        ("\0\xff", "yaml"),
        ("groups:\n  - name: a\n  - name: a\n", "repeated"),
    ],
)
def test_rules_that_promtool_rejects_are_an_error_and_write_nothing(
    no_node: None, tmp_path: Path, text: str, reason: str
) -> None:
    promtool("--version")
    rules = tmp_path / "mine.yml"
    rules.write_bytes(text.encode("latin-1"))
    done = CliRunner().invoke(
        command.monitoring, ["--out", str(tmp_path / "out"), "--rules", str(rules)]
    )
    assert isinstance(done.exception, RulesRejected)
    assert reason in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_rejected_rules_have_a_code(tmp_path: Path) -> None:
    promtool("--version")
    rules = tmp_path / "mine.yml"
    rules.write_text("groups: [")
    with raises("TV0950"):
        check_rules(rules)


def test_without_promtool_the_rules_are_written_unchecked(
    no_node: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = CliRunner().invoke(command.monitoring, ["--out", str(tmp_path / "out")])
    assert done.exit_code == 0
    assert "promtool is not installed" in done.output
    assert (tmp_path / "out" / "trivisor.rules.yml").read_bytes() == RULES.read_bytes()

"""The alerts and every query in the documents, in a real Prometheus beside a real agent."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "rules"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
FILES = sorted(path for path in RULES.glob("*.yaml") if not path.name.endswith(".test.yaml"))
file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.S | re.M)


QUERIES = [
    pytest.param(query, id=f"{page.stem}-{index}")
    for page in PAGES
    for index, query in enumerate(blocks(page, "promql"))
]


def send(port: int) -> None:
    """A few spans. Of rows a pause would be worth an alert."""
    provider = TracerProvider(resource=Resource({"service.name": "fraud", "service.version": "2.1"}))
    exporter = OTLPSpanExporter(f"http://127.0.0.1:{port}", insecure=True)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    for _ in range(100):
        provider.get_tracer("e2e").start_span("predict", kind=SpanKind.SERVER).end()
    provider.shutdown()


@pytest.fixture(scope="module")
def promtool(tool: Callable[[str, str], Path]) -> Callable[..., None]:
    """Runs promtool, which must find nothing wrong."""
    binary = str(tool("prometheus", "promtool"))

    def run(*words: str) -> None:
        done = subprocess.run([binary, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    return run


@file
def test_the_rules_are_valid(promtool: Callable[..., None], file: Path) -> None:
    promtool("check", "rules", str(file))


@file
def test_each_alert_fires_when_it_should_and_not_else(promtool: Callable[..., None], file: Path) -> None:
    promtool("test", "rules", str(file.with_suffix(".test.yaml")))


def test_the_rule_for_one_feature_fires_when_it_should_and_not_else(
    promtool: Callable[..., None], tmp_path: Path
) -> None:
    """With the expression that a team would write: the tests are those of the rule for all features."""
    command = [sys.executable, "-m", "tidegauge", "generate", "rules", "-o", str(tmp_path)]
    subprocess.run([*command, "--feature", "transaction_amount"], check=True, capture_output=True)
    assert 'abs(feature_drift_score{feature="transaction_amount"}) > 0.3\n' in (
        (tmp_path / "models.yaml").read_text()
    )
    tests = tmp_path / "models.test.yaml"
    tests.write_text((RULES / "models.test.yaml").read_text())
    promtool("test", "rules", str(tests))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_rules_in_the_text_are_valid(promtool: Callable[..., None], page: Path, tmp_path: Path) -> None:
    found = [body for body in blocks(page, "yaml") if yaml.safe_load(body).keys() == {"groups"}]
    for body in found:
        (tmp_path / "rules.yaml").write_text(body)
        promtool("check", "rules", str(tmp_path / "rules.yaml"))


@pytest.fixture(scope="module")
def well(
    start_agent: Callable[..., Any], start_prometheus: Callable[..., Any], until: Callable[..., Any]
) -> Any:
    """Watches an agent that has nothing to complain of."""
    agent = start_agent()
    prometheus = start_prometheus(agent.pages, rules=FILES)
    send(agent.grpc)
    until(lambda: prometheus.value("sum(tidegauge_folded_total)") == 100)
    until(lambda: prometheus.value("sum(rate(tidegauge_folded_total[5m]))") is not None)
    return prometheus


def active(prometheus: Any) -> set[str]:
    """The alerts that fire, or would if it went on so."""
    return {alert["labels"]["alertname"] for alert in prometheus.api("alerts")["alerts"]}


def test_all_rules_are_evaluated_and_none_fires_on_an_agent_that_is_well(
    well: Any, until: Callable[..., Any]
) -> None:
    def rules() -> list[dict[str, Any]]:
        return [rule for group in well.api("rules")["groups"] for rule in group["rules"]]

    until(lambda: all(rule["health"] == "ok" for rule in rules()))
    assert len(rules()) > 90
    assert active(well) == set()


@pytest.mark.parametrize("query", QUERIES)
def test_queries_in_the_text_are_taken(well: Any, query: str) -> None:
    assert well.api("query", query=query)["resultType"] == "vector"


def test_a_collector_that_is_away_is_noticed(
    start_agent: Callable[..., Any],
    start_prometheus: Callable[..., Any],
    until: Callable[..., Any],
    free_port: int,
    tmp_path: Path,
) -> None:
    otlp = {"endpoint": f"http://127.0.0.1:{free_port}", "interval": "1s"}
    agent = start_agent(exporters={"otlp": otlp}, state_dir=str(tmp_path))
    prometheus = start_prometheus(agent.pages, rules=[RULES / "tidegauge.yaml"])
    send(agent.grpc)
    until(lambda: active(prometheus) == {"TidegaugeCollectorAway", "TidegaugePushFails"}, 60)
    assert prometheus.value("sum(tidegauge_export_pending)") == 100

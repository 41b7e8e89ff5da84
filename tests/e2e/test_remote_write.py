"""A real Prometheus takes what the agent writes, though it never scrapes it."""

from __future__ import annotations

import re
import subprocess
import time
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

PAGE = Path(__file__).parents[2] / "docs" / "storage.md"
SPANS = 40


def send(port: int) -> None:
    provider = TracerProvider(resource=Resource({"model.name": "brief", "model.version": "1"}))
    exporter = OTLPSpanExporter(f"http://127.0.0.1:{port}", insecure=True)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    for number in range(SPANS):
        span = provider.get_tracer("e2e").start_span("predict", kind=SpanKind.SERVER, start_time=10**18)
        span.end(10**18 + (number + 1) * 10**7)
    provider.shutdown()


NOBODY = 9
"""A port that is never scraped with success: discard's, which needs root."""


@pytest.fixture(scope="module")
def prometheus(start_prometheus: Callable[..., Any]) -> Any:
    """It takes what is written, and scrapes nothing that is there."""
    return start_prometheus(NOBODY, "native-histograms", options=["--web.enable-remote-write-receiver"])


def lived(start_agent: Callable[..., Any], prometheus: Any, instance: str, **settings: Any) -> Any:
    """An agent that took some spans, and has ended before it would have written by the clock."""
    url = f"http://127.0.0.1:{prometheus.port}/api/v1/write"
    write = {"endpoint": url, "interval": "1h", **settings}
    agent = start_agent(
        exporters={"remote_write": write},
        resource={"service.instance.id": instance},
        scrapers={"nvml": {"enabled": False}},
    )
    send(agent.grpc)
    agent.reaches(SPANS, "model_inference_latency_seconds_count")
    assert agent.end() == 0
    return agent


def test_an_agent_that_lives_shorter_than_a_scrape_loses_nothing(
    start_agent: Callable[..., Any], prometheus: Any, until: Callable[..., Any]
) -> None:
    lived(start_agent, prometheus, "pod-1", labels={"cluster": "eu"})
    who = 'job="tidegauge",instance="pod-1",cluster="eu"'
    latency = f'last_over_time(model_inference_latency_seconds_count{{{who},model="brief"}}[5m])'
    until(lambda: prometheus.value(f"sum({latency})") == SPANS)
    buckets = f'last_over_time(model_inference_latency_seconds_bucket{{{who},le="0.125"}}[5m])'
    assert prometheus.value(f"sum({buckets})") == 12
    # It has ended, and is not there five minutes longer.
    assert prometheus.value(f"sum(model_inference_latency_seconds_count{{{who}}})") is None


def test_without_markers_the_last_value_stands(
    start_agent: Callable[..., Any], prometheus: Any, until: Callable[..., Any]
) -> None:
    lived(start_agent, prometheus, "pod-2", stale_markers=False)
    until(lambda: prometheus.value('sum(tidegauge_folded_total{instance="pod-2"})') == SPANS)


def test_native_histograms_are_taken(
    start_agent: Callable[..., Any], prometheus: Any, until: Callable[..., Any]
) -> None:
    lived(start_agent, prometheus, "pod-3", native_histograms=True, stale_markers=False)
    latency = 'model_inference_latency_seconds{instance="pod-3"}'
    until(lambda: prometheus.value(f"sum(histogram_count({latency}))") == SPANS)
    found = prometheus.value(f"histogram_quantile(0.5, sum({latency}))")
    assert found == pytest.approx(0.2, rel=0.02)


def test_the_second_version_is_taken_and_the_first_by_one_that_knows_no_other(
    start_agent: Callable[..., Any], prometheus: Any, until: Callable[..., Any]
) -> None:
    agent = lived(start_agent, prometheus, "pod-4", version="2.0", stale_markers=False)
    until(lambda: prometheus.value('sum(tidegauge_folded_total{instance="pod-4"})') == SPANS)
    major = int(prometheus.api("status/buildinfo")["version"].split(".")[0])
    assert ("takes remote write 1.0 only" in agent.log()) == (major < 3)


def test_it_goes_on_when_the_receiver_comes_back(
    start_agent: Callable[..., Any], start_prometheus: Callable[..., Any], until: Callable[..., Any]
) -> None:
    late = start_prometheus(NOBODY, options=["--web.enable-remote-write-receiver"])
    late.end()
    url = f"http://127.0.0.1:{late.port}/api/v1/write"
    agent = start_agent(exporters={"remote_write": {"endpoint": url, "interval": "1s"}})
    send(agent.grpc)
    agent.reaches(SPANS, "model_inference_latency_seconds_count")
    before = time.time()
    until(lambda: time.time() > before + 2)
    late.start()
    until(lambda: late.value("sum(tidegauge_folded_total)") == SPANS)
    until(lambda: agent.total("tidegauge_exported_total", exporter="remote_write") > 0)
    assert agent.total("tidegauge_export_dropped_total", exporter="remote_write") == 0


def test_prometheus_settings_in_the_text_are_valid(tool: Callable[[str, str], Path], tmp_path: Path) -> None:
    bodies = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.S | re.M)
    found = [body for body in bodies if "scrape_configs" in yaml.safe_load(body)]
    assert found
    for body in found:
        (tmp_path / "prometheus.yml").write_text(body)
        command = [str(tool("prometheus", "promtool")), "check", "config", str(tmp_path / "prometheus.yml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

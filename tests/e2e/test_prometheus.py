"""A real Prometheus scrapes the agent: what PromQL makes of it is what was sent."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

pytestmark = pytest.mark.e2e

SPANS, ERRORS, ROWS, BATCH = 3000, 60, 6000, 1500
OPENMETRICS = "application/openmetrics-text;version=1.0.0"
MOVED, STILL, COLOUR = "moved", "still", "colour"
COUNTS = ("feature_window_count", "feature_reference_count")
WHO = 'model="fraud",version="2.1"'
LATENCY = f"model_inference_latency_seconds{{{WHO}}}"


class Scene(NamedTuple):
    """The agent with all that was sent folded in, and a Prometheus that has scraped that."""

    agent: Any
    prometheus: Any
    durations_s: np.ndarray[Any, np.dtype[np.float64]]


def rows(seed: int, count: int, shift: float) -> pa.Table:
    """`shift` moves one feature; of two others nothing changes."""
    random = np.random.default_rng(seed)
    return pa.table(
        {
            MOVED: random.normal(size=count) + shift,
            STILL: random.exponential(size=count),
            COLOUR: random.choice(["red", "green", "blue"], size=count),
        }
    )


def send_spans(port: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Server spans of known durations through the SDK; returns the seconds."""
    durations_ns = np.random.default_rng(3).lognormal(math.log(2e7), 0.8, SPANS).astype(np.int64)
    resource = Resource({"model.name": "fraud", "model.version": "2.1"})
    provider = TracerProvider(resource=resource)
    exporter = OTLPSpanExporter(f"http://127.0.0.1:{port}", insecure=True)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=2 * SPANS))
    tracer = provider.get_tracer("e2e")
    for index, duration_ns in enumerate(durations_ns.tolist()):
        span = tracer.start_span("predict", kind=SpanKind.SERVER, start_time=10**18)
        if index < ERRORS:
            span.set_status(StatusCode.ERROR)
        span.end(10**18 + duration_ns)
    provider.shutdown()
    return durations_ns / 1e9


def send_records(port: int) -> None:
    """Rows with one moved feature through a stock Flight client, and a batch that must be refused."""
    table = rows(2, ROWS, shift=1.0)
    with fl.FlightClient(f"grpc://127.0.0.1:{port}") as client:
        path = fl.FlightDescriptor.for_path("records", "fraud", "2.1")
        writer, _ = client.do_put(path, table.schema)
        for batch in table.to_batches(max_chunksize=BATCH):
            writer.write_batch(batch)
        writer.close()
        compressed = fl.FlightCallOptions(write_options=pa.ipc.IpcWriteOptions(compression="zstd"))
        writer, _ = client.do_put(path, table.schema, compressed)
        writer.write_batch(table.to_batches(max_chunksize=10)[0])
        writer.close()


@pytest.fixture(scope="module")
def scene(
    start_agent: Callable[..., Any],
    start_prometheus: Callable[..., Any],
    folder: Callable[[], Path],
    until: Callable[..., Any],
) -> Scene:
    train, reference = folder() / "train.parquet", folder() / "fraud.parquet"
    pq.write_table(rows(1, 20_000, shift=0.0), train)
    build = ["reference", "build", str(train), "--model", "fraud", "--version", "2.1", "-o", str(reference)]
    subprocess.run([sys.executable, "-m", "tidegauge", *build], check=True, capture_output=True)
    agent = start_agent(references=[{"model": "fraud", "version": "2.1", "path": str(reference)}])
    prometheus = start_prometheus(agent.pages)
    durations_s = send_spans(agent.grpc)
    send_records(agent.grpc)
    with grpc.insecure_channel(f"127.0.0.1:{agent.grpc}") as channel:
        export = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
        with pytest.raises(grpc.RpcError):
            export(b"\xff\xff\xff", timeout=10)
    until(lambda: prometheus.value("sum(tidegauge_received_total)") == SPANS + 1 + ROWS + 10)
    folded = 'sum(tidegauge_folded_total{signal="%s"})'
    until(lambda: prometheus.value(folded % "traces") == SPANS)
    until(lambda: prometheus.value(folded % "records") == ROWS)
    until(lambda: prometheus.value(f"sum(model_inference_latency_seconds_count{{{WHO}}})") == SPANS)
    until(lambda: prometheus.value(f'feature_window_rows{{feature="{MOVED}"}}') == ROWS)
    return Scene(agent, prometheus, durations_s)


def test_scrapes_are_taken_as_openmetrics(scene: Scene, until: Callable[..., Any]) -> None:
    until(lambda: scene.prometheus.value("up") == 1)
    [target] = scene.prometheus.api("targets")["activeTargets"]
    assert target["lastError"] == ""
    metadata = scene.prometheus.api("metadata")
    # Only OpenMetrics tells a unit, and a counter's family name has no _total there.
    assert metadata["model_inference_latency_seconds"][0] | {"help": ""} == {
        "type": "histogram",
        "help": "",
        "unit": "seconds",
    }
    assert metadata["tidegauge_received"][0]["type"] == "counter"
    assert metadata["feature_drift_score"][0]["type"] == "gauge"


def test_no_sample_is_lost_between_the_page_and_the_server(scene: Scene, until: Callable[..., Any]) -> None:
    page = scene.agent.text(OPENMETRICS)
    samples = sum(1 for line in page.splitlines() if not line.startswith("#"))
    # The page does not grow any more, so a later scrape has as many.
    until(lambda: scene.prometheus.value("scrape_samples_scraped") == samples)
    until(lambda: scene.prometheus.value("scrape_samples_post_metric_relabeling") == samples)


def test_promtool_finds_nothing_to_say(scene: Scene, tool: Callable[[str, str], Path]) -> None:
    checked = subprocess.run(
        [str(tool("prometheus", "promtool")), "check", "metrics"],
        input=scene.agent.text(),
        capture_output=True,
        text=True,
        check=False,
    )
    # The names of counts per bin are part of the public contract; promtool would keep the suffix for
    # histograms.
    known = {
        f'{name} non-histogram and non-summary metrics should not have "_count" suffix' for name in COUNTS
    }
    assert set((checked.stdout + checked.stderr).splitlines()) <= known
    assert checked.returncode in (0, 3)  # 3: it has something to say


@pytest.mark.parametrize("quantile", [0.01, 0.5, 0.9, 0.99])
def test_quantiles_lie_in_the_exact_ones_bucket(scene: Scene, quantile: float) -> None:
    buckets = f"sum by (le) (model_inference_latency_seconds_bucket{{{WHO}}})"
    found = scene.prometheus.value(f"histogram_quantile({quantile}, {buckets})")
    exact = float(np.quantile(scene.durations_s, quantile, method="inverted_cdf"))
    # The buckets' bounds are the powers of the square root of two.
    assert math.ceil(2 * math.log2(found)) == math.ceil(2 * math.log2(exact)), (found, exact)


def test_buckets_counts_and_sums_are_exact(scene: Scene) -> None:
    buckets = f"sum by (le) (model_inference_latency_seconds_bucket{{{WHO}}})"
    counts = scene.prometheus.query(buckets, by="le")
    assert len(counts) > 30
    for le, count in counts.items():
        assert count == np.count_nonzero(scene.durations_s <= float(le)), le
    by_status = scene.prometheus.query(f"model_inference_latency_seconds_count{{{WHO}}}", by="status")
    assert by_status == {"ok": SPANS - ERRORS, "error": ERRORS}
    total = scene.prometheus.value(f"sum(model_inference_latency_seconds_sum{{{WHO}}})")
    assert total == pytest.approx(scene.durations_s.sum(), rel=1e-12)


@pytest.fixture(scope="module")
def native(scene: Scene, start_prometheus: Callable[..., Any], until: Callable[..., Any]) -> Any:
    """A Prometheus that asks for native histograms, and so for protobuf."""
    prometheus = start_prometheus(scene.agent.pages, "native-histograms")
    until(lambda: prometheus.value(f"histogram_count(sum({LATENCY}))") == SPANS)
    return prometheus


@pytest.mark.parametrize("quantile", [0.001, 0.01, 0.5, 0.9, 0.99, 0.999])
def test_native_quantiles_keep_the_promised_error(scene: Scene, native: Any, quantile: float) -> None:
    found = native.value(f"histogram_quantile({quantile}, sum({LATENCY}))")
    exact = float(np.quantile(scene.durations_s, quantile, method="inverted_cdf"))
    scale = 8
    while np.ptp(np.ceil(np.log2(scene.durations_s) * 2**scale)) >= 160:
        scale -= 1
    base = 2**2.0**-scale
    # The exact one lies in the bucket of that rank, and Prometheus interpolates within it, so both lie
    # between ends that are a factor of `base` apart: twice what a harmonic mean promises, and a little.
    assert scale >= 3
    assert abs(found - exact) / exact <= base - 1
    # Of classic buckets no more than a factor of the square root of two can be promised.
    assert base < 2**0.5 / 1.2


def test_native_counts_and_sums_are_exact(scene: Scene, native: Any) -> None:
    by_status = native.query(f"histogram_count({LATENCY})", by="status")
    assert by_status == {"ok": SPANS - ERRORS, "error": ERRORS}
    total = native.value(f"histogram_sum(sum({LATENCY}))")
    assert total == pytest.approx(scene.durations_s.sum(), rel=1e-12)
    # A share up to a bound of both kinds of bucket needs no interpolation.
    share = native.value(f"histogram_fraction(0, 0.03125, sum({LATENCY}))")
    assert share == pytest.approx(np.count_nonzero(scene.durations_s <= 0.03125) / SPANS, rel=1e-12)


def test_protobuf_and_openmetrics_say_the_same(scene: Scene, native: Any, until: Callable[..., Any]) -> None:
    """All series but histograms, which are classic here and native there, and what differs with time."""
    where = (
        'job="tidegauge",__name__!~"model_inference_latency_seconds.*|prediction_histogram.*|scrape_.*|up"'
    )

    def series(prometheus: Any) -> dict[str, str]:
        result = prometheus.api("query", query=f"{{{where}}}")["result"]
        return {str(sorted(one["metric"].items())): one["value"][1] for one in result}

    found = series(native)
    assert len(found) > 100
    until(lambda: series(native) == series(scene.prometheus))
    assert native.value("up") == 1


def test_only_the_moved_feature_drifts(scene: Scene) -> None:
    flagged = scene.prometheus.query(f"feature_drifted{{{WHO}}}", by="feature")
    assert flagged == {MOVED: 1, STILL: 0, COLOUR: 0}
    scores = scene.prometheus.query(f"feature_drift_score{{{WHO}}}", by="feature")
    # PSI of two normal distributions one standard deviation apart is 1; bins lose some of it.
    assert 0.8 < scores[MOVED] < 1.1
    assert max(scores[STILL], scores[COLOUR]) < 0.02


@pytest.mark.parametrize("feature", [MOVED, STILL])
def test_the_score_can_be_had_from_counts_in_promql(scene: Scene, feature: str) -> None:
    """So drift of a fleet is a sum of counts, whichever replica they come from."""
    where = f'{{{WHO},feature="{feature}",bin!="__missing__"}}'
    window = f"sum by (bin) (feature_window_count{where}) + 0.5"
    reference = f"sum by (bin) (feature_reference_count{where}) + 0.5"
    q = f"(({window}) / scalar(sum({window})))"
    p = f"(({reference}) / scalar(sum({reference})))"
    psi = scene.prometheus.value(f"sum(({q} - {p}) * ln({q} / {p}))")
    score = scene.prometheus.value(f'feature_drift_score{{feature="{feature}"}}')
    assert psi == pytest.approx(score, rel=1e-9)


def test_what_is_received_is_conserved(scene: Scene) -> None:
    by = "sum by (receiver, signal)"
    received = scene.prometheus.query(f"{by} (tidegauge_received_total)", by="signal")
    assert received == {"traces": SPANS + 1, "records": ROWS + 10}
    rejected = scene.prometheus.query("tidegauge_rejected_total", by="reason")
    assert rejected == {"undecodable": 1, "compressed": 10}
    refused = f"({by} (tidegauge_rejected_total) or 0 * {by} (tidegauge_received_total))"
    lost = f"({by} (tidegauge_dropped_total) or 0 * {by} (tidegauge_received_total))"
    first = f"{by} (tidegauge_received_total) - {by} (tidegauge_accepted_total) - {refused}"
    second = (
        f"{by} (tidegauge_accepted_total) - {by} (tidegauge_folded_total) - {lost} - {by} (tidegauge_pending)"
    )
    for identity in (first, second):
        assert scene.prometheus.query(identity, by="signal") == {"traces": 0, "records": 0}, identity


def test_no_name_carries_a_unit_twice(scene: Scene) -> None:
    names = {series["__name__"] for series in scene.prometheus.api("series", **{"match[]": '{job!=""}'})}
    assert len(names) > 20
    assert not [name for name in names if re.search(r"(seconds|bytes|ratio|total)(_\1)", name)]

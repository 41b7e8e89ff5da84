"""Confidence distributions and business figures, from OpenTelemetry's SDK over gRPC to /metrics."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import (
    AlwaysOnExemplarFilter,
    Counter,
    Histogram,
    MeterProvider,
    UpDownCounter,
)
from opentelemetry.sdk.metrics.export import AggregationTemporality, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import (
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    View,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Sample

from tidegauge import config
from tidegauge.exporters.pages import Pages
from tidegauge.metric import ExponentialHistogram, Metric
from tidegauge.pipeline import Pipeline
from tidegauge.processors.received import Received
from tidegauge.receivers.grpc_server import GrpcServer
from tidegauge.receivers.otlp import OtlpReceiver
from tidegauge.snapshot import Snapshots
from tidegauge.telemetry import Telemetry

TARGET = {"job": "shop/scorer", "instance": "pod-1"}
RESOURCE = Resource(
    {
        "service.name": "scorer",
        "service.namespace": "shop",
        "service.instance.id": "pod-1",
        "service.version": "2.1",
    }
)
SCOPE = {"otel_scope_name": "business", "otel_scope_version": "3"}
CONFIDENCE = [0.5, 0.7, 0.9, 0.95, 0.99]
TRACE_ID, SPAN_ID = 0x0AF7651916CD43DD8448EB211C80319C, 0x00F067AA0BA902B7


class Pushed:
    """What a model server pushes, and what is then found of it."""

    def __init__(self, endpoint: str, delta: bool) -> None:
        kind = AggregationTemporality.DELTA if delta else AggregationTemporality.CUMULATIVE
        exporter = OTLPMetricExporter(
            endpoint,
            insecure=True,
            preferred_temporality={Counter: kind, UpDownCounter: kind, Histogram: kind},
        )
        reader = PeriodicExportingMetricReader(exporter, export_interval_millis=float("inf"))
        self.provider = MeterProvider(
            [reader],
            RESOURCE,
            exemplar_filter=AlwaysOnExemplarFilter(),
            views=[
                View(
                    instrument_name="prediction.confidence",
                    aggregation=ExplicitBucketHistogramAggregation(CONFIDENCE),
                ),
                View(
                    instrument_name="prediction.margin", aggregation=ExponentialBucketHistogramAggregation()
                ),
            ],
        )
        meter = self.provider.get_meter("business", "3")
        self.revenue = meter.create_counter("order.revenue", "EUR", "Sold on a recommendation.")
        self.decisions = meter.create_counter("loan.decisions", "{decision}")
        self.basket = meter.create_up_down_counter("basket.items", "{item}")
        self.threshold = meter.create_gauge("decision.threshold", "1")
        self.confidence = meter.create_histogram("prediction.confidence", "1", "Of the class chosen.")
        self.margin = meter.create_histogram("prediction.margin", "1")

    def first(self) -> None:
        self.revenue.add(19.99, {"model": "recommender"})
        self.decisions.add(3, {"outcome": "approved"})
        self.decisions.add(1, {"outcome": "declined"})
        self.basket.add(5)
        self.threshold.set(0.5, {"model": "fraud"})
        for value in (0.4, 0.5, 0.6, 0.93, 0.999):
            self.confidence.record(value, {"model": "fraud"})
        for value in (0.0, 1.0, 2.0, 4.0):
            self.margin.record(value)
        self.provider.force_flush()

    def second(self) -> None:
        context = SpanContext(TRACE_ID, SPAN_ID, False, TraceFlags(TraceFlags.SAMPLED))
        with trace.use_span(NonRecordingSpan(context)):
            self.confidence.record(0.96, {"model": "fraud"})
        self.revenue.add(0.01, {"model": "recommender"})
        self.decisions.add(2**40, {"outcome": "approved"})
        self.basket.add(-7)
        self.threshold.set(0.625, {"model": "fraud"})
        self.margin.record(1e-3)
        self.provider.force_flush()


def push(delta: bool) -> tuple[list[Sample], list[Sample], tuple[Metric, ...], Telemetry]:
    """The samples on the text and the OpenMetrics page, the metrics behind them, and the counts."""

    async def run() -> tuple[list[Sample], list[Sample], tuple[Metric, ...], Telemetry]:
        telemetry, snapshots = Telemetry(), Snapshots()
        pipeline = Pipeline((Received(config.ReceivedMetrics()),), telemetry, queue_bytes=2**24)
        otlp = OtlpReceiver(pipeline, telemetry, config.IdentityAttributes())
        grpc = GrpcServer(config.GrpcReceiver(endpoint="127.0.0.1:0"), otlp, (), grace_s=1.0)
        async with pipeline, Pages("127.0.0.1:0", snapshots, health=list, ready=list) as pages, grpc:
            pushed = Pushed(f"127.0.0.1:{grpc.port}", delta)
            for step in (pushed.first, pushed.second, pushed.provider.shutdown):
                await asyncio.to_thread(step)
            while telemetry.total("folded") < telemetry.total("accepted"):
                await asyncio.sleep(0.01)
            metrics = await pipeline.collect(time.time_ns())
            snapshots.publish("statistics", metrics)
            url = f"http://127.0.0.1:{pages.port}/metrics"
            text = await asyncio.to_thread(scrape, url, "text/plain")
            openmetrics = await asyncio.to_thread(scrape, url, "application/openmetrics-text; version=1.0.0")
        return (
            [sample for family in parse_text(text) for sample in family.samples],
            [sample for family in parse_openmetrics(openmetrics) for sample in family.samples],
            metrics,
            telemetry,
        )

    return asyncio.run(run())


def scrape(url: str, accept: str) -> str:
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


def value(samples: list[Sample], name: str, **labels: str) -> float:
    wanted = TARGET | SCOPE | labels
    [found] = [sample.value for sample in samples if sample.name == name and sample.labels == wanted]
    return float(found)


@pytest.mark.parametrize("delta", [False, True], ids=["cumulative", "delta"])
def test_what_the_sdk_pushes_is_what_is_scraped(delta: bool) -> None:
    text, openmetrics, metrics, telemetry = push(delta)
    for samples in (text, openmetrics):
        assert value(samples, "order_revenue_EUR_total", model="recommender") == 20.0
        assert value(samples, "loan_decisions_total", outcome="approved") == 3 + 2**40
        assert value(samples, "loan_decisions_total", outcome="declined") == 1
        assert value(samples, "basket_items") == -2
        assert value(samples, "decision_threshold_ratio", model="fraud") == 0.625
        assert value(samples, "prediction_confidence_count", model="fraud") == 6
        total = value(samples, "prediction_confidence_sum", model="fraud")
        assert total == pytest.approx(0.4 + 0.5 + 0.6 + 0.93 + 0.999 + 0.96, rel=1e-15)
        below = {"0.5": 2, "0.7": 3, "0.9": 3, "0.95": 4, "0.99": 5, "+Inf": 6}
        for bound, count in below.items():
            assert value(samples, "prediction_confidence_bucket", model="fraud", le=bound) == count
        assert value(samples, "prediction_margin_count") == 5
        assert value(samples, "prediction_margin_sum") == 7.001
        assert value(samples, "prediction_margin_bucket", le="1.0") == 3
        [info] = [sample for sample in samples if sample.name == "target_info"]
        assert (info.labels, info.value) == (TARGET | {"service_version": "2.1"}, 1.0)
    assert telemetry.total("accepted") == telemetry.total("folded") == telemetry.total("received") > 0
    assert telemetry.total("dropped") == 0
    check_margin(metrics)
    check_exemplar(metrics)


def check_margin(metrics: tuple[Metric, ...]) -> None:
    [metric] = [one for one in metrics if one.name == "prediction.margin"]
    [point] = metric.points
    assert isinstance(point, ExponentialHistogram)
    assert (point.count, point.zero_count, point.min, point.max) == (5, 1, 0.0, 4.0)
    base = 2.0 ** (2.0**-point.scale)
    for sent in (1e-3, 1.0, 2.0, 4.0):
        near = [
            place
            for place, count in enumerate(point.counts, point.offset)
            if count and base**place * (1 - 1e-9) <= sent <= base ** (place + 1) * (1 + 1e-9)
        ]
        assert len(near) == 1


def check_exemplar(metrics: tuple[Metric, ...]) -> None:
    [metric] = [one for one in metrics if one.name == "prediction.confidence"]
    exemplars: Any = metric.points[0].exemplars  # type: ignore[union-attr]
    ids = (("trace_id", f"{TRACE_ID:032x}"), ("span_id", f"{SPAN_ID:016x}"))
    assert [one.value for one in exemplars if one.attributes == ids] == [0.96]
    assert all(one.time_ns > 0 for one in exemplars)

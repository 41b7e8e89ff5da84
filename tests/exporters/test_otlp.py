"""The agent's own metrics, as a real collector gets them."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any

import grpc
import msgspec
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tidegauge import __version__
from tidegauge.batch import Signal
from tidegauge.config import OtlpExporter
from tidegauge.exporters.channel import Collector
from tidegauge.exporters.otlp import POINTS, OtlpPush, requests
from tidegauge.metric import Attributes, ExponentialHistogram, Histogram, Kind, Metric, Number
from tidegauge.snapshot import Snapshot, Snapshots
from tidegauge.telemetry import Telemetry

MODEL: Attributes = (("model", "fraud"), ("odd", "ü\ud800"))
METRICS = (
    Metric("drift", Kind.GAUGE, "{score}", "Drift.", (Number(MODEL, 0.25), Number((), math.nan))),
    Metric("tidegauge.received", Kind.COUNTER, "{item}", "Items.", (Number(MODEL, 7.0),), 11),
    Metric("prediction.histogram", Kind.HISTOGRAM, "", "", (Histogram((), (0.5, 1.0), (1, 2, 3), 4.5),), 12),
    Metric(
        "model.inference.latency",
        Kind.EXPONENTIAL_HISTOGRAM,
        "s",
        "Latency.",
        (
            ExponentialHistogram(MODEL, 3, -24, (5, 0, 7), 2, 1.75, 0.0, 0.16),
            ExponentialHistogram((), 8, 0, (), 0, 0.0, math.inf, -math.inf),
        ),
        13,
    ),
)
POINTS_IN_ALL = 6


def gauges(count: int) -> Metric:
    return Metric("many", Kind.GAUGE, "", "", tuple(Number((("n", str(n)),), float(n)) for n in range(count)))


class Scene:
    """A telemetry, snapshots and settings for a push to `port`."""

    def __init__(self, port: int) -> None:
        self.telemetry = Telemetry()
        self.snapshots = Snapshots()
        self.snapshots.publish("one", METRICS)
        self.collector = Collector(OtlpExporter(endpoint=f"http://127.0.0.1:{port}"))

    def push(self, interval_s: float = 60.0) -> OtlpPush:
        resource = {"service.instance.id": "me", "k8s.pod.name": "pod"}
        return OtlpPush(
            self.collector, self.snapshots, self.telemetry, resource=resource, interval_s=interval_s
        )

    def counts(self) -> tuple[int, dict[str, int]]:
        reasons = {
            reason: self.telemetry.total("export.dropped", exporter="otlp", signal="metrics", reason=reason)
            for reason in ("unavailable", "rejected", "shutdown", "error")
        }
        exported = self.telemetry.total("exported", exporter="otlp", signal="metrics")
        return exported, {reason: items for reason, items in reasons.items() if items}


def test_all_kinds_arrive_on_leaving(sink_type: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink:
            it = Scene(sink.port)
            async with it.collector, it.push():
                pass
            (call,) = sink.taken
            assert it.counts() == (POINTS_IN_ALL, {})
        (resource_metrics,) = call.request.resource_metrics
        resource = {kv.key: kv.value.string_value for kv in resource_metrics.resource.attributes}
        assert resource == {
            "service.name": "tidegauge",
            "service.instance.id": "me",
            "service.version": __version__,
            "k8s.pod.name": "pod",
        }
        (scope_metrics,) = resource_metrics.scope_metrics
        assert (scope_metrics.scope.name, scope_metrics.scope.version) == ("tidegauge", __version__)
        gauge, counter, explicit, exponential = scope_metrics.metrics
        time_ns = it.snapshots.latest().time_ns

        assert (gauge.name, gauge.unit, gauge.description) == ("drift", "{score}", "Drift.")
        first, second = gauge.gauge.data_points
        assert (first.as_double, first.time_unix_nano, first.start_time_unix_nano) == (0.25, time_ns, 0)
        assert [(kv.key, kv.value.string_value) for kv in first.attributes] == [
            ("model", "fraud"),
            ("odd", "ü?"),
        ]
        assert math.isnan(second.as_double)

        assert (counter.sum.is_monotonic, counter.sum.aggregation_temporality) == (True, 2)
        (point,) = counter.sum.data_points
        assert (point.as_double, point.start_time_unix_nano) == (7.0, 11)

        assert explicit.histogram.aggregation_temporality == 2
        (point,) = explicit.histogram.data_points
        assert (list(point.explicit_bounds), list(point.bucket_counts)) == ([0.5, 1.0], [1, 2, 3])
        assert (point.count, point.sum, point.start_time_unix_nano) == (6, 4.5, 12)

        assert exponential.exponential_histogram.aggregation_temporality == 2
        point, nothing = exponential.exponential_histogram.data_points
        assert (point.scale, point.positive.offset, list(point.positive.bucket_counts)) == (3, -24, [5, 0, 7])
        assert (point.count, point.zero_count, point.sum, point.min, point.max) == (14, 2, 1.75, 0.0, 0.16)
        assert (nothing.count, nothing.scale, nothing.HasField("min"), nothing.HasField("max")) == (
            0,
            8,
            False,
            False,
        )

    asyncio.run(scene())


def test_each_snapshot_is_pushed_once(sink_type: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink:
            it = Scene(sink.port)
            async with it.collector, it.push(0.01):
                await sink.until(lambda: len(sink.taken) == 1)
                await asyncio.sleep(0.1)
                assert len(sink.taken) == 1
                it.snapshots.publish("two", (gauges(1),))
                await sink.until(lambda: len(sink.taken) == 2)
            assert len(sink.taken) == 2
            assert it.counts() == (2 * POINTS_IN_ALL + 1, {})

    asyncio.run(scene())


def test_a_large_snapshot_goes_in_portions() -> None:
    count = 2 * POINTS + 500
    snapshot = Snapshot(1, 5, (*METRICS, gauges(count), METRICS[0]))
    portions = requests(snapshot, {})
    assert [items for items, _ in portions] == [POINTS, POINTS, 508]
    numbers = []
    for items, raw in portions:
        (resource_metrics,) = ExportMetricsServiceRequest.FromString(raw).resource_metrics
        metrics = resource_metrics.scope_metrics[0].metrics
        points = [(m.name, getattr(m, m.WhichOneof("data")).data_points) for m in metrics]
        assert sum(len(found) for _, found in points) == items
        numbers += [point.as_double for name, found in points if name == "many" for point in found]
    assert numbers == [float(n) for n in range(count)]


def test_a_histogram_without_a_sum_has_none() -> None:
    snapshot = Snapshot(
        1, 5, (Metric("h", Kind.HISTOGRAM, "", "", (Histogram((), (0.5,), (1, 2), math.nan),)),)
    )
    ((_, raw),) = requests(snapshot, {})
    request = ExportMetricsServiceRequest.FromString(raw)
    (point,) = request.resource_metrics[0].scope_metrics[0].metrics[0].histogram.data_points
    assert point.count == 3
    assert not point.HasField("sum")


def test_nothing_is_no_request() -> None:
    assert requests(Snapshot(1, 5, ()), {}) == []


def test_what_senders_made_is_not_pushed_again() -> None:
    received = tuple(msgspec.structs.replace(metric, received=True) for metric in METRICS)
    assert requests(Snapshot(1, 5, received), {}) == []
    assert requests(Snapshot(1, 5, (*METRICS, *received)), {}) == requests(Snapshot(1, 5, METRICS), {})


def test_a_failed_push_is_dropped_and_the_next_one_arrives(sink_type: Any, failure: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink:
            sink.failures[Signal.METRICS] = [
                failure(grpc.StatusCode.UNAVAILABLE),
                failure(grpc.StatusCode.INVALID_ARGUMENT),
            ]
            it = Scene(sink.port)
            async with it.collector, it.push(0.01):
                await sink.until(lambda: len(sink.calls) == 1)
                it.snapshots.publish("one", METRICS)
                await sink.until(lambda: len(sink.calls) == 2)
                it.snapshots.publish("one", METRICS)
                await sink.until(lambda: len(sink.taken) == 1)
            assert it.counts() == (POINTS_IN_ALL, {"unavailable": POINTS_IN_ALL, "rejected": POINTS_IN_ALL})

    asyncio.run(scene())


def test_the_wait_that_the_collector_asks_for_is_kept(sink_type: Any, failure: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink:
            sink.failures[Signal.METRICS] = [failure(grpc.StatusCode.RESOURCE_EXHAUSTED, 0.4)]
            it = Scene(sink.port)
            async with it.collector, it.push(0.01):
                await sink.until(lambda: len(sink.calls) == 1)
                it.snapshots.publish("one", METRICS)
                await sink.until(lambda: len(sink.calls) == 2)
            assert sink.calls[1].time_s - sink.calls[0].time_s >= 0.4

    asyncio.run(scene())


def test_partial_success_is_counted_and_not_repeated(
    sink_type: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        async with sink_type() as sink:
            sink.partial = (2, "two are odd")
            it = Scene(sink.port)
            async with it.collector, it.push():
                pass
            assert len(sink.calls) == 1
            assert it.counts() == (POINTS_IN_ALL - 2, {"rejected": 2})

    asyncio.run(scene())
    assert [record.getMessage() for record in caplog.records if "two are odd" in record.getMessage()]


def test_leaving_takes_a_bounded_time(sink_type: Any) -> None:
    async def scene() -> None:
        async with sink_type() as sink:
            sink.gate.clear()
            it = Scene(sink.port)
            push = OtlpPush(
                it.collector, it.snapshots, it.telemetry, resource={}, interval_s=60.0, last_push_s=0.2
            )
            async with it.collector, push:
                pass
            assert len(sink.calls) == 1
            assert it.counts() == (0, {"shutdown": POINTS_IN_ALL})

    asyncio.run(scene())


def test_an_absent_collector_is_told_once(closed_port: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tidegauge")

    async def scene() -> None:
        it = Scene(closed_port)
        async with it.collector, it.push() as push:
            for _ in range(5):
                it.snapshots.publish("one", METRICS)
                await push.push()
        assert it.counts() == (0, {"unavailable": 5 * POINTS_IN_ALL})

    asyncio.run(scene())
    assert len(caplog.records) == 1

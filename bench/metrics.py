"""OTLP metrics scanned and folded into series on one core, beside protobuf and a walk in Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from bench.figure import Figure
from tidegauge import config
from tidegauge.batch import Points
from tidegauge.processors.received import Received
from tidegauge.wire.counts import count_points
from tidegauge.wire.metrics import scan

METRICS, SERIES = 20, 50
_REQUESTS = 60
_SEED = np.uint64(1)
_EVERY_S = 15 * 10**9


def measure(rounds: int) -> Iterator[Figure]:
    """Data points per CPU second, all series known, without transport; numbers, then histograms."""
    for what, fill in _KINDS.items():
        # Later and later, so that no point is a duplicate.
        requests = [_request(fill, sequence) for sequence in range(_REQUESTS)]
        size = len(requests[0]) // (METRICS * SERIES)
        own = [_own(requests) / 1e6 for _ in range(rounds)]
        walks = [_walk(requests[:8]) / 1e6 for _ in range(rounds)]
        name = f"OTLP {what} → series, {METRICS * SERIES} x {size} B, no transport"
        yield Figure(name, "M points/core-s", own, "protobuf and Python", walks)


def _own(requests: list[bytes]) -> float:
    processor = Received(config.ReceivedMetrics())
    # The first registers the series; the others are what comes day in, day out.
    processor.update(_batch(requests[0]))
    begin = time.process_time()
    for raw in requests[1:]:
        assert not processor.update(_batch(raw))
    return (len(requests) - 1) * METRICS * SERIES / (time.process_time() - begin)


def _batch(raw: bytes) -> Points:
    return Points("bench", raw, scan(raw, count_points(raw), _SEED))


def _walk(requests: list[bytes]) -> float:
    """Parse each request, read every attribute, and keep the latest number or the summed counts."""
    series: dict[tuple[Any, ...], Any] = {}
    begin = time.process_time()
    for raw in requests:
        for resource in ExportMetricsServiceRequest.FromString(raw).resource_metrics:
            target = _attributes(resource.resource)
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in getattr(metric, metric.WhichOneof("data") or "gauge").data_points:
                        key = metric.name, target, scope.scope.name, _attributes(point)
                        series[key] = _latest(point, series.get(key))
    return len(requests) * METRICS * SERIES / (time.process_time() - begin)


def _attributes(message: Any) -> tuple[tuple[str, object], ...]:
    return tuple(
        (pair.key, getattr(pair.value, pair.value.WhichOneof("value") or "string_value"))
        for pair in message.attributes
    )


def _latest(point: Any, before: list[int] | None) -> Any:
    kind = type(point).__name__
    if kind == "NumberDataPoint":
        return point.as_int
    counts = list(point.bucket_counts if kind == "HistogramDataPoint" else point.positive.bucket_counts)
    return counts if before is None else [one + other for one, other in zip(before, counts, strict=True)]


def _sum(metric: Any, start: int, end: int, sequence: int) -> Any:
    metric.sum.aggregation_temporality = 2
    metric.sum.is_monotonic = True
    return metric.sum.data_points.add(start_time_unix_nano=1, time_unix_nano=end, as_int=sequence)


def _histogram(metric: Any, start: int, end: int, sequence: int) -> Any:
    metric.histogram.aggregation_temporality = 1
    return metric.histogram.data_points.add(
        start_time_unix_nano=start,
        time_unix_nano=end,
        count=136,
        sum=1.5,
        bucket_counts=range(1, 17),
        explicit_bounds=[0.005 * 2**index for index in range(15)],
    )


def _exponential(metric: Any, start: int, end: int, sequence: int) -> Any:
    metric.exponential_histogram.aggregation_temporality = 1
    point = metric.exponential_histogram.data_points.add(
        start_time_unix_nano=start, time_unix_nano=end, count=1275, sum=1.5, scale=4
    )
    point.positive.offset = -40
    point.positive.bucket_counts.extend(range(1, 51))
    return point


_KINDS: dict[str, Callable[[Any, int, int, int], Any]] = {
    "counters": _sum,
    "delta histograms": _histogram,
    "exponential histograms": _exponential,
}


def _request(fill: Callable[[Any, int, int, int], Any], sequence: int) -> bytes:
    """A request of METRICS metrics with SERIES series each, for one interval."""
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "scorer"
    resource.resource.attributes.add(key="service.instance.id").value.string_value = "pod-1"
    scope = resource.scope_metrics.add()
    scope.scope.name = "business"
    for number in range(METRICS):
        metric = scope.metrics.add(name=f"business.figure.{number}", unit="s", description="A figure.")
        for series in range(SERIES):
            point = fill(metric, 1 + sequence * _EVERY_S, 1 + (sequence + 1) * _EVERY_S, sequence)
            for key, value in (("model.name", f"m{series}"), ("model.version", "2"), ("outcome", "ok")):
                point.attributes.add(key=key).value.string_value = value
    return request.SerializeToString()

"""A sender of OTLP metrics, and what the processor of received metrics makes of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tidegauge import config
from tidegauge.batch import Points
from tidegauge.metric import Attributes, Metric
from tidegauge.processors.received import Received
from tidegauge.wire.counts import count_points
from tidegauge.wire.metrics import scan

SEED = np.uint64(11)
DELTA, CUMULATIVE = 1, 2
START_NS = 1_000_000


def received(**settings_: Any) -> Received:
    return Received(config.ReceivedMetrics(**settings_), start_ns=START_NS)


def put(attributes: Any, pairs: dict[str, Any]) -> None:
    for key, value in pairs.items():
        kind = {str: "string", bool: "bool", int: "int", float: "double", bytes: "bytes"}[type(value)]
        setattr(attributes.add(key=key).value, f"{kind}_value", value)


class Sender:
    """Makes requests of one resource and scope; `send` gives them to a processor."""

    def __init__(self, **resource: Any) -> None:
        self.resource = {key.replace("__", "."): value for key, value in resource.items()}
        self.scope: dict[str, Any] = {}
        self.request = ExportMetricsServiceRequest()
        self.metrics: dict[tuple[Any, ...], Any] = {}
        self.sent = 0

    def metric(self, kind: str, name: str = "m", unit: str = "", description: str = "", **about: Any) -> Any:
        key = (kind, name, unit, description, *sorted(about.items()))
        if key not in self.metrics:
            if not self.request.resource_metrics:
                resource = self.request.resource_metrics.add()
                put(resource.resource.attributes, self.resource)
                scope = resource.scope_metrics.add(schema_url=self.scope.get("schema_url", ""))
                scope.scope.name = self.scope.get("name", "")
                scope.scope.version = self.scope.get("version", "")
                put(scope.scope.attributes, self.scope.get("attributes", {}))
            scope = self.request.resource_metrics[0].scope_metrics[0]
            metric = scope.metrics.add(name=name, unit=unit, description=description)
            data = getattr(metric, kind)
            data.SetInParent()
            for field, value in about.items():
                setattr(data, field, value)
            self.metrics[key] = data
        return self.metrics[key]

    def point(self, metric: Any, time: int, start: int = 0, **fields: Any) -> Any:
        pairs = fields.pop("attributes", {})
        point = metric.data_points.add(time_unix_nano=time, start_time_unix_nano=start, **fields)
        put(point.attributes, pairs)
        return point

    def counter(
        self, time: int, value: float, start: int = 1, temporality: int = CUMULATIVE, **more: Any
    ) -> Any:
        about = {key: more.pop(key) for key in ("name", "unit") if key in more}
        monotonic = more.pop("monotonic", True)
        metric = self.metric("sum", aggregation_temporality=temporality, is_monotonic=monotonic, **about)
        case = "as_int" if isinstance(value, int) else "as_double"
        return self.point(metric, time, start, **{case: value}, **more)

    def gauge(self, time: int, value: float, **more: Any) -> Any:
        about = {key: more.pop(key) for key in ("name", "unit") if key in more}
        return self.point(self.metric("gauge", **about), time, as_double=value, **more)

    def histogram(
        self,
        time: int,
        counts: list[int],
        bounds: list[float],
        start: int = 1,
        temporality: int = DELTA,
        **more: Any,
    ) -> Any:
        metric = self.metric("histogram", aggregation_temporality=temporality)
        return self.point(
            metric, time, start, count=sum(counts), bucket_counts=counts, explicit_bounds=bounds, **more
        )

    def exponential(
        self,
        time: int,
        scale: int,
        positive: tuple[int, list[int]] = (0, []),
        negative: tuple[int, list[int]] = (0, []),
        zeros: int = 0,
        start: int = 1,
        temporality: int = DELTA,
        **more: Any,
    ) -> Any:
        about = {"aggregation_temporality": temporality}
        metric = self.metric("exponential_histogram", more.pop("name", "m"), **about)
        point = self.point(metric, time, start, scale=scale, zero_count=zeros, **more)
        point.count = sum(positive[1]) + sum(negative[1]) + zeros
        for side, (offset, counts) in ((point.positive, positive), (point.negative, negative)):
            side.offset = offset
            side.bucket_counts.extend(counts)
        return point

    def batch(self) -> Points:
        raw = self.request.SerializeToString()
        self.sent += count_points(raw)
        self.request, self.metrics = ExportMetricsServiceRequest(), {}
        return Points("otlp_grpc", raw, scan(raw, count_points(raw), SEED))

    def send(self, processor: Received) -> dict[str, int]:
        return dict(processor.update(self.batch()))


def metrics(processor: Received, now_ns: int = START_NS) -> dict[str, Metric]:
    return {metric.name: metric for metric in processor.collect(now_ns)}


def points(processor: Received, name: str = "m", now_ns: int = START_NS) -> dict[Attributes, Any]:
    metric = metrics(processor, now_ns).get(name)
    return {point.attributes: point for point in metric.points} if metric else {}


def value(processor: Received, name: str = "m", now_ns: int = START_NS) -> Any:
    """The value of the only series."""
    [point] = points(processor, name, now_ns).values()
    return point.value


@pytest.fixture(scope="session")
def otlp() -> SimpleNamespace:
    """`Sender` makes and sends requests, `received` a processor; the others read what it collects."""
    return SimpleNamespace(Sender=Sender, received=received, metrics=metrics, points=points, value=value)

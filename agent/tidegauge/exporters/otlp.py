"""The agent's own metrics, pushed to the collector as OTLP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import uuid
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from tidegauge import __version__
from tidegauge.batch import Signal
from tidegauge.exporters.channel import Collector
from tidegauge.exporters.outcome import Verdict
from tidegauge.metric import Attributes, Exemplar, Histogram, Kind, Metric, Number, Shown, Summary, Table
from tidegauge.snapshot import Snapshot, Snapshots
from tidegauge.telemetry import Telemetry

log = logging.getLogger(__name__)

POINTS = 1000
"""Points per request. A point takes up to 1 kB, and collectors refuse requests above 4 MiB."""

_LONGEST_S = 300.0
"""The longest wait that a collector may ask for."""

_IDS = ("trace_id", "span_id")
_LABELS = {"exporter": "otlp", "signal": "metrics"}


class OtlpPush:
    """Pushes the latest snapshot every `interval_s` seconds, and once more on leaving.

    All kinds are cumulative, so a push that fails is not repeated: the next one says it all. The
    points of such a push count as dropped. A snapshot that was pushed is not pushed again. The resource gets
    `service.name` (tidegauge), `service.instance.id` and `service.version` where they are not given.
    """

    def __init__(
        self,
        collector: Collector,
        snapshots: Snapshots,
        telemetry: Telemetry,
        *,
        resource: Mapping[str, str],
        interval_s: float,
        last_push_s: float = 2.0,
    ) -> None:
        self._collector = collector
        self._snapshots = snapshots
        self._telemetry = telemetry
        self._resource = default_resource() | dict(resource)
        self.interval_s = interval_s
        self._last_push_s = last_push_s
        self._generation = 0
        self._stopping = asyncio.Event()
        self._pusher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._telemetry.add("exported", 0, **_LABELS)
        self._pusher = asyncio.create_task(self._run(), name="otlp push")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._pusher is not None
        self._stopping.set()
        _, late = await asyncio.wait({self._pusher}, timeout=self._last_push_s)
        if late:
            log.warning("the last metrics did not reach %s in time", self._collector.endpoint)
            self._pusher.cancel()
            await asyncio.wait({self._pusher})

    async def _run(self) -> None:
        delay_s = self.interval_s
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)
            delay_s = max(self.interval_s, await self._try_push())
        # Stopped in the midst of a push: that one told of an older snapshot, perhaps.
        await self._try_push()

    async def _try_push(self) -> float:
        try:
            return await self.push()
        except Exception:
            log.exception("the metrics could not be pushed")
            return 0.0

    async def push(self) -> float:
        """Push the latest snapshot, if it is new. Returns the wait that the collector asks for, or 0."""
        snapshot = self._snapshots.latest()
        if snapshot.generation == self._generation:
            return 0.0
        left = sum(len(metric.points) for metric in snapshot.metrics if not metric.received)
        reason = "error"
        asked_s = 0.0
        try:
            for items, request in await asyncio.to_thread(requests, snapshot, self._resource):
                outcome = await self._collector.export(Signal.METRICS, request)
                if outcome.verdict is Verdict.RETRY:
                    reason = "unavailable"
                    asked_s = min(outcome.delay_s or 0.0, _LONGEST_S)
                    break
                left -= items
                taken = 0
                if outcome.verdict is Verdict.DELIVERED:
                    taken = items - min(items, outcome.rejected_items)
                    self._telemetry.add("exported", taken, **_LABELS)
                self._drop(items - taken, "rejected")
        except asyncio.CancelledError:
            reason = "shutdown"
            raise
        finally:
            self._drop(left, reason)
        self._generation = snapshot.generation
        return asked_s

    def _drop(self, items: int, reason: str) -> None:
        if items:
            self._telemetry.add("export.dropped", items, reason=reason, **_LABELS)


def default_resource() -> dict[str, str]:
    """Who sends, where the configuration does not say (semantic conventions, "Service")."""
    return {
        "service.name": "tidegauge",
        "service.instance.id": str(uuid.uuid4()),
        "service.version": __version__,
    }


def requests(snapshot: Snapshot, resource: Mapping[str, str]) -> list[tuple[int, bytes]]:
    """The snapshot as serialised ExportMetricsServiceRequests, each with its number of points.

    What a sender made is left out: it is forwarded as it came.
    """
    found = []
    own = tuple(metric for metric in snapshot.metrics if not metric.received)
    for metrics in _portions(own):
        scope = pb.ScopeMetrics(
            scope=InstrumentationScope(name="tidegauge", version=__version__),
            metrics=[_metric(metric, snapshot.time_ns) for metric in metrics],
        )
        whole = pb.ResourceMetrics(
            resource=Resource(attributes=_attributes(tuple(resource.items()))), scope_metrics=[scope]
        )
        request = ExportMetricsServiceRequest(resource_metrics=[whole])
        found.append((sum(len(metric.points) for metric in metrics), request.SerializeToString()))
    return found


def _portions(metrics: tuple[Metric, ...]) -> Iterator[list[Metric]]:
    """The metrics in lists of at most POINTS points; a larger metric is cut."""
    portion: list[Metric] = []
    room = POINTS
    for metric in metrics:
        start = 0
        while start < len(metric.points):
            part = metric.points[start : start + room]
            portion.append(
                Metric(metric.name, metric.kind, metric.unit, metric.description, part, metric.start_ns)
            )
            start += len(part)
            room -= len(part)
            if not room:
                yield portion
                portion, room = [], POINTS
    if portion:
        yield portion


def _metric(metric: Metric, time_ns: int) -> pb.Metric:
    message = pb.Metric(name=metric.name, unit=metric.unit, description=metric.description)
    cumulative = pb.AGGREGATION_TEMPORALITY_CUMULATIVE
    body: Any
    match metric.kind:
        case Kind.GAUGE:
            body = message.gauge
        case Kind.COUNTER:
            body = message.sum
            body.is_monotonic = True
            body.aggregation_temporality = cumulative
        case Kind.HISTOGRAM:
            body = message.histogram
            body.aggregation_temporality = cumulative
        case Kind.EXPONENTIAL_HISTOGRAM:
            body = message.exponential_histogram
            body.aggregation_temporality = cumulative
        case Kind.SUMMARY:
            body = message.summary
    start_ns = 0 if metric.kind is Kind.GAUGE else metric.start_ns
    for point in metric.points:
        assert not isinstance(point, Table)  # Snapshot.metrics has none
        body.data_points.add(
            attributes=_attributes(point.attributes),
            start_time_unix_nano=point.start_ns or start_ns,
            time_unix_nano=time_ns,
            **_fields(point),
        )
    return message


def _fields(point: Shown) -> dict[str, Any]:
    if isinstance(point, Number):
        exemplars = () if point.exemplar is None else (point.exemplar,)
        return {"as_double": point.value, "exemplars": [_exemplar(one) for one in exemplars]}
    if isinstance(point, Summary):
        value_at = pb.SummaryDataPoint.ValueAtQuantile
        quantiles = [value_at(quantile=q, value=value) for q, value in point.quantiles]
        return {"count": point.count, "sum": point.sum, "quantile_values": quantiles}
    if isinstance(point, Histogram):
        return {
            "count": sum(point.counts),
            # Values that have no sum among the doubles: OTLP leaves it unset.
            **({} if math.isnan(point.sum) else {"sum": point.sum}),
            "explicit_bounds": point.bounds,
            "bucket_counts": point.counts,
            "exemplars": [_exemplar(one) for one in point.exemplars],
        }
    buckets = pb.ExponentialHistogramDataPoint.Buckets
    extremes = {"min": point.min, "max": point.max} if point.count else {}
    return {
        "count": point.count,
        "sum": point.sum,
        "scale": point.scale,
        "zero_count": point.zero_count,
        "zero_threshold": point.zero_threshold,
        "positive": buckets(offset=point.offset, bucket_counts=point.counts),
        "negative": buckets(offset=point.negative_offset, bucket_counts=point.negative_counts),
        "exemplars": [_exemplar(one) for one in point.exemplars],
        **extremes,
    }


def _exemplar(exemplar: Exemplar) -> pb.Exemplar:
    ids: dict[str, Any] = {key: bytes.fromhex(value) for key, value in exemplar.attributes if key in _IDS}
    rest = tuple(pair for pair in exemplar.attributes if pair[0] not in _IDS)
    return pb.Exemplar(
        time_unix_nano=exemplar.time_ns,
        as_double=exemplar.value,
        filtered_attributes=_attributes(rest),
        **ids,
    )


def _attributes(attributes: Attributes) -> list[KeyValue]:
    return [KeyValue(key=_text(key), value=AnyValue(string_value=_text(value))) for key, value in attributes]


def _text(text: str) -> str:
    # Protobuf refuses a lone surrogate, and the whole request with it.
    return text if text.isascii() else text.encode("utf-8", "replace").decode()

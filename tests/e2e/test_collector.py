"""A real OpenTelemetry Collector on both sides of the agent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.flight as fl
import pytest
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogs
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogs
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetrics
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpans
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.util.types import Attributes

pytestmark = pytest.mark.e2e

SPANS, LOGS = 1300, 700
MILLISECOND_NS = 1_000_000
ATTRIBUTES: Attributes = {
    "text": "Grüße, 世界 \N{WATER WAVE}",
    "empty": "",
    "long": "x" * 5000,
    "int": -(2**63),
    "double": 0.1,
    "tiny": 5e-324,
    "infinite": float("-inf"),
    "true": True,
    "false": False,
    "bytes": b"\x00\xff\x80",
    "texts": ("a", "", "c"),
    "ints": (0, -1, 2**62),
}


class Exporters(NamedTuple):
    """The SDK's exporters for one protocol."""

    spans: Any
    metrics: Any
    logs: Any


class Tee:
    """An exporter that keeps what it passes on, as the SDK encodes it."""

    def __init__(self, exporter: Any, encode: Callable[[Any], Any]) -> None:
        self._exporter = exporter
        self._encode = encode
        self.sent: list[Any] = []

    def export(self, items: Any, *arguments: Any, **options: Any) -> Any:
        self.sent.append(self._encode(items))
        return self._exporter.export(items, *arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exporter, name)


def exporters(agent: Any, protocol: str) -> Exporters:
    if protocol == "grpc":
        options = {"endpoint": f"http://127.0.0.1:{agent.grpc}", "insecure": True}
        return Exporters(GrpcSpans(**options), GrpcMetrics(**options), GrpcLogs(**options))
    base = f"http://127.0.0.1:{agent.http}/v1"
    return Exporters(HttpSpans(f"{base}/traces"), HttpMetrics(f"{base}/metrics"), HttpLogs(f"{base}/logs"))


def send_spans(exporter: Any, service: str, count: int = SPANS) -> None:
    """Server spans of 1, 2, 3 … ms; every fifth has an event, a link and an error."""
    provider = TracerProvider(resource=Resource({"service.name": service, "model.name": service}))
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=2 * SPANS))
    tracer = provider.get_tracer("e2e", "1.0", "https://opentelemetry.io/schemas/1.30.0", {"scope": "yes"})
    first = tracer.start_span("first").get_span_context()
    for index in range(count):
        links = [Link(first, {"why": "test"})] if index % 5 == 0 else []
        attributes = {**(ATTRIBUTES or {}), "index": index}
        span = tracer.start_span(
            f"predict {index % 3}", None, SpanKind.SERVER, attributes, links, start_time=10**18
        )
        if index % 5 == 0:
            span.add_event("retry", ATTRIBUTES, timestamp=10**18 + 5)
            span.set_status(Status(StatusCode.ERROR, "no luck"))
        span.end(10**18 + (index + 1) * MILLISECOND_NS)
    provider.shutdown()


def send_metrics(exporter: Any, service: str) -> None:
    """One of each kind of instrument, and an exponential histogram."""
    exponential = View(
        instrument_type=Histogram, instrument_name="wide", aggregation=ExponentialBucketHistogramAggregation()
    )
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=1e9)
    provider = MeterProvider([reader], Resource({"service.name": service}), views=[exponential])
    meter = provider.get_meter("e2e", "1.0")
    meter.create_counter("requests", "1").add(3, ATTRIBUTES)
    meter.create_up_down_counter("connections", "1").add(-2, {"peer": "a"})
    meter.create_gauge("temperature", "Cel").set(-40.5)
    narrow, wide = meter.create_histogram("narrow", "s"), meter.create_histogram("wide", "s")
    for value in (0.0, 1e-9, 0.004, 0.3, 17.0, 1e9):
        narrow.record(value)
        wide.record(value, {"kind": "wide"})
    provider.shutdown()


def send_logs(exporter: Any, service: str) -> None:
    provider = LoggerProvider(Resource({"service.name": service}))
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter, max_queue_size=2 * LOGS))
    logger = provider.get_logger("e2e", "1.0")
    for index in range(LOGS):
        body: Any = {"nested": {"index": index, "list": [1, "two", 3.0]}} if index % 2 else f"line {index}"
        logger.emit(
            LogRecord(
                timestamp=10**18 + index,
                severity_number=SeverityNumber.WARN,
                severity_text="WARN",
                body=body,
                attributes=ATTRIBUTES,
                event_name="test.event",
            )
        )
    provider.shutdown()


def send_records(agent: Any, model: str, rows: int) -> None:
    """Records of two features and a score."""
    table = pa.table(
        {
            "age": [float(row % 70) for row in range(rows)],
            "country": [("se", "no")[row % 2] for row in range(rows)],
            "score": [row / rows for row in range(rows)],
        }
    )
    with fl.FlightClient(f"grpc://127.0.0.1:{agent.grpc}") as client:
        writer, _ = client.do_put(fl.FlightDescriptor.for_path("records", model, "1"), table.schema)
        writer.write_table(table)
        writer.close()


def items(request: Any, service: str) -> Counter[bytes]:
    """Every span, metric or log record of a service with all that surrounds it, byte for byte."""
    return Counter(
        b"|".join(
            [part.SerializeToString(deterministic=True) for part in (resource.resource, scope.scope, item)]
            + [resource.schema_url.encode(), scope.schema_url.encode()]
        )
        for resource in children(request)
        if service_of(resource) == service
        for scope in children(resource)
        for item in children(scope)
    )


def complete(collector: Any, signal: str, service: str, count: int) -> Counter[bytes] | None:
    """What the collector has of a service, once that is as many as `count`."""
    found = items(collector.written(signal), service)
    return found if found.total() >= count else None


def children(message: Any) -> Iterator[Any]:
    """The elements of a message's only list of messages: resources, scopes, then items."""
    for descriptor, value in message.ListFields():
        if descriptor.is_repeated and descriptor.message_type is not None:
            yield from value


def service_of(resource: Any) -> str:
    return next(
        pair.value.string_value for pair in resource.resource.attributes if pair.key == "service.name"
    )


class Scene(NamedTuple):
    """An agent in front of a collector that writes down what it gets."""

    agent: Any
    collector: Any


@pytest.fixture(scope="module")
def scene(start_agent: Callable[..., Any], make_collector: Callable[..., Any]) -> Scene:
    collector = make_collector()
    collector.start()
    otlp = {"endpoint": f"http://127.0.0.1:{collector.grpc}", "interval": "1s"}
    return Scene(start_agent(exporters={"otlp": otlp}), collector)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_what_a_client_sends_reaches_the_collector_byte_for_byte(
    scene: Scene, until: Callable[..., Any], protocol: str
) -> None:
    to = exporters(scene.agent, protocol)
    service = f"{protocol}-client"
    sends = {
        "traces": (Tee(to.spans, encode_spans), send_spans, SPANS),
        "metrics": (Tee(to.metrics, encode_metrics), send_metrics, 5),
        "logs": (Tee(to.logs, encode_logs), send_logs, LOGS),
    }
    for signal, (tee, send, count) in sends.items():
        send(tee, service)
        expected = sum((items(request, service) for request in tee.sent), Counter())
        assert expected.total() == count
        arrived = until(partial(complete, scene.collector, signal, service, count))
        assert arrived == expected, signal
        labels = {"receiver": f"otlp_{protocol}", "signal": signal}
        scene.agent.reaches(count, "tidegauge_folded_total", **labels)
    assert scene.agent.total("model_inference_latency_seconds_count", model=service) == SPANS


def test_the_agents_own_metrics_are_pushed(scene: Scene, until: Callable[..., Any]) -> None:
    """Latency as exponential histograms, which hold the exact count, sum, minimum and maximum."""
    send_spans(exporters(scene.agent, "grpc").spans, "pushed", count=1000)

    def latest() -> dict[str, Any]:
        """The newest point of each operation that succeeded."""
        return {
            attributes["operation"]: (metric, point)
            for resource in scene.collector.written("metrics").resource_metrics
            if service_of(resource) == "tidegauge"
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == "model.inference.latency"
            for point in metric.exponential_histogram.data_points
            if (attributes := {pair.key: pair.value.string_value for pair in point.attributes})
            | {"model": "pushed", "status": "ok"}
            == attributes
        }

    until(lambda: sum(point.count for _, point in latest().values()) == 800)
    for operation, (metric, point) in latest().items():
        which = int(operation.removeprefix("predict "))
        durations = [index + 1 for index in range(1000) if index % 5 and index % 3 == which]
        assert metric.unit == "s"
        assert metric.exponential_histogram.aggregation_temporality == 2  # cumulative
        assert 0 < point.start_time_unix_nano < point.time_unix_nano
        assert point.count == len(durations) == sum(point.positive.bucket_counts)
        assert point.sum == pytest.approx(sum(durations) / 1e3, rel=1e-12)
        assert (point.min, point.max) == (min(durations) / 1e3, max(durations) / 1e3)
        for index, count in enumerate(point.positive.bucket_counts, point.positive.offset):
            low, high = 2 ** (index / 2**point.scale), 2 ** ((index + 1) / 2**point.scale)
            assert count == sum(low < duration / 1e3 <= high for duration in durations)


def test_the_collectors_prometheus_names_are_the_agents_own(
    start_agent: Callable[..., Any],
    make_collector: Callable[..., Any],
    until: Callable[..., Any],
    free_port: int,
    get: Callable[[str], str],
) -> None:
    """Two ways to Prometheus, one name: dashboards work with either."""
    collector = make_collector({"prometheus": {"endpoint": f"127.0.0.1:{free_port}"}}, ["metrics"])
    collector.start()
    otlp = {"endpoint": f"http://127.0.0.1:{collector.grpc}", "interval": "1s"}
    agent = start_agent(exporters={"otlp": otlp}, drift={"reference_rows": 500})
    send_spans(exporters(agent, "http").spans, "named", count=10)
    send_records(agent, "named", rows=1000)

    def types(page: str) -> set[str]:
        return {
            line
            for line in page.splitlines()
            if line.startswith("# TYPE ") and not line.startswith("# TYPE target_info")
        }

    agent.reaches(10, "model_inference_latency_seconds_count")
    agent.reaches(500, "feature_window_rows", feature="age")
    until(lambda: types(get(f"http://127.0.0.1:{free_port}/metrics")) == types(agent.text()))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_collector_in_front_feeds_the_latency_histograms(
    scene: Scene, make_collector: Callable[..., Any], until: Callable[..., Any], protocol: str
) -> None:
    port = getattr(scene.agent, protocol)
    address = f"127.0.0.1:{port}" if protocol == "grpc" else f"http://127.0.0.1:{port}"
    out = {f"otlp_{protocol}": {"endpoint": address, "compression": "gzip", "tls": {"insecure": True}}}
    front = make_collector(out)
    front.start()
    service = f"behind-{protocol}"
    send_spans(exporters(front, "grpc").spans, service)
    scene.agent.reaches(SPANS, "model_inference_latency_seconds_count", model=service)
    errors = scene.agent.total("model_inference_latency_seconds_count", model=service, status="error")
    assert errors == SPANS / 5
    total = scene.agent.total("model_inference_latency_seconds_sum", model=service)
    assert total == pytest.approx(SPANS * (SPANS + 1) / 2 / 1e3, rel=1e-12)


def test_a_collector_that_comes_late_gets_everything_once(
    start_agent: Callable[..., Any], make_collector: Callable[..., Any], until: Callable[..., Any]
) -> None:
    collector = make_collector()
    agent = start_agent(exporters={"otlp": {"endpoint": f"http://127.0.0.1:{collector.grpc}"}})
    tee = Tee(exporters(agent, "grpc").spans, encode_spans)
    send_spans(tee, "late")
    until(lambda: agent.total("tidegauge_export_retries_total", signal="traces") > 0)
    agent.reaches(SPANS, "tidegauge_export_pending", signal="traces")
    collector.start()
    agent.reaches(SPANS, "tidegauge_exported_total", exporter="forwarder", signal="traces")
    expected = sum((items(request, "late") for request in tee.sent), Counter())
    until(lambda: items(collector.written("traces"), "late") == expected)
    assert agent.total("tidegauge_export_dropped_total") == 0


def test_a_stopping_agent_hands_on_what_it_has(
    start_agent: Callable[..., Any], make_collector: Callable[..., Any], until: Callable[..., Any]
) -> None:
    collector = make_collector()
    collector.start()
    agent = start_agent(exporters={"otlp": {"endpoint": f"http://127.0.0.1:{collector.grpc}"}})
    send_spans(exporters(agent, "http").spans, "last")
    assert agent.end() == 0
    until(lambda: items(collector.written("traces"), "last").total() == SPANS)

    def folded() -> list[float]:
        return [
            point.as_double
            for resource in collector.written("metrics").resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == "tidegauge.folded"
            for point in metric.sum.data_points
        ]

    until(lambda: SPANS in folded())

"""What is sent: batches of 50 float columns, and trace requests of 512 spans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from opentelemetry.proto.trace.v1.trace_pb2 import Span

MODEL, VERSION = "bench", "1"
ROWS, COLUMNS, BATCHES = 4096, 50, 8
SPANS = 512


def write_batches(path: Path, rows: int = ROWS) -> None:
    """Different batches of normal, log-normal, uniform, integer-valued and sparse columns."""
    random = np.random.default_rng(7)
    names = [f"f{column:02}" for column in range(COLUMNS)]
    schema = pa.schema([(name, pa.float64()) for name in names])
    with pa.ipc.new_stream(str(path), schema) as stream:
        for _ in range(BATCHES):
            columns = [float_column(random, column, rows) for column in range(COLUMNS)]
            stream.write_batch(pa.record_batch(columns, schema=schema))


def float_column(random: np.random.Generator, column: int, rows: int = ROWS) -> npt.NDArray[np.float64]:
    """Values of the column of that number."""
    match column % 5:
        case 0:
            return random.normal(column, 1 + column, rows)
        case 1:
            return random.lognormal(0, 1, rows)
        case 2:
            return random.uniform(-1, 1, rows)
        case 3:
            return random.poisson(20, rows).astype(np.float64)
        case _:
            return np.where(random.random(rows) < 0.5, 0.0, random.exponential(10, rows))


def span_request(operations: int = 5, count: int = SPANS) -> bytes:
    """A request of `count` server spans of about 394 bytes, the last two attributes being the identity."""
    random = np.random.default_rng(7)
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.append(_text("service.name", "bench"))
    spans = resource.scope_spans.add()
    spans.scope.name = "opentelemetry.instrumentation.fastapi"
    for index in range(count):
        start_ns = 1_700_000_000_000_000_000 + index * 1_000_000
        spans.spans.append(
            Span(
                trace_id=random.bytes(16),
                span_id=random.bytes(8),
                name=f"POST /v1/predict/{index % operations}",
                kind=Span.SPAN_KIND_SERVER,
                start_time_unix_nano=start_ns,
                end_time_unix_nano=start_ns + int(random.lognormal(17, 0.7)),
                attributes=[
                    _text("http.request.method", "POST"),
                    _text("url.path", f"/v1/predict/{index % operations}"),
                    _text("http.route", "/v1/predict/{operation}"),
                    _text("server.address", "model-server-0"),
                    _text("network.protocol.version", "1.1"),
                    _text("user_agent.original", "python-httpx/0.28.1 (model client; retries 3)"),
                    KeyValue(key="http.response.status_code", value=AnyValue(int_value=200)),
                    _text("model.name", MODEL),
                    _text("model.version", VERSION),
                ],
            )
        )
    return request.SerializeToString()


def metrics_request(points: int = 256) -> bytes:
    """A request of `points` points: a cumulative sum for each of so many endpoints."""
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    resource.resource.attributes.append(_text("service.name", "bench"))
    metric = resource.scope_metrics.add().metrics.add(name="requests", unit="{request}")
    metric.sum.is_monotonic = True
    metric.sum.aggregation_temporality = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    for index in range(points):
        point = metric.sum.data_points.add(
            start_time_unix_nano=1_700_000_000_000_000_000,
            time_unix_nano=1_700_000_060_000_000_000,
            as_int=index,
        )
        point.attributes.append(_text("endpoint", f"/v1/predict/{index}"))
    return request.SerializeToString()


def logs_request(records: int = 256) -> bytes:
    """A request of `records` log lines."""
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    resource.resource.attributes.append(_text("service.name", "bench"))
    lines = resource.scope_logs.add().log_records
    for index in range(records):
        line = lines.add(time_unix_nano=1_700_000_000_000_000_000 + index, severity_number=9)
        line.body.string_value = f"prediction {index} took 17 ms; the cache was warm and the batch was full"
        line.attributes.append(_text("model.name", MODEL))
    return request.SerializeToString()


def _text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))

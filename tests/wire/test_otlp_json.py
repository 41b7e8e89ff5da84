"""OTLP/JSON against the protobuf it stands for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tidegauge.batch import Signal
from tidegauge.wire.otlp_json import to_protobuf

TRACE_ID, SPAN_ID, PARENT_ID = bytes(range(16)), bytes(range(200, 208)), bytes(range(8))


def as_json(request: Any) -> Any:
    """The specification's JSON of a request: enums as integers, ids in hexadecimal."""
    return _hex_ids(MessageToDict(request, use_integers_for_enums=True))


def _hex_ids(tree: Any) -> Any:
    known = {"traceId": TRACE_ID, "spanId": SPAN_ID, "parentSpanId": PARENT_ID}
    if isinstance(tree, list):
        return [_hex_ids(value) for value in tree]
    if isinstance(tree, dict):
        return {
            key: known[key].hex().upper() if key in known else _hex_ids(value) for key, value in tree.items()
        }
    return tree


def traces() -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    span = (
        request.resource_spans.add()
        .scope_spans.add()
        .spans.add(
            trace_id=TRACE_ID,
            span_id=SPAN_ID,
            parent_span_id=PARENT_ID,
            name="predict",
            kind=2,  # type: ignore[arg-type]
            start_time_unix_nano=2**63 + 1,
            end_time_unix_nano=2**63 + 5,
        )
    )
    span.links.add(trace_id=TRACE_ID, span_id=SPAN_ID)
    span.status.code = 2  # type: ignore[assignment]
    span.attributes.add(key="traceId").value.string_value = "not an id"
    span.attributes.add(key="n").value.int_value = -(2**62)
    span.attributes.add(key="raw").value.bytes_value = b"\x00\xff"
    span.attributes.add(key="list").value.array_value.values.add().double_value = 0.5
    return request


def metrics() -> ExportMetricsServiceRequest:
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="m")
    for value in (1.5, float("inf"), float("-inf")):
        point = metric.gauge.data_points.add(as_double=value)
        point.exemplars.add(trace_id=TRACE_ID, span_id=SPAN_ID, as_int=3)
    return request


def logs() -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    record = request.resource_logs.add().scope_logs.add().log_records.add(trace_id=TRACE_ID, span_id=SPAN_ID)
    record.severity_number = 9  # type: ignore[assignment]
    record.body.kvlist_value.values.add(key="spanId").value.string_value = "not an id"
    return request


@pytest.mark.parametrize(
    ("signal", "request_"),
    [(Signal.TRACES, traces()), (Signal.METRICS, metrics()), (Signal.LOGS, logs())],
)
def test_a_request_comes_back_whole(signal: Signal, request_: Any) -> None:
    body = json.dumps(as_json(request_)).encode()
    assert type(request_).FromString(to_protobuf(signal, body)) == request_


def test_unknown_fields_are_ignored_and_numbers_may_be_numbers_or_strings() -> None:
    span = {"name": "a", "startTimeUnixNano": 5, "endTimeUnixNano": "7", "later": {"x": [1]}, "kind": 77}
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}], "later": 1}).encode()
    request = ExportTraceServiceRequest.FromString(to_protobuf(Signal.TRACES, body))
    read = request.resource_spans[0].scope_spans[0].spans[0]
    assert (read.name, read.start_time_unix_nano, read.end_time_unix_nano, read.kind) == ("a", 5, 7, 77)


def test_not_a_number_is_a_string() -> None:
    point = {"asDouble": "NaN"}
    body = json.dumps(
        {"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"gauge": {"dataPoints": [point]}}]}]}]}
    )
    request = ExportMetricsServiceRequest.FromString(to_protobuf(Signal.METRICS, body.encode()))
    (read,) = request.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points
    assert read.as_double != read.as_double


def test_an_empty_object_is_an_empty_request() -> None:
    assert to_protobuf(Signal.LOGS, b"{}") == b""


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "truncated"),
        (b"[]", "Expected `object`"),
        (b"{}x", "trailing"),
        (b'{"a": "\xff"}', "utf-8"),
        (b'{"a": "\\ud800"}', "truncated"),
        (b'{"resourceSpans": 5}', "resourceSpans"),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "xy"}]}]}]}', "traceId must be a hex"),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"spanId": 5}]}]}]}', "spanId must be a hex"),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"name": 5}]}]}]}', "name"),
        (
            b'{"resourceSpans": [{"resource": {"attributes": [{"key": "k", "value": {"doubleValue": '
            + b"9" * 400
            + b"}}]}}]}",
            "too large",
        ),
        (b'{"a":' * 50_000, "nested too deep"),
        (b'{"resourceSpans": ' + b"[" * 500 + b"]" * 500 + b"}", "nested|resourceSpans"),
    ],
)
def test_what_is_no_such_request_is_refused_with_the_reason(body: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        to_protobuf(Signal.TRACES, body)

"""Counts against what the protobuf library holds."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tidegauge.wire.counts import count_points, count_records


def spans_in(raw: bytes) -> int:
    resources = ExportTraceServiceRequest.FromString(raw).resource_spans
    return sum(len(scope.spans) for resource in resources for scope in resource.scope_spans)


def log_records_in(raw: bytes) -> int:
    resources = ExportLogsServiceRequest.FromString(raw).resource_logs
    return sum(len(scope.log_records) for resource in resources for scope in resource.scope_logs)


def points_in(raw: bytes) -> int:
    return sum(
        len(getattr(metric, metric.WhichOneof("data")).data_points)
        for resource in ExportMetricsServiceRequest.FromString(raw).resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.WhichOneof("data")
    )


@pytest.mark.parametrize(
    ("signal", "count", "oracle"),
    [
        ("traces", count_records, spans_in),
        ("logs", count_records, log_records_in),
        ("metrics", count_points, points_in),
    ],
)
def test_counts_equal_what_protobuf_reads(signal, count, oracle, wire: SimpleNamespace) -> None:
    @settings(max_examples=150, deadline=None)
    @given(getattr(wire, signal))
    def check(raw: bytes) -> None:
        assert count(raw) == oracle(raw)

    check()


@pytest.mark.parametrize(
    ("signal", "count", "oracle"),
    [("logs", count_records, log_records_in), ("metrics", count_points, points_in)],
)
def test_mutated_bytes_agree_or_are_refused(signal, count, oracle, wire: SimpleNamespace) -> None:
    @settings(max_examples=200, deadline=None)
    @given(getattr(wire, signal).filter(bool), st.integers(0, 10**6), st.integers(0, 255))
    def check(raw: bytes, place: int, byte: int) -> None:
        mutated = bytearray(raw)
        mutated[place % len(raw)] = byte
        try:
            found = oracle(bytes(mutated))
        except DecodeError:
            with contextlib.suppress(ValueError):
                count(bytes(mutated))
        else:
            assert count(bytes(mutated)) == found

    check()


def test_a_metric_that_is_two_kinds_is_the_last(wire: SimpleNamespace) -> None:
    point = wire.message(1, b"")
    gauge, total = wire.message(5, point), wire.message(7, point * 2)
    for metric, points in [
        (gauge + total, 2),
        (total + gauge, 1),
        (gauge + gauge, 2),
        (gauge + total + gauge, 1),
    ]:
        raw = wire.message(1, wire.message(2, wire.message(2, metric)))
        assert count_points(raw) == points == points_in(raw)

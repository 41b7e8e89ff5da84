"""What is refused in any part of a request, against what the protobuf library refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import ExponentialHistogramDataPoint, HistogramDataPoint

from tidegauge.wire.schema import Schema

REQUESTS = {
    "traces": ExportTraceServiceRequest,
    "metrics": ExportMetricsServiceRequest,
    "logs": ExportLogsServiceRequest,
}
U64 = st.integers(0, 2**64 - 1)


def outcomes(kind: Any, raw: bytes, schema: Schema | None = None) -> tuple[bool, bool]:
    """Whether the library and whether the schema take the bytes for a message of this kind."""
    try:
        kind.FromString(raw)
        theirs = True
    except DecodeError:
        theirs = False
    try:
        (schema or Schema(kind.DESCRIPTOR)).check(raw)
        ours = True
    except ValueError:
        ours = False
    return theirs, ours


@pytest.mark.parametrize("signal", REQUESTS)
def test_what_is_well_formed_is_accepted_and_mutated_as_the_library_does(
    signal: str, wire: SimpleNamespace
) -> None:
    kind = REQUESTS[signal]
    schema = Schema(kind.DESCRIPTOR)
    changes = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3)

    @settings(max_examples=200, deadline=None)
    @given(getattr(wire, signal).filter(bool), changes)
    def check(raw: bytes, changes: list[tuple[int, int]]) -> None:
        assert outcomes(kind, raw, schema) == (True, True)
        mutated = bytearray(raw)
        for place, byte in changes:
            mutated[place % len(raw)] = byte
        theirs, ours = outcomes(kind, bytes(mutated), schema)
        assert ours == theirs

    check()


@given(st.lists(U64, max_size=5), st.lists(st.floats(), max_size=5), st.data())
def test_packed_numbers_are_refused_where_one_is_cut(
    counts: list[int], bounds: list[float], data: st.DataObject
) -> None:
    fixed = HistogramDataPoint(bucket_counts=counts, explicit_bounds=bounds).SerializeToString()
    varints = ExponentialHistogramDataPoint(positive={"bucket_counts": counts}).SerializeToString()
    for kind, raw in ((HistogramDataPoint, fixed), (ExponentialHistogramDataPoint, varints)):
        mutated = bytearray(raw)
        if mutated:
            mutated[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        theirs, ours = outcomes(kind, bytes(mutated))
        assert ours == theirs


def nested(depth: int, wire: SimpleNamespace) -> bytes:
    value = b""
    for _ in range(depth):
        value = wire.message(5, wire.message(1, value))
    return value


def test_values_nest_as_deep_as_the_library_allows(wire: SimpleNamespace) -> None:
    for depth, expected in ((50, True), (51, False)):
        assert outcomes(AnyValue, nested(depth, wire)) == (expected, expected)
        assert outcomes(KeyValue, wire.message(2, nested(depth, wire))) == (depth < 50, depth < 50)


@pytest.mark.parametrize(
    "path",
    [
        (1, 3),  # schema_url
        (1, 1, 1, 1),  # a resource's key
        (1, 2, 1, 2),  # a scope's version
        (1, 2, 3),
        (1, 2, 2, 3),  # trace_state
        (1, 2, 2, 5),
        (1, 2, 2, 9, 1),
        (1, 2, 2, 9, 2, 1),
        (1, 2, 2, 9, 2, 5, 1, 1),  # text in an array
        (1, 2, 2, 9, 2, 6, 1, 1),  # a key in a map
        (1, 2, 2, 11, 2),
        (1, 2, 2, 11, 3, 2, 1),
        (1, 2, 2, 13, 3),
        (1, 2, 2, 13, 4, 1),
        (1, 2, 2, 15, 2),
    ],
)
def test_text_that_is_no_utf8_is_refused_wherever_it_stands(
    path: tuple[int, ...], wire: SimpleNamespace
) -> None:
    for text, expected in ((b"\xc3\xbc", True), (b"\xc3", False)):
        raw = text
        for number in reversed(path):
            raw = wire.message(number, raw)
        assert outcomes(ExportTraceServiceRequest, raw) == (expected, expected)

"""The scanner's columns and the readers of points against what the protobuf library reads."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from tidegauge.wire import metrics
from tidegauge.wire.counts import count_points
from tidegauge.wire.metrics import Form, PointKind
from tidegauge.wire.points import EXEMPLAR, READING, exemplars, exponential, gather, histogram, summary
from tidegauge.wire.protobuf import field, view

SEED = np.uint64(7)
KINDS = ["gauge", "sum", "histogram", "exponential_histogram", "summary"]
EXEMPLARS = {
    PointKind.GAUGE: 0x2A,
    PointKind.SUM: 0x2A,
    PointKind.HISTOGRAM: 0x42,
    PointKind.EXPONENTIAL_HISTOGRAM: 0x5A,
}
MOST = 64


def scan(raw: bytes, seed: np.uint64 = SEED) -> Any:
    return metrics.scan(raw, count_points(raw), seed)


def bits(value: float) -> int:
    """NaNs are told apart by theirs."""
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


def buckets(
    raw: bytes, point: np.void, most: int
) -> tuple[np.void, npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """A histogram's or summary's reading and lists: counts, bounds or quantiles, negative counts.

    Raises:
        ValueError: where a list has more than `most` elements, or the point is malformed.
    """
    counts, negative = np.zeros(most, np.int64), np.zeros(most, np.int64)
    floats, reading = np.zeros(2 * most, np.float64), np.zeros(1, READING)
    where = view(raw), int(point["offset"]), int(point["offset"]) + int(point["length"])
    if point["kind"] == 3:
        error = histogram(*where, counts, floats[:most], reading[0])
    elif point["kind"] == 4:
        error = exponential(*where, counts, negative, reading[0])
    else:
        error = summary(*where, floats, reading[0])
    if error < 0:
        raise ValueError(f"a data point is malformed or has more than {most} buckets")
    return reading[0], counts, floats, negative


def walk(raw: bytes) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Every data point, with its metric, scope and resource, as protobuf has them."""
    for resource in ExportMetricsServiceRequest.FromString(raw).resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                for point in getattr(metric, kind).data_points if kind else ():
                    yield point, metric, scope, resource


def expected(point: Any, metric: Any) -> tuple[Any, ...]:
    kind = metric.WhichOneof("data")
    about = getattr(metric, kind)
    temporality = getattr(about, "aggregation_temporality", 0)
    if kind in ("gauge", "sum"):
        case = point.WhichOneof("value")
        form = {None: Form.NONE, "as_double": Form.DOUBLE, "as_int": Form.INT}[case]
        value = point.as_int % 2**64 if case == "as_int" else bits(point.as_double) if case else 0
    else:
        form, value = Form.COUNT, point.count
    return (
        point.start_time_unix_nano,
        point.time_unix_nano,
        form,
        value,
        point.flags,
        metric.name,
        metric.unit,
        metric.description,
        KINDS.index(kind) + 1,
        temporality if temporality in (1, 2) else 0,
        getattr(about, "is_monotonic", False),
        bool(getattr(point, "exemplars", ())),
    )


def found(raw: bytes, column: np.void) -> tuple[Any, ...]:
    texts = (
        raw[column[f"{part}_offset"] :][: column[f"{part}_length"]].decode()
        for part in ("name", "unit", "description")
    )
    # A count that is not sent is 0 to protobuf.
    form = Form.COUNT if column["kind"] > 2 else Form(int(column["form"]))
    plain = (column[name].item() for name in ("kind", "temporality", "is_monotonic", "has_exemplars"))
    start_ns, time_ns = column["start_ns"].item(), column["time_ns"].item()
    return start_ns, time_ns, form, column["bits"].item(), column["flags"].item(), *texts, *plain


def columns(raw: bytes) -> list[tuple[Any, ...]]:
    """All points as `found` has them, lists and exemplars read too."""
    read = []
    for column in scan(raw):
        lists = buckets(raw, column, MOST) if column["kind"] > 2 else ()
        read.append((found(raw, column), len(lists)))
    return read


def points(raw: bytes) -> list[tuple[Any, ...]]:
    """The same as protobuf has it."""
    return [
        (expected(point, metric), 0 if metric.WhichOneof("data") in ("gauge", "sum") else 4)
        for point, metric, _, _ in walk(raw)
    ]


def test_columns_equal_what_protobuf_reads(wire: SimpleNamespace) -> None:
    @settings(max_examples=300, deadline=None)
    @given(wire.metrics)
    def check(raw: bytes) -> None:
        columns = scan(raw)
        assert [found(raw, column) for column in columns] == [
            expected(point, metric) for point, metric, _, _ in walk(raw)
        ]

    check()


def test_a_point_s_resource_and_scope_are_gathered_from_their_pieces(wire: SimpleNamespace) -> None:
    @settings(max_examples=200, deadline=None)
    @given(wire.metrics)
    def check(raw: bytes) -> None:
        for column, (_, _, scope, resource) in zip(scan(raw), walk(raw), strict=True):
            where = int(column["resource_offset"]), int(column["resource_length"])
            assert Resource.FromString(gather(raw, *where, 1, 0x0A, 10**6)) == resource.resource
            where = int(column["scope_offset"]), int(column["scope_length"])
            assert InstrumentationScope.FromString(gather(raw, *where, 2, 0x0A, 10**6)) == scope.scope
            url = gather(raw, *where, 2, 0x1A, 10**6, only_last=True)
            assert url.decode() == scope.schema_url

    check()


def test_the_attributes_of_a_point_are_gathered_as_a_message_of_them_alone(wire: SimpleNamespace) -> None:
    tags = {"gauge": 0x3A, "sum": 0x3A, "histogram": 0x4A, "exponential_histogram": 0x0A, "summary": 0x3A}

    @settings(max_examples=200, deadline=None)
    @given(wire.metrics)
    def check(raw: bytes) -> None:
        for column, (point, metric, _, _) in zip(scan(raw), walk(raw), strict=True):
            where = int(column["offset"]), int(column["length"])
            tag = tags[metric.WhichOneof("data")]
            alone = type(point).FromString(gather(raw, *where, 5, tag, 10**6, framed=True))
            assert alone == type(point)(attributes=point.attributes)

    check()


def test_buckets_and_quantiles_equal_what_protobuf_reads(wire: SimpleNamespace) -> None:
    @settings(max_examples=300, deadline=None)
    @given(wire.metrics)
    def check(raw: bytes) -> None:
        for column, (point, metric, _, _) in zip(scan(raw), walk(raw), strict=True):
            kind = metric.WhichOneof("data")
            if kind not in ("gauge", "sum"):
                check_lists(raw, column, point, kind)

    check()


def check_lists(raw: bytes, column: np.void, point: Any, kind: str) -> None:
    reading, counts, floats, negative = buckets(raw, column, MOST)
    if kind == "summary":
        pairs = floats[: 2 * reading["counts"]].reshape(-1, 2).tolist()
        assert [tuple(map(bits, pair)) for pair in pairs] == [
            (bits(one.quantile), bits(one.value)) for one in point.quantile_values
        ]
        assert bits(reading["sum"]) == bits(point.sum)
        return
    for name in ("sum", "min", "max"):
        given_ = getattr(point, name) if point.HasField(name) else np.nan
        assert bits(reading[name]) == bits(given_) or given_ != given_
    if kind == "histogram":
        assert counts[: reading["counts"]].view(np.uint64).tolist() == list(point.bucket_counts)
        bounds = floats[: reading["bounds"]].tolist()
        assert list(map(bits, bounds)) == list(map(bits, point.explicit_bounds))
        return
    assert (reading["scale"], reading["zero_count"]) == (point.scale, point.zero_count)
    assert bits(reading["zero_threshold"]) == bits(point.zero_threshold)
    assert (reading["offset"], reading["negative_offset"]) == (point.positive.offset, point.negative.offset)
    assert counts[: reading["counts"]].view(np.uint64).tolist() == list(point.positive.bucket_counts)
    assert negative[: reading["negative_counts"]].view(np.uint64).tolist() == list(
        point.negative.bucket_counts
    )


def test_exemplars_equal_what_protobuf_reads(wire: SimpleNamespace) -> None:
    def plain(one: Any) -> tuple[Any, ...]:
        case = one.WhichOneof("value")
        trace = one.trace_id.hex() if len(one.trace_id) == 16 else "0" * 32
        span = one.span_id.hex() if len(one.span_id) == 8 else "0" * 16
        return bits(float(getattr(one, case))) if case else None, one.time_unix_nano, trace, span

    def read(one: np.void) -> tuple[Any, ...]:
        trace = f"{one['trace_high']:016x}{one['trace_low']:016x}"
        return bits(one["value"]), int(one["time_ns"]), trace, f"{one['span_id']:016x}"

    @settings(max_examples=200, deadline=None)
    @given(wire.metrics)
    def check(raw: bytes) -> None:
        out = np.zeros(16, EXEMPLAR)
        for column, (point, _, _, _) in zip(scan(raw), walk(raw), strict=True):
            if column["has_exemplars"]:
                begin = int(column["offset"])
                wanted = EXEMPLARS[PointKind(int(column["kind"]))]
                size = exemplars(view(raw), begin, begin + int(column["length"]), wanted, out)
                for one, its in zip(out[:size], point.exemplars, strict=True):
                    value, *rest = plain(its)
                    assert read(one)[1:] == tuple(rest)
                    assert np.isnan(one["value"]) if value is None else read(one)[0] == value

    check()


def test_mutated_bytes_agree_or_are_refused(wire: SimpleNamespace) -> None:
    mutations = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3)

    @settings(max_examples=500, deadline=None)
    @given(wire.metrics.filter(bool), mutations, st.integers(0, 10**6))
    def check(raw: bytes, changes: list[tuple[int, int]], cut: int) -> None:
        mutated = bytearray(raw)
        for place, byte in changes:
            mutated[place % len(raw)] = byte
        broken = bytes(mutated[: len(raw) - cut % 4])
        try:
            points = list(walk(broken))
        except DecodeError:
            with pytest.raises(ValueError):  # noqa: PT011 - the reason is the scanner's own
                scan(broken)
        else:
            columns = scan(broken)
            assert [found(broken, one) for one in columns] == [expected(*point[:2]) for point in points]
            for column, (point, metric, _, _) in zip(columns, points, strict=True):
                if column["kind"] > 2:
                    check_lists(broken, column, point, metric.WhichOneof("data"))

    check()


def test_arbitrary_bytes_are_read_or_refused() -> None:
    @settings(max_examples=500, deadline=None)
    @given(st.binary(max_size=64))
    def check(raw: bytes) -> None:
        with contextlib.suppress(ValueError):
            assert len(scan(raw)) == len(list(walk(raw)))

    check()


def test_nothing_behind_the_end_is_read(wire: SimpleNamespace) -> None:
    """A request cut anywhere reads the same whether other bytes follow it in memory or not."""

    def outcome(raw: Any) -> Any:
        try:
            return scan(raw).tolist()
        except ValueError as error:
            return str(error)

    @settings(max_examples=200, deadline=None)
    @given(wire.metrics.filter(bool), st.integers(0, 10**6))
    def check(raw: bytes, cut: int) -> None:
        end = cut % len(raw)
        assert outcome(memoryview(raw)[:end]) == outcome(bytes(raw[:end]))

    check()


def series(raw: bytes, column: np.void) -> tuple[object, ...]:
    """What tells a series from another, as it was sent."""
    point = raw[column["offset"] :][: column["length"]]
    attributes = {1: 7, 2: 7, 3: 9, 4: 1, 5: 7}[int(column["kind"])]
    return (
        *pieces(raw, int(column["resource_offset"]), int(column["resource_length"]), {1}),
        "scope",
        *pieces(raw, int(column["scope_offset"]), int(column["scope_length"]), {1, 3}),
        raw[column["name_offset"] :][: column["name_length"]],
        raw[column["unit_offset"] :][: column["unit_length"]],
        *(column[name].item() for name in ("kind", "temporality", "is_monotonic")),
        *pieces(point, 0, len(point), {attributes}),
    )


def pieces(raw: bytes, offset: int, length: int, wanted: set[int]) -> Iterator[object]:
    position, octets = offset, view(raw)
    while position < offset + length:
        tag, _, start, position = field(octets, position, offset + length, 1)
        if tag >> 3 in wanted and tag & 7 == 2:
            yield tag, raw[start:position]


def test_the_key_tells_series_apart_and_nothing_else(wire: SimpleNamespace) -> None:
    @settings(max_examples=200, deadline=None)
    @given(wire.metrics, wire.metrics)
    @example(  # an empty piece of the resource, and one of the scope
        b"\n\n\n\x00\x12\x06\x12\x04*\x02\n\x00", b"\n\n\x12\x08\n\x00\x12\x04*\x02\n\x00"
    )
    def check(one: bytes, other: bytes) -> None:
        raw = one + other  # two requests, one after the other, are one request
        columns = scan(raw)
        keys = dict(zip((series(raw, column) for column in columns), columns["key"], strict=True))
        assert all(keys[series(raw, column)] == column["key"] for column in columns)
        assert len(set(keys.values())) == len(keys)

    check()


def test_keys_depend_on_the_seed() -> None:
    raw = one_point()
    assert scan(raw)["key"] != scan(raw, np.uint64(8))["key"]


def one_point(**more: Any) -> bytes:
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="m")
    metric.gauge.data_points.add(as_int=1, time_unix_nano=1, **more)
    return request.SerializeToString()


def test_columns_move_with_their_request() -> None:
    raw = one_point()
    columns = scan(raw)
    metrics.move(columns, 5)
    assert found(b"12345" + raw, columns[0]) == found(raw, scan(raw)[0])


def test_a_list_beyond_the_room_for_it_is_an_error() -> None:
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add()
    metric.histogram.data_points.add(bucket_counts=[1] * (MOST + 1))
    metric.histogram.data_points.add(explicit_bounds=[1.0] * (MOST + 1))
    exponential = request.resource_metrics[0].scope_metrics[0].metrics.add().exponential_histogram
    exponential.data_points.add().positive.bucket_counts.extend([1] * (MOST + 1))
    exponential.data_points.add().negative.bucket_counts.extend([1] * (MOST + 1))
    summary = request.resource_metrics[0].scope_metrics[0].metrics.add().summary.data_points.add()
    for _ in range(MOST + 1):
        summary.quantile_values.add()
    raw = request.SerializeToString()
    for column in scan(raw):
        with pytest.raises(ValueError, match=f"more than {MOST} buckets"):
            buckets(raw, column, MOST)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\x0a\x05", "a field reaches beyond the end of its message"),
        (b"\x0a\x0b\x12\x09\x12\x07\x2a\x05\x0a\x03\x3a\x05\x0a", "a field reaches beyond"),
        (b"\x0a\x0a\x12\x08\x12\x06\x2a\x04\x0a\x02\x00\x00", "a tag has field number 0"),
        (b"\x0a\x07\x12\x05\x12\x03\x0a\x01\xff", "a string is not UTF-8"),
        (b"\x0b" * 101, "messages are nested more than 100 levels deep"),
    ],
)
def test_what_is_wrong_is_said(raw: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        scan(raw)
    with pytest.raises(DecodeError):
        ExportMetricsServiceRequest.FromString(raw)


def test_a_wrong_count_is_an_error_and_not_a_crash() -> None:
    for points in (0, 2):
        with pytest.raises(ValueError, match=f"has not the {points} data points"):
            metrics.scan(one_point(), points, SEED)


def test_an_empty_request_has_no_points() -> None:
    assert len(scan(b"")) == 0

"""The scanner's columns against what the protobuf library reads, over requests as anyone may write them."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tidegauge.config import IdentityAttributes
from tidegauge.identity import Identity
from tidegauge.wire import traces
from tidegauge.wire.attributes import Keys
from tidegauge.wire.counts import count_records

IDENTITY = IdentityAttributes()
KEYS = Keys.of(IDENTITY)


def scan(raw: bytes, keys: Keys = KEYS) -> Any:
    return traces.scan(raw, count_records(raw), keys).columns


Scalar = tuple[str, Any]


class Expected(NamedTuple):
    """What a plain walk over the decoded request finds in one span."""

    start_ns: int
    duration_ns: int
    name: str
    kind: int
    error: bool
    is_root: bool
    has_model: bool
    values: tuple[Scalar | None, ...]


def scalar(value: AnyValue) -> Scalar | None:
    """The value's case and content, where it can name anything."""
    case = value.WhichOneof("value")
    if case in ("bool_value", "int_value", "double_value") or value.string_value:
        return case, getattr(value, case)
    return None


def first(attributes: Any, keys: tuple[str, ...]) -> Scalar | None:
    for key in keys:
        for attribute in attributes:
            if attribute.key == key and scalar(attribute.value):
                return scalar(attribute.value)
    return None


def expected(span: Span, resource: Any, identity: IdentityAttributes) -> Expected:
    fallbacks = (("service.name",), ("service.version",), (), ())
    values = tuple(
        first(span.attributes, keys) or first(resource.attributes, keys + fallback)
        for keys, fallback in zip(
            (identity.model, identity.version, identity.stage, identity.data_source), fallbacks, strict=True
        )
    )
    return Expected(
        span.start_time_unix_nano,
        min(max(span.end_time_unix_nano - span.start_time_unix_nano, 0), 2**63 - 1),
        span.name,
        span.kind,
        span.status.code == 2,
        not span.parent_span_id.strip(b"\0"),
        first(span.attributes, identity.model) is not None,
        values,
    )


def walk(raw: bytes, identity: IdentityAttributes = IDENTITY) -> list[Expected]:
    return [
        expected(span, resource.resource, identity)
        for resource in ExportTraceServiceRequest.FromString(raw).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def read(raw: bytes, column: np.void) -> Expected:
    name = raw[column["name_offset"] :][: column["name_length"]]
    places = zip(column["value_offset"], column["value_length"], strict=True)
    values = tuple(scalar(AnyValue.FromString(raw[at:][:size])) for at, size in places)
    return Expected(
        int(column["start_ns"]),
        int(column["duration_ns"]),
        name.decode(),
        int(column["kind"]),
        bool(column["status"]),
        bool(column["is_root"]),
        bool(column["has_model"]),
        values,
    )


def test_columns_equal_what_protobuf_reads(wire: SimpleNamespace) -> None:
    @settings(max_examples=300, deadline=None)
    @given(wire.traces)
    def check(raw: bytes) -> None:
        assert [read(raw, column) for column in scan(raw)] == walk(raw)

    check()


def test_mutated_bytes_agree_or_are_refused(wire: SimpleNamespace) -> None:
    mutations = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3)

    @settings(max_examples=500, deadline=None)
    @given(wire.traces.filter(bool), mutations, st.integers(0, 10**6))
    def check(raw: bytes, changes: list[tuple[int, int]], cut: int) -> None:
        mutated = bytearray(raw)
        for place, byte in changes:
            mutated[place % len(raw)] = byte
        broken = bytes(mutated[: len(raw) - cut % 4])
        try:
            found = walk(broken)
        except DecodeError:
            # The scanner may pass over what protobuf refuses, but only by accepting or by ValueError.
            with contextlib.suppress(ValueError):
                scan(broken)
        else:
            assert [read(broken, column) for column in scan(broken)] == found

    check()


def test_nothing_behind_the_end_is_read(wire: SimpleNamespace) -> None:
    """A request cut anywhere reads the same whether other bytes follow it in memory or not."""

    def outcome(raw: Any) -> Any:
        try:
            return scan(raw)[["start_ns", "duration_ns", "key", "kind", "status"]].tolist()
        except ValueError as error:
            return str(error)

    @settings(max_examples=200, deadline=None)
    @given(wire.traces.filter(bool), st.integers(0, 10**6))
    def check(raw: bytes, cut: int) -> None:
        end = cut % len(raw)
        assert outcome(memoryview(raw)[:end]) == outcome(bytes(raw[:end]))

    check()


def test_the_key_tells_series_apart_and_nothing_else(wire: SimpleNamespace) -> None:
    def series(raw: bytes, column: np.void) -> tuple[object, ...]:
        values = zip(column["value_offset"], column["value_length"], strict=True)
        return *(raw[at:][:size] for at, size in values), traces.operation(raw, column), column["status"]

    @settings(max_examples=200, deadline=None)
    @given(wire.traces, wire.traces)
    def check(one: bytes, other: bytes) -> None:
        raw = one + other  # two requests, one after the other, are one request
        columns = scan(raw)
        keys = dict(zip((series(raw, column) for column in columns), columns["key"], strict=True))
        assert all(keys[series(raw, column)] == column["key"] for column in columns)
        assert len(set(keys.values())) == len(keys)

    check()


def one_span(span: dict[str, Any], resource: dict[str, Any]) -> bytes:
    request = ExportTraceServiceRequest()
    resources = request.resource_spans.add()
    target = resources.scope_spans.add().spans.add(name="predict")
    for attributes, values in ((target.attributes, span), (resources.resource.attributes, resource)):
        for key, value in values.items():
            kind = {str: "string", bool: "bool", int: "int", float: "double", bytes: "bytes"}[type(value)]
            setattr(attributes.add(key=key).value, f"{kind}_value", value)
    return request.SerializeToString()


@pytest.mark.parametrize(
    ("span", "resource", "identity"),
    [
        ({}, {}, Identity("")),
        ({}, {"service.name": "s", "service.version": "3"}, Identity("s", "3")),
        ({"service.name": "s"}, {}, Identity("")),
        ({}, {"service.name": "s", "model.name": "m"}, Identity("m")),
        ({"triton.model_name": "t"}, {"model.name": "m"}, Identity("t")),
        ({"triton.model_name": "t", "model.name": "m"}, {}, Identity("m")),
        ({"model.name": "", "triton.model_name": "t"}, {}, Identity("t")),
        ({"model.name": b"m"}, {"service.name": "s"}, Identity("s")),
        ({"triton.model_version": 7}, {"service.version": "3"}, Identity("", "7")),
        ({"model.version": 2.5}, {}, Identity("", "2.5")),
        ({"model.version": True}, {}, Identity("", "true")),
        ({"model.version": -1}, {}, Identity("", "-1")),
        ({"model.stage": "canary", "data_source": "eu"}, {}, Identity("", "", "canary", "eu")),
        ({"model.name": "m" * 300}, {}, Identity("m" * 256)),
    ],
)
def test_identity(span: dict[str, Any], resource: dict[str, Any], identity: Identity) -> None:
    raw = one_span(span, resource)
    (column,) = scan(raw)
    assert traces.identity(raw, column) == identity
    assert traces.operation(raw, column) == "predict"


def test_configured_keys_and_their_order_count() -> None:
    identity = IdentityAttributes(model=("b", "a"), version=("a",), stage=(), data_source=("k" * 300,))
    raw = one_span({"a": "1", "b": "2", "k" * 300: "d", "model.name": "m"}, {})
    (column,) = scan(raw, Keys.of(identity))
    assert traces.identity(raw, column) == Identity("2", "1", "", "d")
    assert walk(raw, identity) == [read(raw, column)]


def test_a_span_that_ends_before_it_starts_has_no_duration(wire: SimpleNamespace) -> None:
    for start, end, duration in [(5, 4, 0), (5, 5, 0), (4, 5, 1), (0, 2**64 - 1, 2**63 - 1)]:
        span = wire.fixed64(7, start) + wire.fixed64(8, end)
        (column,) = scan(wire.message(1, wire.message(2, wire.message(2, span))))
        assert column["duration_ns"] == duration


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\x0a\x05", "a field reaches beyond the end of its message"),
        (b"\x0a" + b"\x80" * 10 + b"\x01", "a varint has more bytes than its type allows"),
        (b"\x00\x00", "a tag has field number 0 or an unknown wire type"),
        (b"\x0c", "a group does not close where it should"),
        (b"\x0b" * 101, "messages are nested more than 100 levels deep"),
        (b"\x0a\x07\x12\x05\x12\x03\x2a\x01\xff", "a string is not UTF-8"),
    ],
)
def test_what_is_wrong_is_said(raw: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        scan(raw)
    with pytest.raises(DecodeError):
        ExportTraceServiceRequest.FromString(raw)


def test_a_wrong_count_is_an_error_and_not_a_crash() -> None:
    raw = one_span({}, {})
    for spans in (0, 2):
        with pytest.raises(ValueError, match=f"has not the {spans} spans"):
            traces.scan(raw, spans, KEYS)


def test_an_empty_request_has_no_spans() -> None:
    assert len(scan(b"")) == 0

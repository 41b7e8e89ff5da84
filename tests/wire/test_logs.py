"""The logs reader's columns against what the protobuf library reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from tidegauge.config import IdentityAttributes, Timings
from tidegauge.identity import Identity
from tidegauge.wire import logs, traces
from tidegauge.wire.attributes import Keys
from tidegauge.wire.counts import count_records

IDENTITY = IdentityAttributes()
KEYS = Keys.of(IDENTITY, Timings())
FALLBACKS = (("service.name",), ("service.version",), (), ())

Scalar = tuple[str, Any]


class Expected(NamedTuple):
    """What a plain walk over the decoded request finds in one record."""

    time_ns: int
    trace_id: bytes
    span_id: bytes
    severity_number: int
    severity: str
    is_event: bool
    values: tuple[Scalar | None, ...]


def scan(raw: bytes) -> Any:
    return logs.scan(raw, count_records(raw), KEYS)


def scalar(value: AnyValue) -> Scalar | None:
    case = value.WhichOneof("value")
    if case in ("bool_value", "int_value", "double_value") or value.string_value:
        content = getattr(value, case)
        return case, "nan" if content != content else content
    return None


def first(attributes: Any, keys: tuple[str, ...]) -> Scalar | None:
    for key in keys:
        for attribute in attributes:
            if attribute.key == key and scalar(attribute.value):
                return scalar(attribute.value)
    return None


def expected(record: Any, resource: Any) -> Expected:
    number = record.severity_number
    return Expected(
        record.time_unix_nano or record.observed_time_unix_nano,
        record.trace_id if len(record.trace_id) == 16 else bytes(16),
        record.span_id if len(record.span_id) == 8 else bytes(8),
        number,
        ("trace", "debug", "info", "warn", "error", "fatal")[(number - 1) // 4]
        if 1 <= number <= 24
        else "unspecified",
        record.event_name != "",
        tuple(
            first(record.attributes, keys) or first(resource.attributes, keys + fallback)
            for keys, fallback in zip(
                (IDENTITY.model, IDENTITY.version, IDENTITY.stage, IDENTITY.data_source),
                FALLBACKS,
                strict=True,
            )
        ),
    )


def walk(raw: bytes) -> list[Expected]:
    return [
        expected(record, resource.resource)
        for resource in ExportLogsServiceRequest.FromString(raw).resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]


def read(raw: bytes, column: np.void) -> Expected:
    places = zip(column["value_offset"], column["value_length"], strict=True)
    ids = [int(column[name]).to_bytes(8, "big") for name in ("trace_high", "trace_low", "span_id")]
    return Expected(
        int(column["time_ns"]),
        ids[0] + ids[1],
        ids[2],
        int(column["severity_number"]),
        logs.SEVERITIES[column["severity"]],
        bool(column["is_event"]),
        tuple(scalar(AnyValue.FromString(raw[at:][:size])) for at, size in places),
    )


def columns(raw: bytes) -> list[Expected]:
    return [read(raw, column) for column in scan(raw)]


def test_columns_equal_what_protobuf_reads(wire: SimpleNamespace) -> None:
    @settings(max_examples=300, deadline=None)
    @given(wire.logs)
    def check(raw: bytes) -> None:
        assert columns(raw) == walk(raw)

    check()


def test_mutated_bytes_are_read_or_refused_as_by_protobuf(wire: SimpleNamespace) -> None:
    mutations = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3)

    @settings(max_examples=500, deadline=None)
    @given(wire.logs.filter(bool), mutations, st.integers(0, 10**6))
    def check(raw: bytes, changes: list[tuple[int, int]], cut: int) -> None:
        mutated = bytearray(raw)
        for place, byte in changes:
            mutated[place % len(raw)] = byte
        broken = bytes(mutated[: len(raw) - cut % 4])
        try:
            found = walk(broken)
        except DecodeError:
            with pytest.raises(ValueError, match=r"^a "):
                scan(broken)
        else:
            assert columns(broken) == found

    check()


def test_nothing_behind_the_end_is_read(wire: SimpleNamespace) -> None:
    """A request cut anywhere reads the same whether other bytes follow it in memory or not."""

    def outcome(raw: Any) -> Any:
        try:
            return scan(raw).tolist()
        except ValueError as error:
            return str(error)

    @settings(max_examples=200, deadline=None)
    @given(wire.logs.filter(bool), st.integers(0, 10**6))
    def check(raw: bytes, cut: int) -> None:
        end = cut % len(raw)
        assert str(outcome(memoryview(raw)[:end])) == str(outcome(bytes(raw[:end])))

    check()


def test_the_key_tells_series_apart_and_nothing_else(wire: SimpleNamespace) -> None:
    def series(raw: bytes, column: np.void) -> tuple[object, ...]:
        places = zip(column["value_offset"], column["value_length"], strict=True)
        return *(raw[at:][:size] for at, size in places), column["severity"]

    @settings(max_examples=200, deadline=None)
    @given(wire.logs, wire.logs)
    def check(one: bytes, other: bytes) -> None:
        raw = one + other  # two requests, one after the other, are one request
        columns = scan(raw)
        keys = {series(raw, column): column["key"] for column in columns}
        assert all(keys[series(raw, column)] == column["key"] for column in columns)
        assert len(set(keys.values())) == len(keys)

    check()


def test_a_record_says_more_of_itself_than_its_resource() -> None:
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    for key, value in {"service.name": "server", "model.version": "1", "model.stage": "canary"}.items():
        resource.resource.attributes.add(key=key).value.string_value = value
    records = resource.scope_logs.add().log_records
    records.add(severity_number=17)  # type: ignore[arg-type]
    records[0].attributes.add(key="model.name").value.string_value = "fraud"
    records[0].attributes.add(key="model.version").value.int_value = 2
    records.add(event_name="gen_ai.choice")
    raw = request.SerializeToString()
    one, other = scan(raw)
    assert traces.identity(raw, one) == Identity("fraud", "2", "canary", "")
    assert traces.identity(raw, other) == Identity("server", "1", "canary", "")
    assert (logs.SEVERITIES[one["severity"]], logs.SEVERITIES[other["severity"]]) == ("error", "unspecified")
    assert (one["is_event"], other["is_event"]) == (False, True)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"\x1a\x01\xff", "a string is not UTF-8"),  # severity_text
        (b"\x62\x01\xff", "a string is not UTF-8"),  # event_name
        (b"\x32\x05", "a field reaches beyond the end of its message"),
        (b"\x0b", "a field reaches beyond the end of its message"),
        (b"\x0c", "a group does not close where it should"),
    ],
)
def test_what_is_wrong_is_said(wire: SimpleNamespace, record: bytes, reason: str) -> None:
    raw = wire.message(1, wire.message(2, wire.message(2, record)))
    with pytest.raises(ValueError, match=reason):
        scan(raw)
    with pytest.raises(DecodeError):
        ExportLogsServiceRequest.FromString(raw)


def test_a_wrong_count_is_an_error_and_not_a_crash(wire: SimpleNamespace) -> None:
    raw = wire.message(1, wire.message(2, wire.message(2, b"")))
    for records in (0, 2):
        with pytest.raises(ValueError, match=f"has not the {records} log records"):
            logs.scan(raw, records, KEYS)

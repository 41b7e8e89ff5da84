"""The scanner's columns against what the protobuf library reads, over requests as anyone may write them."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tidegauge.config import IdentityAttributes, Timings
from tidegauge.identity import Identity
from tidegauge.wire import traces
from tidegauge.wire.attributes import Keys
from tidegauge.wire.counts import count_records
from tidegauge.wire.traces import SCOPES_KNOWN, Mark

IDENTITY = IdentityAttributes()
TIMINGS = Timings()
KEYS = Keys.of(IDENTITY, TIMINGS)


def scan(raw: bytes, keys: Keys = KEYS) -> Any:
    return traces.scan(raw, count_records(raw), keys).columns


Scalar = tuple[str, Any]
Marks = dict[Mark, tuple[float, int]]


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
    trace_id: int
    span_id: int
    parent_id: int
    scope: str
    marks: Marks


def scalar(value: AnyValue) -> Scalar | None:
    """The value's case and content, where it can name anything; NaN as text, to equal itself."""
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


SECONDS = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:([eE][+-]?[0-9]+)|(s|ms|us|µs|ns))?")
UNITS = {"s": 0, "ms": -3, "us": -6, "µs": -6, "ns": -9}


def number(value: AnyValue) -> float | None:
    """The value of a mark, as Python's exact arithmetic has it."""
    found = scalar(value)
    if found is None:
        return None
    if found[0] == "string_value":
        match = SECONDS.fullmatch(found[1])
        if match is None:
            return None
        if match[3]:
            value = float(Fraction(match[1]) * Fraction(10) ** UNITS[match[3]])
        else:
            value = float(match[1] + (match[2] or ""))
        return value if math.isfinite(value) else None
    return float(found[1]) if math.isfinite(float(found[1])) else None


def marks(span: Span, timings: Timings) -> Marks:
    found: Marks = {}
    for place, keys in enumerate(msgspec.structs.astuple(timings)):
        values = [
            number(attribute.value)
            for key in keys
            for attribute in span.attributes
            if attribute.key == key and number(attribute.value) is not None
        ]
        if values:
            found[Mark(place)] = values[0], 0
    for event in span.events:
        if event.name in Mark.__members__ and event.name.isupper() and event.time_unix_nano:
            mark = Mark[event.name]
            if mark >= Mark.QUEUE_START:
                found.setdefault(mark, (0.0, event.time_unix_nano))
    return found


def identifier(raw: bytes, length: int) -> int:
    return int.from_bytes(raw, "big") if len(raw) == length else 0


def expected(
    span: Span, resource: Any, scope: str, identity: IdentityAttributes, timings: Timings
) -> Expected:
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
        identifier(span.trace_id, 16),
        identifier(span.span_id, 8),
        identifier(span.parent_span_id, 8),
        scope if scope in SCOPES_KNOWN else "",
        marks(span, timings),
    )


def walk(raw: bytes, identity: IdentityAttributes = IDENTITY, timings: Timings = TIMINGS) -> list[Expected]:
    return [
        expected(span, resource.resource, scope.scope.name, identity, timings)
        for resource in ExportTraceServiceRequest.FromString(raw).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def read(raw: bytes, column: np.void, marks: Marks) -> Expected:
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
        int(column["trace_high"]) << 64 | int(column["trace_low"]),
        int(column["span_id"]),
        int(column["parent_id"]),
        SCOPES_KNOWN[column["scope"]],
        marks,
    )


def columns(raw: bytes, keys: Keys = KEYS) -> list[Expected]:
    """All that the scanner reads, in the oracle's terms."""
    scanned = traces.scan(raw, count_records(raw), keys)
    assert (np.diff(scanned.marks["span"].astype(np.int64)) >= 0).all()
    found: list[Marks] = [{} for _ in scanned.columns]
    for mark in scanned.marks:
        assert Mark(mark["mark"]) not in found[mark["span"]]
        value = pytest.approx(float(mark["value"]), rel=1e-15, abs=1e-300)
        found[mark["span"]][Mark(mark["mark"])] = value, int(mark["time_ns"])
    return [read(raw, column, its) for column, its in zip(scanned.columns, found, strict=True)]


def test_columns_equal_what_protobuf_reads(wire: SimpleNamespace) -> None:
    @settings(max_examples=300, deadline=None)
    @given(wire.traces)
    def check(raw: bytes) -> None:
        assert columns(raw) == walk(raw)

    check()


def test_mutated_bytes_are_read_alike_or_refused_by_both(wire: SimpleNamespace) -> None:
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
            with pytest.raises(ValueError):  # noqa: PT011
                scan(broken)
        else:
            assert columns(broken) == found

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
        spans = scan(raw)
        keys = dict(zip((series(raw, span) for span in spans), spans["key"], strict=True))
        assert all(keys[series(raw, span)] == span["key"] for span in spans)
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
        ({}, {}, Identity("unknown")),
        ({}, {"service.name": "s", "service.version": "3"}, Identity("s", "3")),
        ({"service.name": "s"}, {}, Identity("unknown")),
        ({}, {"service.name": "s", "model.name": "m"}, Identity("m")),
        ({"triton.model_name": "t"}, {"model.name": "m"}, Identity("t")),
        ({"triton.model_name": "t", "model.name": "m"}, {}, Identity("m")),
        ({"model.name": "", "triton.model_name": "t"}, {}, Identity("t")),
        ({"model.name": b"m"}, {"service.name": "s"}, Identity("s")),
        ({"triton.model_version": 7}, {"service.version": "3"}, Identity("unknown", "7")),
        ({"model.version": 2.5}, {}, Identity("unknown", "2.5")),
        ({"model.version": True}, {}, Identity("unknown", "true")),
        ({"model.version": -1}, {}, Identity("unknown", "-1")),
        ({"model.stage": "canary", "data_source": "eu"}, {}, Identity("unknown", "", "canary", "eu")),
        ({"model.name": "m" * 300}, {}, Identity("m" * 256)),
        ({"model.name": "m" * 100}, {"model.version": "7" * 70}, Identity("m" * 100, "7" * 70)),
        ({"model.name": "\N{GRINNING FACE}" * 10_000}, {}, Identity("\N{GRINNING FACE}" * 256)),
        ({"model.name": "xy" + "\N{EURO SIGN}" * 1000}, {}, Identity("xy" + "\N{EURO SIGN}" * 254)),
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
    keys = Keys.of(identity, TIMINGS)
    (column,) = scan(raw, keys)
    assert traces.identity(raw, column) == Identity("2", "1", "", "d")
    assert walk(raw, identity) == columns(raw, keys)


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


def test_each_timing_is_a_mark_in_their_order() -> None:
    names = [name.upper() for name in Timings.__struct_fields__]
    assert names == [mark.name for mark in Mark if mark < Mark.QUEUE_START]
    assert list(range(len(names))) == list(Mark)[: len(names)]


def marked(**attributes: Any) -> dict[Mark, float]:
    raw = one_span({key.replace("__", "."): value for key, value in attributes.items()}, {})
    (span,) = columns(raw)
    assert span == walk(raw)[0]
    return {mark: value for mark, (value, _) in span.marks.items()}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12.5", 12.5),
        ("-0.25", -0.25),
        ("2.5e-3", 0.0025),
        ("12.3ms", 0.0123),
        ("850µs", 0.00085),
        ("850us", 0.00085),
        ("870ns", 8.7e-7),
        ("1.5s", 1.5),
        ("0ns", 0.0),
        ("18446744073709551615.999999999s", 18446744073709551616.0),
        ("9" * 400 + "e-400", 1.0),
        ("0." + "0" * 400 + "1e401", 1.0),
        ("1e-320", 1e-320),
    ],
)
def test_text_that_is_a_number_or_a_duration_is_a_mark(text: str, seconds: float) -> None:
    assert marked(queue_time=text) == {Mark.QUEUE: pytest.approx(seconds, rel=1e-15, abs=1e-300)}


@pytest.mark.parametrize(
    "text",
    ["", "s", ".", "ms", "1 s", "1m30s", "1e", "1e5s", "1ss", "1µ", "1..2", "--1", "inf", "nan", "1e999"],
)
def test_any_other_text_is_no_mark(text: str) -> None:
    assert marked(queue_time=text) == {}


@given(st.one_of(st.from_regex(SECONDS, fullmatch=True), st.text("0123456789.eE+-mnuµs ", max_size=8)))
def test_decimals_equal_pythons(text: str) -> None:
    value = AnyValue(string_value=text)
    assert columns(one_span({"queue_time": text}, {})) == walk(one_span({"queue_time": text}, {})), value


def test_what_a_server_calls_its_timings_becomes_marks() -> None:
    vllm = {"gen_ai__latency__time_to_first_token": 0.25, "gen_ai__usage__prompt_tokens": 7}
    assert marked(**vllm) == {Mark.TIME_TO_FIRST_TOKEN: 0.25, Mark.INPUT_TOKENS: 7.0}
    tgi = {"total_time": "1.5s", "time_per_token": "12.3ms", "validation_time": "850µs"}
    assert marked(**tgi) == {Mark.TOTAL: 1.5, Mark.TIME_PER_OUTPUT_TOKEN: 0.0123, Mark.VALIDATION: 0.00085}
    assert marked(faas__coldstart=True) == {Mark.COLD_START: 1.0}


def test_of_two_keys_for_a_mark_the_first_configured_counts_unless_it_is_no_number() -> None:
    both = {"gen_ai__usage__prompt_tokens": 5, "gen_ai__usage__input_tokens": 6}
    assert marked(**both) == {Mark.INPUT_TOKENS: 6.0}
    assert marked(**both | {"gen_ai__usage__input_tokens": "many"}) == {Mark.INPUT_TOKENS: 5.0}


def test_a_resource_sets_no_marks() -> None:
    raw = one_span({}, {"queue_time": 1.0})
    assert columns(raw)[0].marks == {} == walk(raw)[0].marks


def test_tritons_events_are_marks_at_their_time_the_first_of_each_name() -> None:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    scope.spans.add()
    span = scope.spans.add()
    for time_ns, name in [(0, "COMPUTE_END"), (5, "QUEUE_START"), (7, "COMPUTE_END"), (9, "COMPUTE_END")]:
        span.events.add(time_unix_nano=time_ns, name=name)
    raw = request.SerializeToString()
    assert [one.marks for one in columns(raw)] == [
        {},
        {Mark.QUEUE_START: (0.0, 5), Mark.COMPUTE_END: (0.0, 7)},
    ]


@pytest.mark.parametrize(
    ("names", "scope"),
    [
        ([], 0),
        (["triton-server"], 1),
        (["triton-server", "other"], 0),
        (["other", "triton-server"], 1),
        (["triton-server", None], 1),
    ],
)
def test_a_scope_behind_its_spans_and_in_pieces_counts(
    names: list[str | None], scope: int, wire: SimpleNamespace
) -> None:
    pieces = [wire.message(1, b"" if name is None else wire.message(1, name.encode())) for name in names]
    scope_spans = wire.message(2, b"") + b"".join(pieces) + wire.message(2, b"")
    raw = wire.message(1, wire.message(2, scope_spans))
    assert scan(raw)["scope"].tolist() == [scope, scope]


def test_marks_denser_than_there_is_room_for_at_first_are_all_read() -> None:
    timings = Timings(**{name: (chr(97 + place),) for place, name in enumerate(Timings.__struct_fields__)})
    keys = Keys.of(IDENTITY, timings)
    raw = one_span({chr(97 + place): place for place in range(11)}, {}) * 50
    scanned = traces.scan(raw, 50, keys)
    assert len(scanned.marks) == 550 > len(raw) // 32
    assert scanned.marks.nbytes <= 3 * len(raw)
    assert columns(raw, keys) == walk(raw, IDENTITY, timings)

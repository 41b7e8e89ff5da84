"""Wire-level strategies: messages as any sender might write them, not only as a library does."""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hypothesis import strategies as st

Bytes = st.SearchStrategy[bytes]


def varint(value: int, padding: int = 0) -> bytes:
    """A varint, with `padding` bytes more than it needs."""
    out = bytearray()
    value &= 2**64 - 1
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    if padding:
        return bytes([*out, value | 0x80, *[0x80] * (padding - 1), 0])
    return bytes([*out, value])


def number(field: int, value: int, padding: int = 0) -> bytes:
    return varint(field << 3) + varint(value, padding)


def fixed64(field: int, value: int) -> bytes:
    return varint(field << 3 | 1) + struct.pack("<Q", value)


def double(field: int, value: float) -> bytes:
    return varint(field << 3 | 1) + struct.pack("<d", value)


def bits_of(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


def message(field: int, payload: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(payload)) + payload


def group(field: int, payload: bytes) -> bytes:
    return varint(field << 3 | 3) + payload + varint(field << 3 | 4)


unknown: Bytes = st.recursive(
    st.one_of(
        st.builds(number, st.integers(50, 2**29 - 1), st.integers(0, 2**64 - 1)),
        st.builds(number, st.just(50), st.integers(0, 2**32), st.integers(1, 5)),
        st.builds(fixed64, st.integers(50, 60), st.integers(0, 2**64 - 1)),
        st.builds(message, st.integers(50, 60), st.binary(max_size=4)),
        # A known number with another wire type is an unknown field too.
        st.builds(number, st.sampled_from([1, 2, 4, 5, 9, 15]), st.integers(0, 300)),
        st.just(b"\x35" + bytes(4)),
    ),
    lambda inner: st.builds(group, st.integers(1, 60), st.lists(inner, max_size=2).map(b"".join)),
    max_leaves=3,
)


def fields(*choices: Bytes, least: int = 0, most: int = 6) -> Bytes:
    """A message body: any of the fields, in any order and number, unknown ones among them."""
    pieces = st.lists(st.one_of(*choices, unknown), min_size=least, max_size=most)

    @st.composite  # which keeps hypothesis from spelling out the whole grammar as the strategy's name
    def body(draw: st.DrawFn) -> bytes:
        return b"".join(draw(pieces))

    return body()


def sub(field: int, payload: Bytes) -> Bytes:
    return payload.map(lambda raw: message(field, raw))


def text(field: int, strategy: st.SearchStrategy[str] | None = None) -> Bytes:
    return (st.text(max_size=12) if strategy is None else strategy).map(
        lambda value: message(field, value.encode())
    )


TEXTS = ["", "fraud", "2.1", "ü", "12.3ms", "850µs", "870ns", "1.5s", "7us", "-1e3", "1e999", "3 s", "."]
TEXTS += ["a text of twenty bytes", "x" * 200, "µ" * 70]

any_value = fields(
    text(1, st.sampled_from(TEXTS)),
    st.builds(number, st.just(2), st.integers(0, 2)),
    st.builds(number, st.just(3), st.integers(-3, 3)),
    st.builds(double, st.just(4), st.floats()),
    sub(5, st.just(b"")),
    sub(6, st.just(b"")),
    sub(7, st.binary(max_size=3)),
    st.builds(number, st.just(8), st.integers(0, 2)),
    least=1,
    most=2,
)

KEYS = [
    "model.name",
    "gen_ai.response.model",
    "gen_ai.request.model",
    "triton.model_name",
    "model.version",
    "triton.model_version",
    "deployment.environment.name",
    "model.stage",
    "data_source",
    "service.name",
    "service.version",
    "model.nam",
    "http.route",
    "",
    "gen_ai.latency.time_to_first_token",
    "gen_ai.response.time_to_first_chunk",
    "time_per_token",
    "queue_time",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.prompt_tokens",
    "faas.coldstart",
]

EVENTS = [
    "QUEUE_START",
    "COMPUTE_START",
    "COMPUTE_INPUT_END",
    "COMPUTE_OUTPUT_START",
    "COMPUTE_END",
    "REQUEST_STAR",
    "exception",
]

key = text(1, st.sampled_from(KEYS))
key_value = st.one_of(
    st.tuples(key, sub(2, text(1, st.sampled_from(["fraud", "churn"])))).map(b"".join),
    fields(key, sub(2, any_value), least=2, most=4),
)

status = fields(text(2), st.builds(number, st.just(3), st.sampled_from([0, 1, 2, 3, 2**32 + 2])), most=2)

event = fields(
    st.builds(fixed64, st.just(1), st.integers(0, 2**64 - 1)),
    text(2, st.sampled_from(EVENTS)),
    text(2, st.sampled_from(EVENTS)),
    sub(3, key_value),
    st.builds(number, st.just(4), st.integers(0, 3)),
    least=1,
    most=4,
)
link = fields(sub(1, st.binary(max_size=16)), text(3), sub(4, key_value), most=3)


def an_id(length: int) -> Bytes:
    """Mostly of the right length; all zero too, which stands for none."""
    right = st.one_of(st.binary(min_size=length, max_size=length), st.just(bytes(length)))
    return st.one_of(right, st.binary(max_size=length + 2))


span = fields(
    sub(1, an_id(16)),
    sub(2, an_id(8)),
    sub(4, an_id(8)),
    text(5),
    st.builds(number, st.just(6), st.sampled_from([0, 1, 2, 3, 4, 5, 2**32 + 2, 2**64 - 1])),
    st.builds(fixed64, st.just(7), st.integers(0, 2**64 - 1)),
    st.builds(fixed64, st.just(8), st.integers(0, 2**64 - 1)),
    sub(9, key_value),
    sub(9, key_value),
    sub(11, event),
    sub(13, link),
    sub(15, status),
    least=3,
    most=12,
)

scope = fields(text(1, st.sampled_from(["", "triton-server", "triton-serveR", "other"])), text(2), most=3)
scope_spans = fields(sub(1, scope), sub(2, span), sub(2, span), text(3), least=1, most=4)
resource = fields(
    sub(1, key_value), sub(1, key_value), st.builds(number, st.just(2), st.integers(0, 9)), most=4
)
resource_spans = fields(sub(1, resource), sub(2, scope_spans), sub(2, scope_spans), text(3), least=1, most=4)

# Bits of a fixed64, among them those of a double, NaN and infinity.
bits = st.one_of(st.integers(0, 9), st.integers(0, 2**64 - 1), st.floats().map(bits_of))
instant = st.integers(0, 3)
flags = st.sampled_from([0, 1, 2**32 + 1])
packed = st.lists(bits, max_size=4).map(lambda values: struct.pack(f"<{len(values)}Q", *values))
varints = st.lists(st.integers(0, 2**64 - 1), max_size=4).map(lambda values: b"".join(map(varint, values)))
exemplar = fields(
    st.builds(fixed64, st.sampled_from([2, 3, 6]), bits),
    sub(4, st.just(b"12345678")),
    sub(5, st.binary(max_size=16)),
)
attribute = st.tuples(key, sub(2, text(1, st.sampled_from(["fraud", "churn"])))).map(b"".join)

number_point = fields(
    st.builds(fixed64, st.sampled_from([2, 3]), instant),
    st.builds(fixed64, st.sampled_from([4, 6]), bits),
    sub(5, exemplar),
    sub(7, attribute),
    st.builds(number, st.just(8), flags),
)
histogram_point = fields(
    st.builds(fixed64, st.sampled_from([2, 3]), instant),
    st.builds(fixed64, st.sampled_from([4, 5, 6, 7, 11, 12]), bits),
    sub(6, packed),
    sub(7, packed),
    sub(8, exemplar),
    sub(9, attribute),
    st.builds(number, st.just(10), flags),
    most=8,
)
scale = st.one_of(st.integers(0, 9), st.integers(0, 2**64 - 1))
buckets = fields(
    st.builds(number, st.just(1), scale), sub(2, varints), st.builds(number, st.just(2), scale), most=4
)
exponential_point = fields(
    sub(1, attribute),
    st.builds(fixed64, st.sampled_from([2, 3]), instant),
    st.builds(fixed64, st.sampled_from([4, 5, 7, 12, 13, 14]), bits),
    st.builds(number, st.just(6), scale),
    sub(8, buckets),
    sub(9, buckets),
    st.builds(number, st.just(10), flags),
    sub(11, exemplar),
    most=8,
)
summary_point = fields(
    st.builds(fixed64, st.sampled_from([2, 3]), instant),
    st.builds(fixed64, st.sampled_from([4, 5]), bits),
    sub(6, fields(st.builds(fixed64, st.sampled_from([1, 2]), bits), most=3)),
    sub(7, attribute),
    st.builds(number, st.just(8), flags),
)


def points_of(point: Bytes) -> Bytes:
    return fields(
        sub(1, point),
        sub(1, point),
        st.builds(number, st.just(2), st.sampled_from([0, 1, 2, 3, 2**32 + 2, 2**64 - 1])),
        st.builds(number, st.just(3), st.integers(0, 2)),
        most=4,
    )


metric = fields(
    text(1),
    text(2),
    text(3),
    sub(5, points_of(number_point)),
    sub(7, points_of(number_point)),
    sub(9, points_of(histogram_point)),
    sub(10, points_of(exponential_point)),
    sub(11, points_of(summary_point)),
    most=5,
)
scope = fields(text(1), text(2), sub(3, attribute), most=3)
scope_metrics = fields(sub(1, scope), sub(2, metric), sub(2, metric), text(3), most=4)
resource_metrics = fields(sub(1, resource), sub(2, scope_metrics), most=3)

log_record = fields(
    st.builds(fixed64, st.just(1), st.sampled_from([0, 1, 2**64 - 1])),
    st.builds(number, st.just(2), st.sampled_from([*range(-1, 26), 2**32 + 9])),
    text(3),
    sub(5, any_value),
    sub(6, key_value),
    sub(6, key_value),
    sub(9, st.sampled_from([b"", bytes(16), b"0123456789abcdef", b"short"])),
    sub(10, st.sampled_from([b"", b"12345678", b"123456789"])),
    st.builds(fixed64, st.just(11), st.sampled_from([0, 3, 2**63])),
    text(12),
    most=10,
)
scope_logs = fields(sub(1, st.just(b"")), sub(2, log_record), sub(2, log_record), text(3), most=3)
resource_logs = fields(sub(1, resource), sub(2, scope_logs), sub(2, scope_logs), most=4)


@pytest.fixture(scope="session")
def wire() -> SimpleNamespace:
    """Writers of single fields, and strategies of whole requests of each signal."""
    writers: dict[str, Callable[..., bytes]] = {
        "number": number,
        "fixed64": fixed64,
        "message": message,
        "group": group,
    }
    return SimpleNamespace(
        **writers,
        traces=fields(sub(1, resource_spans), sub(1, resource_spans), most=3),
        metrics=fields(sub(1, resource_metrics), most=3),
        logs=fields(sub(1, resource_logs), most=3),
    )

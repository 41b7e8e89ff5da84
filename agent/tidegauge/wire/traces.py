"""Reads an OTLP trace request into columns, one element per span, without decoding it into objects.

Where the scanner accepts a request, its columns hold what the protobuf library would read: fields in
any order, submessages in pieces, unknown fields and groups skipped. It walks requests, resources,
scopes, spans, statuses, and of attributes the key and, for the configured keys, the value. It passes
over the rest by its length, so an error inside of an event, a link or another attribute's value goes
unnoticed here; the bytes that are forwarded are the sender's either way.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba import njit, types
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from tidegauge.identity import Identity
from tidegauge.wire.attributes import ABSENT, ATTRIBUTES_T, FOUND, FOUND_T, LENGTHS_T, Keys, digest, mix, read
from tidegauge.wire.counts import LEAVES, RESOURCES, SCOPES
from tidegauge.wire.protobuf import BYTES, KERNEL, NOT_UTF8, check, field, is_utf8, view, word

SPAN = np.dtype(
    [
        ("start_ns", np.uint64),  # Unix time; 0 where it is not set
        ("duration_ns", np.int64),  # 0 where the end is before the start
        ("key", np.uint64),  # hash of name, status and the four identity values
        ("name_offset", np.uint32),
        ("name_length", np.uint32),
        ("value_offset", np.uint32, (4,)),  # of model, version, stage and data source,
        ("value_length", np.uint32, (4,)),  # one field of an AnyValue each; length 0 where absent
        ("trace_high", np.uint64),  # the trace id's two halves and the two span ids, as big-endian
        ("trace_low", np.uint64),  # numbers; 0 where an id is absent or of a wrong length
        ("span_id", np.uint64),
        ("parent_id", np.uint64),
        ("kind", np.int32),  # Span.SpanKind
        ("status", np.uint8),  # 1: error. 0: ok, as which unset counts
        ("is_root", np.bool_),
        ("has_model", np.bool_),  # the span itself names the model, not only its resource
        ("scope", np.uint8),  # its instrumentation scope's place in SCOPES_KNOWN; 0 for any other
    ],
    align=True,
)
"""One span. Offsets are bytes from the start of the request."""

SCOPES_KNOWN = ("", "triton-server")
"""Scopes whose spans are told apart from others'."""


class Mark(enum.IntEnum):
    """What a span tells besides its own duration: attributes with a value, and events at a time."""

    TIME_TO_FIRST_TOKEN = 0  # this and all down to TOTAL in seconds
    TIME_PER_OUTPUT_TOKEN = 1
    QUEUE = 2
    PREFILL = 3
    DECODE = 4
    INFERENCE = 5
    VALIDATION = 6
    TOTAL = 7
    INPUT_TOKENS = 8
    OUTPUT_TOKENS = 9
    COLD_START = 10  # 1 where true
    QUEUE_START = 16  # Triton's events
    COMPUTE_START = 17
    COMPUTE_INPUT_END = 18
    COMPUTE_OUTPUT_START = 19
    COMPUTE_END = 20


MARK = np.dtype(
    [
        ("span", np.uint32),  # its place among the request's spans; marks come in the order of spans
        ("mark", np.uint32),
        ("value", np.float64),  # of an attribute; 0 for an event
        ("time_ns", np.uint64),  # of an event; 0 for an attribute
    ],
    align=True,
)
"""A mark on a span. Most spans have none, so they stand in a table of their own."""

_RESOURCE, _RESOURCE_ATTRIBUTES = 0x0A, 0x0A
_PARENT, _NAME, _KIND, _START, _END, _ATTRIBUTES, _STATUS = 0x22, 0x2A, 0x30, 0x39, 0x41, 0x4A, 0x7A
_STATUS_CODE, _STATUS_ERROR = 0x18, 2
_LONGEST_NS = 2**63 - 1
_MAX_TEXT = 256  # characters of a label; names are the sender's

_SPAN_T = numba.from_dtype(SPAN)


class Scanned(NamedTuple):
    """The spans of a request and the marks on them: arrays of SPAN and of MARK."""

    columns: npt.NDArray[np.void]
    marks: npt.NDArray[np.void]


def scan(raw: bytes, spans: int, keys: Keys) -> Scanned:
    """Read the `spans` spans of a request, as counted by `count_records`, into columns.

    Raises:
        ValueError: where the request is not well-formed, with the reason.
    """
    columns = np.zeros(spans, SPAN)
    own, inherited = np.zeros(4, FOUND), np.zeros(4, FOUND)
    if check(_request(view(raw), *keys, own, inherited, columns)) != spans:
        raise ValueError(f"the request has not the {spans} spans that were counted")
    return Scanned(columns, np.empty(0, MARK))


def operation(raw: bytes, span: np.void) -> str:
    """The span's name, cut at 256 characters."""
    start = int(span["name_offset"])
    return raw[start : start + int(span["name_length"])].decode()[:_MAX_TEXT]


def identity(raw: bytes, span: np.void) -> Identity:
    """Whose span it is: numbers and booleans as text, what is absent as "", each cut at 256 characters."""
    places = zip(span["value_offset"].tolist(), span["value_length"].tolist(), strict=True)
    return Identity(*(_shown(raw[start : start + length]) for start, length in places))


def _shown(value: bytes) -> str:
    decoded = AnyValue.FromString(value)
    case = decoded.WhichOneof("value")
    text = "" if case is None else str(getattr(decoded, case))
    return text.lower() if case == "bool_value" else text[:_MAX_TEXT]


@njit(types.boolean(BYTES, types.int64, types.int64), **KERNEL)
def _is_zero(buf, pos, end):  # type: ignore[no-untyped-def]
    # Some senders write a root's absent parent as eight zero bytes, which is not a valid id.
    while pos < end and buf[pos] == 0:
        pos += 1
    return pos == end


@njit(types.int64(BYTES, types.int64, types.int64, types.int64), **KERNEL)
def _status(buf, pos, end, status):  # type: ignore[no-untyped-def]
    """Merge a piece of a Status: 1 for an error, 0 for none, `status` where it sets no code."""
    while pos < end:
        tag, value, _, pos = field(buf, pos, end, 4)
        if pos < 0:
            return pos
        if tag == _STATUS_CODE:
            status = 1 if np.int32(value) == _STATUS_ERROR else 0
    return status


@njit(types.void(BYTES, types.uint64, FOUND_T), **KERNEL)
def _hash(buf, seed, found):  # type: ignore[no-untyped-def]
    for slot in found:
        slot.hash = digest(buf, np.int64(slot.offset), np.int64(slot.offset) + np.int64(slot.length), seed)


@njit(types.void(FOUND_T), **KERNEL)
def _clear(found):  # type: ignore[no-untyped-def]
    for slot in found:
        slot.rank = ABSENT
        slot.offset = 0
        slot.length = 0


@njit(types.void(BYTES, types.uint64, FOUND_T, FOUND_T, _SPAN_T), **KERNEL)
def _identify(buf, seed, own, inherited, span):  # type: ignore[no-untyped-def]
    """Resolve the four values, the span's own before its resource's, and the series key."""
    name = np.int64(span.name_offset)
    key = mix(digest(buf, name, name + np.int64(span.name_length), seed) ^ np.uint64(span.status))
    for slot in range(4):
        found = inherited[slot]
        if own[slot].rank != ABSENT:
            found = own[slot]
            found.hash = digest(
                buf, np.int64(found.offset), np.int64(found.offset) + np.int64(found.length), seed
            )
        span.value_offset[slot] = found.offset
        span.value_length[slot] = found.length
        key = mix(key ^ found.hash)
    span.key = key
    span.has_model = own[0].rank != ABSENT


@njit(
    types.int64(BYTES, types.int64, types.int64, BYTES, ATTRIBUTES_T, LENGTHS_T, FOUND_T, _SPAN_T),
    **KERNEL,
)
def _span(buf, pos, end, text, attributes, by_length, own, span):  # type: ignore[no-untyped-def]
    """Read one Span, but for what `_identify` adds. Negative: an error."""
    start_ns = end_ns = np.uint64(0)
    status = 0
    span.name_offset = span.name_length = 0
    span.kind = 0
    span.is_root = True
    _clear(own)
    while pos < end:
        tag, value, start, pos = field(buf, pos, end, 3)
        if pos < 0:
            return pos
        if tag == _ATTRIBUTES:
            error = read(buf, start, pos, 4, text, attributes, by_length, False, own)
            if error < 0:
                return error
        elif tag == _START:
            start_ns = word(buf, start)
        elif tag == _END:
            end_ns = word(buf, start)
        elif tag == _NAME:
            if not is_utf8(buf, start, pos):
                return NOT_UTF8
            span.name_offset = start
            span.name_length = pos - start
        elif tag == _KIND:
            span.kind = np.int32(value)
        elif tag == _PARENT:
            span.is_root = _is_zero(buf, start, pos)
        elif tag == _STATUS:
            status = _status(buf, start, pos, status)
            if status < 0:
                return status
    span.start_ns = start_ns
    length_ns = end_ns - start_ns if end_ns > start_ns else np.uint64(0)
    span.duration_ns = np.int64(min(length_ns, np.uint64(_LONGEST_NS)))
    span.status = status
    return 0


@njit(
    types.int64(BYTES, types.int64, types.int64, BYTES, ATTRIBUTES_T, LENGTHS_T, FOUND_T),
    **KERNEL,
)
def _resource(buf, pos, end, text, attributes, by_length, inherited):  # type: ignore[no-untyped-def]
    """Find the identity in the Resource of a ResourceSpans, wherever in it and in however many pieces."""
    _clear(inherited)
    while pos < end:
        tag, _, inner, pos = field(buf, pos, end, 1)
        if pos < 0:
            return pos
        while tag == _RESOURCE and inner < pos:
            part, _, start, inner = field(buf, inner, pos, 2)
            if inner < 0:
                return inner
            if part == _RESOURCE_ATTRIBUTES:
                error = read(buf, start, inner, 3, text, attributes, by_length, True, inherited)
                if error < 0:
                    return error
    return 0


@njit(
    types.int64(
        BYTES,
        BYTES,
        ATTRIBUTES_T,
        LENGTHS_T,
        types.uint64,
        FOUND_T,
        FOUND_T,
        _SPAN_T[::1],
    ),
    **KERNEL,
)
def _request(buf, text, attributes, by_length, seed, own, inherited, columns):  # type: ignore[no-untyped-def]
    """Fill `columns`, one element per span, and return how many there are. Negative: an error."""
    count, pos, end = 0, 0, np.int64(buf.size)
    while pos < end:
        resources, _, inner, pos = field(buf, pos, end, 0)
        if pos < 0:
            return pos
        if resources != RESOURCES:
            continue
        error = _resource(buf, inner, pos, text, attributes, by_length, inherited)
        if error < 0:
            return error
        _hash(buf, seed, inherited)
        while inner < pos:
            scopes, _, leaf, inner = field(buf, inner, pos, 1)
            # What is not well-formed at this level, _resource has refused.
            while scopes == SCOPES and leaf < inner:
                tag, _, start, leaf = field(buf, leaf, inner, 2)
                if leaf < 0:
                    return leaf
                if tag != LEAVES:
                    continue
                if count == columns.size:
                    return count + 1
                span = columns[count]
                error = _span(buf, start, leaf, text, attributes, by_length, own, span)
                if error < 0:
                    return error
                _identify(buf, seed, own, inherited, span)
                count += 1
    return count

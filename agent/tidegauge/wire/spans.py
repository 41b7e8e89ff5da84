"""Reads one OTLP span into its row: times, ids, status, and the attributes and events that count."""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from tidegauge.stats.kernel import INLINE, KERNEL, kernel
from tidegauge.wire.attributes import (
    ATTRIBUTES_T,
    FOUND_T,
    IDENTITY_SLOTS,
    LENGTHS_T,
    MARK_SLOTS,
    digest,
    is_plain,
    read,
)
from tidegauge.wire.marks import event
from tidegauge.wire.protobuf import BYTES, field, word
from tidegauge.wire.schema import SCHEMA_T, content_of, validate
from tidegauge.wire.words import fold, swap

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
        ("scope", np.uint8),  # its instrumentation scope's place in traces.SCOPES_KNOWN; 0 for any other
    ],
    align=True,
)
"""One span. Offsets are bytes from the start of the request."""

_TRACE, _ID, _PARENT, _NAME, _KIND, _START, _END = 0x0A, 0x12, 0x22, 0x2A, 0x30, 0x39, 0x41
_ATTRIBUTES, _EVENTS, _STATUS = 0x4A, 0x5A, 0x7A
_STATUS_CODE, _STATUS_ERROR = 0x18, 2
_LONGEST_NS = 2**63 - 1

SPAN_T = numba.from_dtype(SPAN)


@kernel(types.boolean(BYTES, types.int64, types.int64), **KERNEL)
def _is_zero(buf, pos, end):  # type: ignore[no-untyped-def]
    # Some senders write a root's absent parent as eight zero bytes, which is not a valid id.
    while pos < end and buf[pos] == 0:
        pos += 1
    return pos == end


@kernel(types.int64(BYTES, types.int64, types.int64, types.int64), **KERNEL)
def _status(buf, pos, end, status):  # type: ignore[no-untyped-def]
    """Merge a piece of a valid Status: 1 for an error, 0 for none, `status` where it sets no code."""
    while 0 <= pos < end:
        tag, value, _, pos = field(buf, pos, end, 4)
        if tag == _STATUS_CODE:
            status = 1 if np.int32(value) == _STATUS_ERROR else 0
    return status


@kernel(types.int64(BYTES, types.int64, types.int64, types.int64, FOUND_T), **KERNEL)
def _event(buf, pos, end, seen, own):  # type: ignore[no-untyped-def]
    """Note an event that is a mark, the first of its name, and return the slots seen. Negative: an error."""
    mark, time_ns = event(buf, pos, end, 4)
    if mark <= 0:
        return mark if mark < 0 else seen
    slot = MARK_SLOTS + mark
    if seen >> slot & 1 == 0:
        own[slot].value = 0.0
        own[slot].time_ns = time_ns
    return seen | 1 << slot


@kernel(types.void(BYTES, types.int64, types.uint64, types.int64, types.int64, SPAN_T), **INLINE)
def _ids(buf, tag, value, pos, end, span):  # type: ignore[no-untyped-def]
    """Set the span's kind or one of its three ids, where the field is one of them."""
    if tag == _KIND:
        span.kind = np.int32(value)
    elif tag == _TRACE:
        is_id = end - pos == 16
        span.trace_high = swap(word(buf, pos)) if is_id else np.uint64(0)
        span.trace_low = swap(word(buf, pos + 8)) if is_id else np.uint64(0)
    elif tag == _ID:
        span.span_id = swap(word(buf, pos)) if end - pos == 8 else np.uint64(0)
    elif tag == _PARENT:
        span.parent_id = swap(word(buf, pos)) if end - pos == 8 else np.uint64(0)
        span.is_root = _is_zero(buf, pos, end)


@kernel(
    types.int64(
        BYTES,
        types.int64,
        types.int64,
        SCHEMA_T,
        types.int64,
        BYTES,
        ATTRIBUTES_T,
        LENGTHS_T,
        FOUND_T,
        SPAN_T,
    ),
    **INLINE,
)
def read_span(buf, pos, end, table, message, text, attributes, by_length, own, span):  # type: ignore[no-untyped-def]
    """Read and validate one Span, the `message` of the schema's `table`; return the slots of `own` seen.

    Sets all of `span` but what `identify` does, and its scope. Negative: an error.
    """
    start_ns = end_ns = np.uint64(0)
    name, name_end, status, seen = 0, 0, 0, 0
    span.trace_high = span.trace_low = span.span_id = span.parent_id = 0
    span.kind, span.is_root = 0, True
    while pos < end:
        tag, value, start, pos = field(buf, pos, end, 3)
        if pos < 0:
            return pos
        is_attribute = tag == _ATTRIBUTES
        if not (is_attribute and is_plain(buf, start, pos)) and content_of(table, message, tag) != 0:
            error = validate(buf, tag, start, pos, table, message, 3)
            if error < 0:
                return error
        if is_attribute:
            seen = read(buf, start, pos, 4, text, attributes, by_length, False, seen, own)
        elif tag == _START:
            start_ns = word(buf, start)
        elif tag == _END:
            end_ns = word(buf, start)
        elif tag == _NAME:
            name, name_end = start, pos
        elif tag == _EVENTS:
            seen = _event(buf, start, pos, seen, own)
        elif tag == _STATUS:
            status = _status(buf, start, pos, status)
        else:
            _ids(buf, tag, value, start, pos, span)
        if seen < 0:
            return seen
    span.name_offset, span.name_length = name, name_end - name
    span.status = status
    span.start_ns = start_ns
    length_ns = end_ns - start_ns if end_ns > start_ns else np.uint64(0)
    span.duration_ns = np.int64(min(length_ns, np.uint64(_LONGEST_NS)))
    return seen


@kernel(types.void(BYTES, types.uint64, types.int64, FOUND_T), **KERNEL)
def hash_values(buf, seed, seen, found):  # type: ignore[no-untyped-def]
    """Hash the identity's values; those not seen become empty, with a hash of 0."""
    for slot in range(IDENTITY_SLOTS):
        value = found[slot]
        if seen >> slot & 1:
            offset = np.int64(value.offset)
            value.hash = digest(buf, offset, offset + np.int64(value.length), seed)
        else:
            value.offset = value.length = 0
            value.hash = 0


@kernel(types.void(BYTES, types.uint64, types.int64, FOUND_T, FOUND_T, SPAN_T), **KERNEL)
def identify(buf, seed, seen, own, inherited, span):  # type: ignore[no-untyped-def]
    """Resolve the four values, the span's own before its resource's, and the series key."""
    name = np.int64(span.name_offset)
    key = digest(buf, name, name + np.int64(span.name_length), seed) ^ np.uint64(span.status)
    for slot in range(IDENTITY_SLOTS):
        value = inherited[slot]
        hashed = value.hash
        if seen >> slot & 1:
            value = own[slot]
            offset = np.int64(value.offset)
            hashed = digest(buf, offset, offset + np.int64(value.length), seed)
        span.value_offset[slot] = value.offset
        span.value_length[slot] = value.length
        key = fold(key ^ hashed, seed)
    span.key = key
    span.has_model = seen & 1 != 0

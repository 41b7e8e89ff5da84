"""Reads an OTLP trace request into columns, one element per span, without decoding it into objects.

Where the scanner accepts a request, its columns hold what the protobuf library would read: fields in
any order, submessages in pieces, unknown fields and groups skipped. It walks requests, resources,
scopes, spans, statuses, and of attributes the key and, for the configured keys, the value. It passes
over the rest by its length, so an error inside of an event, a link or another attribute's value goes
unnoticed here; the bytes that are forwarded are the sender's either way.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba import njit, types
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from tidegauge.identity import Identity
from tidegauge.wire.attributes import (
    ATTRIBUTES_T,
    FOUND,
    FOUND_T,
    IDENTITY_SLOTS,
    LENGTHS_T,
    MARK_SLOTS,
    Keys,
    digest,
    equal,
    read,
)
from tidegauge.wire.counts import LEAVES, RESOURCES, SCOPES
from tidegauge.wire.marks import MARK, Mark, event
from tidegauge.wire.protobuf import BYTES, INLINE, KERNEL, NOT_UTF8, check, field, is_utf8, view, word
from tidegauge.wire.words import fold, swap

__all__ = ["MARK", "SCOPES_KNOWN", "SPAN", "Mark", "Scanned", "identity", "operation", "scan"]

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

_RESOURCE, _SCOPE, _RESOURCE_ATTRIBUTES, _SCOPE_NAME = 0x0A, 0x0A, 0x0A, 0x0A
_TRACE, _ID, _PARENT, _NAME, _KIND, _START, _END = 0x0A, 0x12, 0x22, 0x2A, 0x30, 0x39, 0x41
_ATTRIBUTES, _EVENTS, _STATUS = 0x4A, 0x5A, 0x7A
_STATUS_CODE, _STATUS_ERROR = 0x18, 2
_LONGEST_NS = 2**63 - 1
_MAX_TEXT = 256  # characters of a label; names are the sender's
_SLOTS = MARK_SLOTS + max(Mark) + 1
_SCOPE_TEXT = np.frombuffer("".join(SCOPES_KNOWN).encode(), np.uint8)
_SCOPE_ENDS = np.cumsum([len(scope) for scope in SCOPES_KNOWN])
_BYTES_PER_MARK = 64
"""Room that is made for marks at first. vLLM's spans have one in 110 bytes."""

_SPAN_T, _MARK_T = numba.from_dtype(SPAN), numba.from_dtype(MARK)


class Scanned(NamedTuple):
    """The spans of a request and the marks on them: arrays of SPAN and of MARK."""

    columns: npt.NDArray[np.void]
    marks: npt.NDArray[np.void]


def scan(raw: bytes, spans: int, keys: Keys) -> Scanned:
    """Read the `spans` spans of a request, as counted by `count_records`, into columns.

    A span has at most one mark of each kind, an attribute's or event's first. The marks take at most
    three times as many bytes as the request, for the shortest attribute has nine.

    Raises:
        ValueError: where the request is not well-formed, with the reason.
    """
    buf = view(raw)
    columns, marks = np.empty(spans, SPAN), np.empty(len(raw) // _BYTES_PER_MARK, MARK)
    own, inherited = np.zeros(_SLOTS, FOUND), np.zeros(_SLOTS, FOUND)
    found, marked = _request(buf, *keys, own, inherited, columns, marks)
    if check(found) != spans:
        raise ValueError(f"the request has not the {spans} spans that were counted")
    if marked > len(marks):
        # As many as that are rare: a second reading is cheaper than room for them in every request.
        marks = np.empty(marked, MARK)
        _request(buf, *keys, own, inherited, columns, marks)
    return Scanned(columns, marks[:marked].copy())


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


@njit(types.int64(BYTES, types.int64, types.int64), **KERNEL)
def _known_scope(buf, pos, end):  # type: ignore[no-untyped-def]
    for place in range(1, _SCOPE_ENDS.size):
        begin, length = _SCOPE_ENDS[place - 1], _SCOPE_ENDS[place] - _SCOPE_ENDS[place - 1]
        if end - pos == length and equal(buf, pos, _SCOPE_TEXT, begin, length):
            return place
    return 0


@njit(types.int64(BYTES, types.int64, types.int64, types.int64), **KERNEL)
def _scope(buf, pos, end, scope):  # type: ignore[no-untyped-def]
    """Merge a piece of an InstrumentationScope: its place in SCOPES_KNOWN, `scope` where it has no name."""
    while pos < end:
        tag, _, start, pos = field(buf, pos, end, 3)
        if pos < 0:
            return pos
        if tag == _SCOPE_NAME:
            if not is_utf8(buf, start, pos):
                return NOT_UTF8
            scope = _known_scope(buf, start, pos)
    return scope


@njit(types.void(BYTES, types.uint64, types.int64, FOUND_T), **KERNEL)
def _hash(buf, seed, seen, found):  # type: ignore[no-untyped-def]
    """Hash the identity's values; those not seen become empty, with a hash of 0."""
    for slot in range(IDENTITY_SLOTS):
        value = found[slot]
        if seen >> slot & 1:
            offset = np.int64(value.offset)
            value.hash = digest(buf, offset, offset + np.int64(value.length), seed)
        else:
            value.offset = value.length = 0
            value.hash = 0


@njit(types.void(BYTES, types.uint64, types.int64, FOUND_T, FOUND_T, _SPAN_T), **KERNEL)
def _identify(buf, seed, seen, own, inherited, span):  # type: ignore[no-untyped-def]
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


@njit(types.int64(types.int64, types.int64, FOUND_T, types.int64, _MARK_T[::1]), **KERNEL)
def _emit(span, seen, own, count, marks):  # type: ignore[no-untyped-def]
    """Add the marks seen on a span behind the first `count`, as far as there is room; count them all."""
    for slot in range(MARK_SLOTS, own.size):
        if seen >> slot & 1:
            if count < marks.size:
                marks[count].span = span
                marks[count].mark = slot - MARK_SLOTS
                marks[count].value = own[slot].value
                marks[count].time_ns = own[slot].time_ns
            count += 1
    return count


@njit(types.int64(BYTES, types.int64, types.int64, types.int64, FOUND_T), **KERNEL)
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


@njit(types.void(BYTES, types.int64, types.int64, types.int64, _SPAN_T), **INLINE)
def _ids(buf, tag, pos, end, span):  # type: ignore[no-untyped-def]
    """Read the field [pos, end) where it is one of the span's three ids."""
    if tag == _TRACE:
        is_id = end - pos == 16
        span.trace_high = swap(word(buf, pos)) if is_id else np.uint64(0)
        span.trace_low = swap(word(buf, pos + 8)) if is_id else np.uint64(0)
    elif tag == _ID:
        span.span_id = swap(word(buf, pos)) if end - pos == 8 else np.uint64(0)
    elif tag == _PARENT:
        span.parent_id = swap(word(buf, pos)) if end - pos == 8 else np.uint64(0)
        span.is_root = _is_zero(buf, pos, end)


@njit(
    types.int64(BYTES, types.int64, types.int64, BYTES, ATTRIBUTES_T, LENGTHS_T, FOUND_T, _SPAN_T),
    **KERNEL,
)
def _span(buf, pos, end, text, attributes, by_length, own, span):  # type: ignore[no-untyped-def]
    """Read one Span, but for what `_identify` adds, and return the slots seen. Negative: an error."""
    start_ns = end_ns = np.uint64(0)
    kind, name, name_end, status, seen = np.int32(0), 0, 0, 0, 0
    span.trace_high = span.trace_low = span.span_id = span.parent_id = 0
    span.is_root = True
    while pos < end:
        tag, value, start, pos = field(buf, pos, end, 3)
        if pos < 0:
            return pos
        if tag == _ATTRIBUTES:
            seen = read(buf, start, pos, 4, text, attributes, by_length, False, seen, own)
        elif tag == _START:
            start_ns = word(buf, start)
        elif tag == _END:
            end_ns = word(buf, start)
        elif tag == _NAME:
            if not is_utf8(buf, start, pos):
                return NOT_UTF8
            name, name_end = start, pos
        elif tag == _KIND:
            kind = np.int32(value)
        elif tag == _EVENTS:
            seen = _event(buf, start, pos, seen, own)
        elif tag == _STATUS:
            status = _status(buf, start, pos, status)
        else:
            _ids(buf, tag, start, pos, span)
        if seen < 0 or status < 0:
            return min(seen, status)
    span.name_offset, span.name_length = name, name_end - name
    span.kind, span.status = kind, status
    span.start_ns = start_ns
    length_ns = end_ns - start_ns if end_ns > start_ns else np.uint64(0)
    span.duration_ns = np.int64(min(length_ns, np.uint64(_LONGEST_NS)))
    return seen


@njit(
    types.int64(BYTES, types.int64, types.int64, BYTES, ATTRIBUTES_T, LENGTHS_T, FOUND_T),
    **KERNEL,
)
def _resource(buf, pos, end, text, attributes, by_length, inherited):  # type: ignore[no-untyped-def]
    """Find the identity in the Resource of a ResourceSpans, wherever in it and in however many pieces.

    Returns the slots seen. Negative: an error.
    """
    seen = 0
    while pos < end:
        tag, _, inner, pos = field(buf, pos, end, 1)
        if pos < 0:
            return pos
        while tag == _RESOURCE and inner < pos:
            part, _, start, inner = field(buf, inner, pos, 2)
            if inner < 0:
                return inner
            if part == _RESOURCE_ATTRIBUTES:
                seen = read(buf, start, inner, 3, text, attributes, by_length, True, seen, inherited)
                if seen < 0:
                    return seen
    return seen


_KEYS_T = (BYTES, ATTRIBUTES_T, LENGTHS_T, types.uint64)


@njit(
    types.UniTuple(types.int64, 2)(
        BYTES,
        types.int64,
        types.int64,
        *_KEYS_T,
        FOUND_T,
        FOUND_T,
        _SPAN_T[::1],
        types.int64,
        _MARK_T[::1],
        types.int64,
    ),
    **KERNEL,
)
def _scope_spans(  # type: ignore[no-untyped-def]
    buf, pos, end, text, attributes, by_length, seed, own, inherited, columns, count, marks, marked
):
    """Add a ScopeSpans' spans behind the first `count`, and their marks: (spans or an error, marks)."""
    first, scope = count, 0
    while pos < end:
        tag, _, start, pos = field(buf, pos, end, 2)
        if pos < 0:
            return pos, marked
        if tag == _SCOPE:
            scope = _scope(buf, start, pos, scope)
            if scope < 0:
                return scope, marked
        if tag != LEAVES:
            continue
        if count == columns.size:
            return count + 1, marked
        span = columns[count]
        seen = _span(buf, start, pos, text, attributes, by_length, own, span)
        if seen < 0:
            return seen, marked
        _identify(buf, seed, seen, own, inherited, span)
        if seen >> MARK_SLOTS:
            marked = _emit(count, seen, own, marked, marks)
        count += 1
    # Last, for a scope may stand behind its spans.
    for place in range(first, count):
        columns[place].scope = scope
    return count, marked


@njit(
    types.UniTuple(types.int64, 2)(BYTES, *_KEYS_T, FOUND_T, FOUND_T, _SPAN_T[::1], _MARK_T[::1]),
    **KERNEL,
)
def _request(buf, text, attributes, by_length, seed, own, inherited, columns, marks):  # type: ignore[no-untyped-def]
    """Fill `columns`, one element per span, and `marks`: (spans, or an error; marks, also without room)."""
    count, marked, pos, end = 0, 0, 0, np.int64(buf.size)
    while pos < end:
        resources, _, inner, pos = field(buf, pos, end, 0)
        if pos < 0:
            return pos, marked
        if resources != RESOURCES:
            continue
        seen = _resource(buf, inner, pos, text, attributes, by_length, inherited)
        if seen < 0:
            return seen, marked
        _hash(buf, seed, seen, inherited)
        while inner < pos:
            # What is not well-formed at this level, _resource has refused.
            scopes, _, start, inner = field(buf, inner, pos, 1)
            if scopes == SCOPES:
                count, marked = _scope_spans(
                    buf,
                    start,
                    inner,
                    text,
                    attributes,
                    by_length,
                    seed,
                    own,
                    inherited,
                    columns,
                    count,
                    marks,
                    marked,
                )
                if count < 0 or count > columns.size:
                    return count, marked
    return count, marked

"""Reads an OTLP trace request into columns, one element per span, without decoding it into objects.

The scanner accepts what the protobuf library accepts, and its columns hold what the library would read:
fields in any order, submessages in pieces, unknown fields and groups skipped. All of a request is
validated, events, links and attributes that nobody asks for too, which takes a seventh of the time: what
is accepted is forwarded joined to others' requests, and one that the collector cannot decode would take
those with it.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba import types
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from tidegauge.identity import UNKNOWN_MODEL, Identity
from tidegauge.stats.kernel import KERNEL, kernel
from tidegauge.wire.attributes import ATTRIBUTES_T, FOUND, FOUND_T, LENGTHS_T, MARK_SLOTS, Keys, equal, read
from tidegauge.wire.counts import LEAVES, RESOURCES, SCOPES
from tidegauge.wire.marks import MARK, Mark
from tidegauge.wire.protobuf import BYTES, check, field, view
from tidegauge.wire.schema import ROOT, SCHEMA_T, Schema, content_of, validate
from tidegauge.wire.spans import SPAN, SPAN_T, hash_values, identify, read_span

__all__ = ["MARK", "SCOPES_KNOWN", "SPAN", "Mark", "Scanned", "identity", "operation", "scan"]

SCOPES_KNOWN = ("", "triton-server")
"""Scopes whose spans are told apart from others'."""

_RESOURCE, _SCOPE, _RESOURCE_ATTRIBUTES, _SCOPE_NAME = 0x0A, 0x0A, 0x0A, 0x0A
_MAX_TEXT = 256  # characters of a label; names are the sender's
_MOST_NUMBER = 64  # bytes of an AnyValue's field; one that is no text has 20 at most
_SLOTS = MARK_SLOTS + max(Mark) + 1
_SCOPE_TEXT = np.frombuffer("".join(SCOPES_KNOWN).encode(), np.uint8)
_SCOPE_ENDS = np.cumsum([len(scope) for scope in SCOPES_KNOWN])
_SCHEMA = Schema(ExportTraceServiceRequest.DESCRIPTOR).table
_BYTES_PER_MARK = 32
"""Room that is made for marks at first. TGI's spans have one in 45 bytes, vLLM's one in 72."""

_MARK_T = numba.from_dtype(MARK)


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
    found, marked = _request(buf, _SCHEMA, *keys, own, inherited, columns, marks)
    if check(found) != spans:
        raise ValueError(f"the request has not the {spans} spans that were counted")
    if marked > len(marks):
        # So many are rare: reading once more costs less than room for them in every request.
        marks = np.empty(marked, MARK)
        _request(buf, _SCHEMA, *keys, own, inherited, columns, marks)
    return Scanned(columns, marks[:marked].copy())


def operation(raw: bytes, span: np.void) -> str:
    """The span's name, cut at 256 characters."""
    start = int(span["name_offset"])
    return _cut(raw, start, start + int(span["name_length"]))


def identity(raw: bytes, span: np.void) -> Identity:
    """Whose span or log record it is: numbers and booleans as text, each cut at 256 characters.

    What is absent is "", but for the model.
    """
    places = zip(span["value_offset"].tolist(), span["value_length"].tolist(), strict=True)
    model, *rest = (_shown(raw, start, start + length) for start, length in places)
    return Identity(model or UNKNOWN_MODEL, *rest)


def _cut(raw: bytes, start: int, end: int) -> str:
    """A text's first 256 characters; a character has up to four bytes. To decode 64 MiB took 0.3 s."""
    return raw[start : min(end, start + 4 * _MAX_TEXT)].decode(errors="ignore")[:_MAX_TEXT]


def _shown(raw: bytes, start: int, end: int) -> str:
    if end - start > _MOST_NUMBER:
        # A string: its tag and its length are varints of up to ten bytes.
        for _ in range(2):
            while raw[start] & 0x80:
                start += 1
            start += 1
        return _cut(raw, start, end)
    decoded = AnyValue.FromString(raw[start:end])
    case = decoded.WhichOneof("value")
    text = "" if case is None else str(getattr(decoded, case))
    return text.lower() if case == "bool_value" else text[:_MAX_TEXT]


@kernel(types.int64(BYTES, types.int64, types.int64), **KERNEL)
def _known_scope(buf, pos, end):  # type: ignore[no-untyped-def]
    for place in range(1, _SCOPE_ENDS.size):
        begin, length = _SCOPE_ENDS[place - 1], _SCOPE_ENDS[place] - _SCOPE_ENDS[place - 1]
        if end - pos == length and equal(buf, pos, _SCOPE_TEXT, begin, length):
            return place
    return 0


@kernel(types.int64(BYTES, types.int64, types.int64, types.int64), **KERNEL)
def _scope(buf, pos, end, scope):  # type: ignore[no-untyped-def]
    """Merge a piece of a valid InstrumentationScope: its place in SCOPES_KNOWN, unnamed `scope`."""
    while 0 <= pos < end:
        tag, _, start, pos = field(buf, pos, end, 3)
        if tag == _SCOPE_NAME:
            scope = _known_scope(buf, start, pos)
    return scope


@kernel(types.int64(types.int64, types.int64, FOUND_T, types.int64, _MARK_T[::1]), **KERNEL)
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
    ),
    **KERNEL,
)
def _resource(buf, pos, end, table, message, text, attributes, by_length, inherited):  # type: ignore[no-untyped-def]
    """Find the identity in the Resource of a ResourceSpans, wherever in it and in however many pieces.

    Validates all of the ResourceSpans but what is in its scopes. Returns the slots seen. Negative: an
    error.
    """
    seen = 0
    while pos < end:
        tag, _, inner, pos = field(buf, pos, end, 1)
        if pos < 0:
            return pos
        if tag == SCOPES:
            continue
        error = validate(buf, tag, inner, pos, table, message, 1)
        if error < 0:
            return error
        while tag == _RESOURCE and inner < pos:
            part, _, start, inner = field(buf, inner, pos, 2)
            if part == _RESOURCE_ATTRIBUTES:
                seen = read(buf, start, inner, 3, text, attributes, by_length, True, seen, inherited)
                if seen < 0:
                    return seen
    return seen


_KEYS_T = (SCHEMA_T, BYTES, ATTRIBUTES_T, LENGTHS_T, types.uint64)


@kernel(
    types.UniTuple(types.int64, 2)(
        BYTES,
        types.int64,
        types.int64,
        types.int64,
        *_KEYS_T,
        FOUND_T,
        FOUND_T,
        SPAN_T[::1],
        types.int64,
        _MARK_T[::1],
        types.int64,
    ),
    **KERNEL,
)
def _scope_spans(  # type: ignore[no-untyped-def]
    buf,
    pos,
    end,
    message,
    table,
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
):
    """Add a ScopeSpans' spans behind the first `count`, and their marks: (spans or an error, marks)."""
    first, scope, its = count, 0, content_of(table, message, LEAVES)
    while pos < end:
        tag, _, start, pos = field(buf, pos, end, 2)
        if pos < 0:
            return pos, marked
        if tag != LEAVES:
            error = validate(buf, tag, start, pos, table, message, 2)
            if error < 0:
                return error, marked
            if tag == _SCOPE:
                scope = _scope(buf, start, pos, scope)
            continue
        if count == columns.size:
            return count + 1, marked
        span = columns[count]
        seen = read_span(buf, start, pos, table, its, text, attributes, by_length, own, span)
        if seen < 0:
            return seen, marked
        identify(buf, seed, seen, own, inherited, span)
        if seen >> MARK_SLOTS:
            marked = _emit(count, seen, own, marked, marks)
        count += 1
    # Last, for a scope may stand behind its spans.
    for place in range(first, count):
        columns[place].scope = scope
    return count, marked


@kernel(
    types.UniTuple(types.int64, 2)(BYTES, *_KEYS_T, FOUND_T, FOUND_T, SPAN_T[::1], _MARK_T[::1]),
    **KERNEL,
)
def _request(  # type: ignore[no-untyped-def]
    buf, table, text, attributes, by_length, seed, own, inherited, columns, marks
):
    """Fill `columns`, one element per span, and `marks`: (spans, or an error; marks, also without room)."""
    count, marked, pos, end = 0, 0, 0, np.int64(buf.size)
    message = content_of(table, ROOT, RESOURCES)
    its = content_of(table, message, SCOPES)
    while pos < end:
        tag, _, inner, pos = field(buf, pos, end, 0)
        if pos < 0:
            return pos, marked
        if tag != RESOURCES:
            continue
        seen = _resource(buf, inner, pos, table, message, text, attributes, by_length, inherited)
        if seen < 0:
            return seen, marked
        hash_values(buf, seed, seen, inherited)
        while inner < pos:
            # What is not well-formed at this level, _resource has refused.
            tag, _, start, inner = field(buf, inner, pos, 1)
            if tag == SCOPES:
                count, marked = _scope_spans(
                    buf,
                    start,
                    inner,
                    its,
                    table,
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

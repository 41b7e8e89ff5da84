"""Reads an OTLP logs request into columns, one element per log record, without decoding it into objects.

It accepts what the protobuf library accepts, and its columns hold what that would read.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
from numba import types
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tidegauge.stats.kernel import KERNEL, kernel
from tidegauge.wire.attributes import (
    ATTRIBUTES_T,
    FOUND,
    FOUND_T,
    IDENTITY_SLOTS,
    LENGTHS_T,
    MARK_SLOTS,
    Keys,
    digest,
    read,
)
from tidegauge.wire.counts import LEAVES, RESOURCES, SCOPES
from tidegauge.wire.marks import Mark
from tidegauge.wire.protobuf import BYTES, check, field, view, word
from tidegauge.wire.schema import Schema
from tidegauge.wire.words import fold, swap

LOG = np.dtype(
    [
        ("time_ns", np.uint64),  # Unix time of the event, else of its observation; 0 where neither is set
        ("key", np.uint64),  # hash of the severity and the four identity values
        ("trace_high", np.uint64),  # the trace id's two halves and the span id, as big-endian numbers;
        ("trace_low", np.uint64),  # 0 where an id is absent or of a wrong length
        ("span_id", np.uint64),
        ("value_offset", np.uint32, (4,)),  # of model, version, stage and data source,
        ("value_length", np.uint32, (4,)),  # one field of an AnyValue each; length 0 where absent
        ("severity_number", np.int32),  # LogRecord.severity_number as sent
        ("severity", np.uint8),  # its place in SEVERITIES
        ("is_event", np.bool_),  # it has an event_name
    ],
    align=True,
)
"""One log record. Offsets are bytes from the start of the request."""

SEVERITIES = ("unspecified", "trace", "debug", "info", "warn", "error", "fatal")
"""Four severity numbers each, from 1 on (logs data model, "Field: SeverityNumber")."""

_RESOURCE, _RESOURCE_ATTRIBUTES = 0x0A, 0x0A
_TIME, _SEVERITY, _ATTRIBUTES = 0x09, 0x10, 0x32
_TRACE_ID, _SPAN_ID, _OBSERVED, _EVENT_NAME = 0x4A, 0x52, 0x59, 0x62

_SCHEMA = Schema(ExportLogsServiceRequest.DESCRIPTOR)
_SLOTS = MARK_SLOTS + max(Mark) + 1  # `read` notes marks too

_LOG_T = numba.from_dtype(LOG)


def scan(raw: bytes, records: int, keys: Keys) -> npt.NDArray[np.void]:
    """Read the `records` log records of a request, as counted by `count_records`, into an array of LOG.

    Raises:
        ValueError: where the request is not well-formed, with the reason.
    """
    _SCHEMA.check(raw)
    columns = np.zeros(records, LOG)
    own, inherited = np.zeros(_SLOTS, FOUND), np.zeros(_SLOTS, FOUND)
    if check(_request(view(raw), *keys, own, inherited, columns)) != records:
        raise ValueError(f"the request has not the {records} log records that were counted")
    return columns


@kernel(types.void(BYTES, types.uint64, types.int64, FOUND_T), **KERNEL)
def _hash(buf, seed, seen, found):  # type: ignore[no-untyped-def]
    """Hash the identity's values; those not seen become empty, with a hash of 0."""
    for slot in range(IDENTITY_SLOTS):
        value = found[slot]
        if seen >> slot & 1:
            start = np.int64(value.offset)
            value.hash = digest(buf, start, start + np.int64(value.length), seed)
        else:
            value.offset = value.length = 0
            value.hash = 0


@kernel(types.void(BYTES, types.uint64, types.int64, FOUND_T, FOUND_T, _LOG_T), **KERNEL)
def _identify(buf, seed, seen, own, inherited, log):  # type: ignore[no-untyped-def]
    """Resolve the severity, the four values, the record's own before its resource's, and the series key."""
    if 1 <= log.severity_number <= 24:
        log.severity = (log.severity_number + 3) // 4
    key = fold(np.uint64(log.severity) ^ seed, seed)
    for slot in range(IDENTITY_SLOTS):
        value = inherited[slot]
        hashed = value.hash
        if seen >> slot & 1:
            value = own[slot]
            start = np.int64(value.offset)
            hashed = digest(buf, start, start + np.int64(value.length), seed)
        log.value_offset[slot] = value.offset
        log.value_length[slot] = value.length
        key = fold(key ^ hashed, seed)
    log.key = key


@kernel(
    types.int64(BYTES, types.int64, types.int64, BYTES, ATTRIBUTES_T, LENGTHS_T, FOUND_T, _LOG_T),
    **KERNEL,
)
def _record(buf, pos, end, text, attributes, by_length, own, log):  # type: ignore[no-untyped-def]
    """Read one LogRecord, but for what `_identify` adds, and return the slots seen. Negative: an error."""
    time_ns = observed_ns = np.uint64(0)
    seen = 0
    while pos < end:
        tag, value, start, pos = field(buf, pos, end, 3)
        if pos < 0:
            return pos
        if tag == _ATTRIBUTES:
            seen = read(buf, start, pos, 4, text, attributes, by_length, False, seen, own)
            if seen < 0:
                return seen
        elif tag == _TIME:
            time_ns = word(buf, start)
        elif tag == _OBSERVED:
            observed_ns = word(buf, start)
        elif tag == _SEVERITY:
            log.severity_number = np.int32(value)
        elif tag == _TRACE_ID:
            whole = pos - start == 16
            log.trace_high = swap(word(buf, start)) if whole else np.uint64(0)
            log.trace_low = swap(word(buf, start + 8)) if whole else np.uint64(0)
        elif tag == _SPAN_ID:
            log.span_id = swap(word(buf, start)) if pos - start == 8 else np.uint64(0)
        elif tag == _EVENT_NAME:
            log.is_event = pos > start
    log.time_ns = time_ns if time_ns != 0 else observed_ns
    return seen


@kernel(
    types.int64(BYTES, types.int64, types.int64, BYTES, ATTRIBUTES_T, LENGTHS_T, FOUND_T),
    **KERNEL,
)
def _resource(buf, pos, end, text, attributes, by_length, inherited):  # type: ignore[no-untyped-def]
    """Find the identity in the Resource of a ResourceLogs, wherever in it and in however many pieces.

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


@kernel(
    types.int64(
        BYTES, BYTES, ATTRIBUTES_T, LENGTHS_T, types.uint64, FOUND_T, FOUND_T, numba.from_dtype(LOG)[::1]
    ),
    **KERNEL,
)
def _request(buf, text, attributes, by_length, seed, own, inherited, columns):  # type: ignore[no-untyped-def]
    """Fill `columns`, one element per record, and return how many there are. Negative: an error."""
    count, pos, end = 0, 0, np.int64(buf.size)
    while pos < end:
        resources, _, inner, pos = field(buf, pos, end, 0)
        if pos < 0:
            return pos
        if resources != RESOURCES:
            continue
        seen = _resource(buf, inner, pos, text, attributes, by_length, inherited)
        if seen < 0:
            return seen
        _hash(buf, seed, seen, inherited)
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
                log = columns[count]
                seen = _record(buf, start, leaf, text, attributes, by_length, own, log)
                if seen < 0:
                    return seen
                _identify(buf, seed, seen, own, inherited, log)
                count += 1
    return count

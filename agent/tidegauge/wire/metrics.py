"""Reads an OTLP metrics request into columns, one element per data point, without decoding it into objects.

It accepts what the protobuf library accepts, and its columns hold what that would read: fields in any
order, submessages in pieces, unknown fields and groups skipped, of a oneof the member set last. Buckets,
quantiles and exemplars are read by `wire.points`, where they are folded.

Memory: one POINT, 104 bytes, for a data point. An empty one takes two bytes of a request, a usual one
60 to 500, so a caller weighs `points * POINT.itemsize` before it scans.
"""

from __future__ import annotations

import enum

import numba
import numpy as np
import numpy.typing as npt
from numba import types
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tidegauge.stats.kernel import KERNEL, kernel
from tidegauge.stats.keyed import mix
from tidegauge.wire.attributes import digest
from tidegauge.wire.counts import (
    EXPONENTIAL_HISTOGRAM,
    GAUGE,
    HISTOGRAM,
    LEAVES,
    POINTS,
    RESOURCES,
    SCOPES,
    SUM,
    SUMMARY,
)
from tidegauge.wire.protobuf import BYTES, NOT_UTF8, check, field, is_utf8, view, word
from tidegauge.wire.schema import Schema


class PointKind(enum.IntEnum):
    """What a metric's points are: the member of Metric.data that is set."""

    GAUGE = 1
    SUM = 2
    HISTOGRAM = 3
    EXPONENTIAL_HISTOGRAM = 4
    SUMMARY = 5


class Temporality(enum.IntEnum):
    """AggregationTemporality; a value that it does not define is as unspecified."""

    UNSPECIFIED = 0
    DELTA = 1
    CUMULATIVE = 2


class Form(enum.IntEnum):
    """What `bits` of a point are."""

    NONE = 0
    DOUBLE = 1
    INT = 2
    COUNT = 3  # uint64: the observations of a histogram or a summary


POINT = np.dtype(
    [
        ("key", np.uint64),  # hash of resource, scope, family and attributes, as they were sent
        ("family", np.uint64),  # hash of the metric's name, unit, data, temporality and monotonicity
        ("start_ns", np.uint64),  # Unix time; 0 where it is not set
        ("time_ns", np.uint64),
        ("bits", np.uint64),  # the number, as `form` says
        ("offset", np.uint32),  # of the data point's message,
        ("length", np.uint32),
        ("name_offset", np.uint32),  # of the metric's
        ("name_length", np.uint32),
        ("unit_offset", np.uint32),
        ("unit_length", np.uint32),
        ("description_offset", np.uint32),
        ("description_length", np.uint32),
        ("scope_offset", np.uint32),  # of the ScopeMetrics and the ResourceMetrics around it; what is
        ("scope_length", np.uint32),  # in them may come in pieces: `wire.points.gather`
        ("resource_offset", np.uint32),
        ("resource_length", np.uint32),
        ("flags", np.uint32),
        ("kind", np.uint8),
        ("temporality", np.uint8),
        ("form", np.uint8),
        ("is_monotonic", np.bool_),
        ("has_exemplars", np.bool_),
    ],
    align=True,
)
"""One data point. Offsets are bytes from the start of the request."""

POINT_T = numba.from_dtype(POINT)

_SCHEMA = Schema(ExportMetricsServiceRequest.DESCRIPTOR)
_SCOPE, _SCOPE_SCHEMA_URL, _RESOURCE = 0x0A, 0x1A, 0x0A
_NAME, _DESCRIPTION, _UNIT = 0x0A, 0x12, 0x1A
_TEMPORALITY, _IS_MONOTONIC = 0x10, 0x18
_START, _TIME = 0x11, 0x19
_DOUBLE_OR_COUNT, _INT = 0x21, 0x31


def scan(raw: bytes, points: int, seed: np.uint64) -> npt.NDArray[np.void]:
    """The `points` data points of a request, as counted by `count_points`: an array of POINT.

    Raises:
        ValueError: where the request is not well-formed, with the reason.
    """
    _SCHEMA.check(raw)
    columns = np.zeros(points, POINT)
    if check(_request(view(raw), seed, np.zeros(1, POINT), columns)) != points:
        raise ValueError(f"the request has not the {points} data points that were counted")
    return columns


@kernel(types.void(POINT_T, types.int64), **KERNEL)
def _classify(about, kind):  # type: ignore[no-untyped-def]
    if kind == GAUGE:
        about.kind = 1
    elif kind == SUM:
        about.kind = 2
    elif kind == HISTOGRAM:
        about.kind = 3
    elif kind == EXPONENTIAL_HISTOGRAM:
        about.kind = 4
    elif kind == SUMMARY:
        about.kind = 5


@kernel(types.void(POINT_T, types.int64, types.int64, types.int64), **KERNEL)
def _note_text(about, tag, offset, length):  # type: ignore[no-untyped-def]
    if tag == _NAME:
        about.name_offset = offset
        about.name_length = length
    elif tag == _UNIT:
        about.unit_offset = offset
        about.unit_length = length
    else:
        about.description_offset = offset
        about.description_length = length


@kernel(types.int64(BYTES, types.int64, types.int64, types.uint64, POINT_T), **KERNEL)
def _metric(buf, pos, end, seed, about):  # type: ignore[no-untyped-def]
    """Note what a Metric says besides its points: where those begin that count, or an error.

    Its data is a oneof: pieces of one member add up, and another member puts an end to those before.
    """
    kind, begin = 0, end
    about.name_offset = about.name_length = 0
    about.unit_offset = about.unit_length = 0
    about.description_offset = about.description_length = 0
    about.kind = about.temporality = 0
    about.is_monotonic = False
    while pos < end:
        at = pos
        tag, _, start, pos = field(buf, pos, end, 3)
        if pos < 0:
            return pos
        if tag in (_NAME, _UNIT, _DESCRIPTION):
            if not is_utf8(buf, start, pos):
                return NOT_UTF8
            _note_text(about, tag, start, pos - start)
        elif tag in (GAUGE, SUM, HISTOGRAM, EXPONENTIAL_HISTOGRAM, SUMMARY):
            if tag != kind:
                kind, begin = tag, at
                about.temporality = 0
                about.is_monotonic = False
            # The points are well-formed, for they have been counted; these two stand beside them.
            while start < pos:
                part, value, _, start = field(buf, start, pos, 4)
                if start < 0:
                    return start
                if part == _TEMPORALITY and tag not in (GAUGE, SUMMARY):
                    about.temporality = np.uint8(value) if np.uint32(value) in (1, 2) else 0
                elif part == _IS_MONOTONIC and tag == SUM:
                    about.is_monotonic = value != 0
    _classify(about, kind)
    family = digest(buf, np.int64(about.name_offset), np.int64(about.name_offset + about.name_length), seed)
    unit = digest(buf, np.int64(about.unit_offset), np.int64(about.unit_offset + about.unit_length), seed)
    kinds = about.kind * 8 + about.temporality * 2 + about.is_monotonic
    about.family = mix(mix(family ^ unit) ^ np.uint64(kinds))
    return begin


@kernel(
    types.int64(BYTES, types.int64, types.int64, types.uint64, types.uint64, POINT_T),
    **KERNEL,
)
def _point(buf, pos, end, key, seed, point):  # type: ignore[no-untyped-def]
    """Read one data point, whatever its kind. Negative: an error."""
    is_number = point.kind <= 2
    attributes, exemplars, flags = 0x3A, 0x2A, 0x40  # numbers, and summaries, which have no exemplars
    if point.kind == 3:
        attributes, exemplars, flags = 0x4A, 0x42, 0x50
    elif point.kind == 4:
        attributes, exemplars, flags = 0x0A, 0x5A, 0x50
    elif point.kind == 5:
        exemplars = 0
    point.offset = pos
    point.length = end - pos
    point.form = 0
    key = mix(key ^ point.family)
    while pos < end:
        tag, value, start, pos = field(buf, pos, end, 5)
        if pos < 0:
            return pos
        if tag == attributes:
            key = mix(key ^ digest(buf, start, pos, seed))
        elif tag == _TIME:
            point.time_ns = word(buf, start)
        elif tag == _START:
            point.start_ns = word(buf, start)
        elif tag == _DOUBLE_OR_COUNT:
            point.bits = word(buf, start)
            point.form = 1 if is_number else 3
        elif tag == _INT and is_number:
            point.bits = word(buf, start)
            point.form = 2
        elif tag == flags:
            point.flags = np.uint32(value)
        elif tag == exemplars:
            point.has_exemplars = True
    point.key = key
    return 0


@kernel(
    types.int64(
        BYTES, types.int64, types.int64, types.uint64, types.uint64, POINT_T[::1], POINT_T[::1], types.int64
    ),
    **KERNEL,
)
def _points(buf, pos, end, key, seed, about, columns, count):  # type: ignore[no-untyped-def]
    """Read the points of one Metric: how many there are in all now, or an error."""
    pos = _metric(buf, pos, end, seed, about[0])
    if pos < 0:
        return pos
    while pos < end:
        tag, _, inner, pos = field(buf, pos, end, 3)
        if tag not in (GAUGE, SUM, HISTOGRAM, EXPONENTIAL_HISTOGRAM, SUMMARY):
            continue
        while inner < pos:
            part, _, start, inner = field(buf, inner, pos, 4)
            if part != POINTS:
                continue
            if count == columns.size:
                return columns.size + 1
            columns[count] = about[0]
            error = _point(buf, start, inner, key, seed, columns[count])
            if error < 0:
                return error
            count += 1
    return count


@kernel(
    types.uint64(
        BYTES, types.int64, types.int64, types.int64, types.int64, types.int64, types.uint64, types.uint64
    ),
    **KERNEL,
)
def _hash_pieces(buf, pos, end, level, tag, other, key, seed):  # type: ignore[no-untyped-def]
    """Mix the pieces of a resource, or of a scope and its schema URL, into a key. Errors end it."""
    while pos >= 0 and pos < end:
        found, _, start, pos = field(buf, pos, end, level)
        if pos >= 0 and found in (tag, other):
            key = mix(key ^ digest(buf, start, pos, seed) ^ np.uint64(found))
    return key


@kernel(types.int64(BYTES, types.uint64, POINT_T[::1], POINT_T[::1]), **KERNEL)
def _request(buf, seed, about, columns):  # type: ignore[no-untyped-def]
    """Fill `columns`, one element per point, and return how many there are. Negative: an error."""
    count, pos, end = 0, 0, np.int64(buf.size)
    while pos < end:
        resources, _, inner, pos = field(buf, pos, end, 0)
        if pos < 0:
            return pos
        if resources != RESOURCES:
            continue
        about[0].resource_offset = inner
        about[0].resource_length = pos - inner
        # Mixed once more, or a piece of the resource would be one of the scope.
        resource_key = mix(_hash_pieces(buf, inner, pos, 1, _RESOURCE, 0, seed, seed))
        while inner < pos:
            scopes, _, leaf, inner = field(buf, inner, pos, 1)
            if inner < 0:
                return inner
            if scopes != SCOPES:
                continue
            about[0].scope_offset = leaf
            about[0].scope_length = inner - leaf
            key = _hash_pieces(buf, leaf, inner, 2, _SCOPE, _SCOPE_SCHEMA_URL, resource_key, seed)
            while leaf < inner:
                tag, _, start, leaf = field(buf, leaf, inner, 2)
                if leaf < 0:
                    return leaf
                if tag == LEAVES:
                    count = _points(buf, start, leaf, key, seed, about, columns, count)
                    if count < 0 or count > columns.size:
                        return count
    return count


@kernel(types.void(POINT_T[::1], types.int64), **KERNEL)
def move(columns, by):  # type: ignore[no-untyped-def]
    """Let the offsets of columns be right where `by` bytes stand in front of their request."""
    for point in columns:
        point.offset += by
        point.name_offset += by
        point.unit_offset += by
        point.description_offset += by
        point.scope_offset += by
        point.resource_offset += by

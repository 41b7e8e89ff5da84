"""Reads what is inside of one OTLP data point, and gathers what came in pieces.

The columns of `wire.metrics` tell where a data point lies. Repeated numbers are taken packed and unpacked.
A negative result is an error, of `wire.protobuf` or TOO_MANY.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from tidegauge.stats.kernel import KERNEL, kernel
from tidegauge.wire.metrics import POINT_T
from tidegauge.wire.protobuf import BYTES, TRUNCATED, field, varint, view, word

TOO_MANY = -10
"""More buckets, bounds, quantiles or bytes than there is room for."""

READING = np.dtype(
    [
        ("sum", np.float64),  # NaN where it is not set, as min and max
        ("min", np.float64),
        ("max", np.float64),
        ("zero_threshold", np.float64),
        ("zero_count", np.uint64),
        ("scale", np.int64),
        ("counts", np.int64),  # of buckets, the positive ones of an exponential histogram; of quantiles
        ("bounds", np.int64),
        ("offset", np.int64),
        ("negative_counts", np.int64),
        ("negative_offset", np.int64),
    ],
    align=True,
)
"""A histogram or a summary as read, its lists apart."""

EXEMPLAR = np.dtype(
    [
        ("value", np.float64),
        ("time_ns", np.uint64),
        ("trace_high", np.uint64),  # the ids as big-endian numbers; 0 where absent or of a wrong length
        ("trace_low", np.uint64),
        ("span_id", np.uint64),
    ],
    align=True,
)
"""An exemplar without its filtered attributes."""

READING_T = numba.from_dtype(READING)
EXEMPLAR_T = numba.from_dtype(EXEMPLAR)
EXEMPLARS_T = EXEMPLAR_T[::1]
COUNTS_T = types.int64[::1]
FLOATS_T = types.float64[::1]

_COUNTS_PACKED, _COUNTS_FIXED, _BOUNDS_PACKED, _BOUNDS_FIXED = 0x32, 0x31, 0x3A, 0x39
_SUM, _MIN, _MAX = 0x29, 0x59, 0x61
_SCALE, _ZERO_COUNT, _POSITIVE, _NEGATIVE = 0x30, 0x39, 0x42, 0x4A
_EXPONENTIAL_MIN, _EXPONENTIAL_MAX, _ZERO_THRESHOLD = 0x61, 0x69, 0x71
_OFFSET, _VARINTS_PACKED, _VARINT_COUNT = 0x08, 0x12, 0x10
_QUANTILE_VALUES, _QUANTILE, _QUANTILE_VALUE = 0x32, 0x09, 0x11


@kernel(types.float64(BYTES, types.int64), **KERNEL)
def _double(buf, pos):  # type: ignore[no-untyped-def]
    return np.int64(word(buf, pos)).view(np.float64)


@kernel(types.int64(types.uint64), **KERNEL)
def _zigzag(value):  # type: ignore[no-untyped-def]
    """A sint32, of which protobuf takes the low 32 bits."""
    low = np.int64(value & np.uint64(0xFFFFFFFF))
    return (low >> 1) ^ -(low & 1)


@kernel(types.void(READING_T), **KERNEL)
def _blank(reading):  # type: ignore[no-untyped-def]
    reading.sum = reading.min = reading.max = np.nan
    reading.zero_threshold = 0.0
    reading.zero_count = 0
    reading.scale = reading.offset = reading.negative_offset = 0
    reading.counts = reading.bounds = reading.negative_counts = 0


@kernel(types.int64(BYTES, types.int64, types.int64, types.int64[::1], types.int64), **KERNEL)
def _fixed(buf, pos, end, out, size):  # type: ignore[no-untyped-def]
    """Append fixed64 numbers, packed or a single one: the new size, or an error."""
    if (end - pos) % 8 != 0:
        return TRUNCATED
    if size + (end - pos) // 8 > out.size:
        return TOO_MANY
    while pos < end:
        out[size] = np.int64(word(buf, pos))
        size += 1
        pos += 8
    return size


@kernel(types.int64(BYTES, types.int64, types.int64, COUNTS_T, FLOATS_T, READING_T), **KERNEL)
def histogram(buf, pos, end, counts, bounds, reading):  # type: ignore[no-untyped-def]
    """Read a HistogramDataPoint: its buckets into `counts` and `bounds`, the rest into `reading`."""
    _blank(reading)
    while pos < end:
        tag, _, start, pos = field(buf, pos, end, 5)
        if pos < 0:
            return pos
        if tag in (_COUNTS_PACKED, _COUNTS_FIXED):
            reading.counts = _fixed(buf, start, pos, counts, reading.counts)
        elif tag in (_BOUNDS_PACKED, _BOUNDS_FIXED):
            # As bits: a double is eight bytes too.
            reading.bounds = _fixed(buf, start, pos, bounds.view(np.int64), reading.bounds)
        elif tag == _SUM:
            reading.sum = _double(buf, start)
        elif tag == _MIN:
            reading.min = _double(buf, start)
        elif tag == _MAX:
            reading.max = _double(buf, start)
        if min(reading.counts, reading.bounds) < 0:
            return min(reading.counts, reading.bounds)
    return 0


@kernel(
    types.UniTuple(types.int64, 2)(BYTES, types.int64, types.int64, COUNTS_T, types.int64, types.int64),
    **KERNEL,
)
def _buckets(buf, pos, end, counts, offset, size):  # type: ignore[no-untyped-def]
    """Merge a piece of Buckets: (offset, number of counts); a negative number is an error."""
    while pos < end:
        tag, value, start, pos = field(buf, pos, end, 6)
        if pos < 0:
            return offset, pos
        if tag == _OFFSET:
            offset = _zigzag(value)
        elif tag == _VARINT_COUNT:
            if size == counts.size:
                return offset, TOO_MANY
            counts[size] = np.int64(value)
            size += 1
        elif tag == _VARINTS_PACKED:
            while start < pos:
                value, start = varint(buf, start, pos)
                if start < 0:
                    return offset, start
                if size == counts.size:
                    return offset, TOO_MANY
                counts[size] = np.int64(value)
                size += 1
    return offset, size


@kernel(types.int64(BYTES, types.int64, types.int64, COUNTS_T, COUNTS_T, READING_T), **KERNEL)
def exponential(buf, pos, end, positive, negative, reading):  # type: ignore[no-untyped-def]
    """Read an ExponentialHistogramDataPoint: its counts into two arrays, the rest into `reading`."""
    _blank(reading)
    while pos < end:
        tag, value, start, pos = field(buf, pos, end, 5)
        if pos < 0:
            return pos
        if tag == _POSITIVE:
            offset, size = _buckets(buf, start, pos, positive, reading.offset, reading.counts)
            if size < 0:
                return size
            reading.offset = offset
            reading.counts = size
        elif tag == _NEGATIVE:
            offset, size = _buckets(
                buf, start, pos, negative, reading.negative_offset, reading.negative_counts
            )
            if size < 0:
                return size
            reading.negative_offset = offset
            reading.negative_counts = size
        elif tag == _SCALE:
            reading.scale = _zigzag(value)
        elif tag == _ZERO_COUNT:
            reading.zero_count = word(buf, start)
        elif tag == _SUM:
            reading.sum = _double(buf, start)
        elif tag == _EXPONENTIAL_MIN:
            reading.min = _double(buf, start)
        elif tag == _EXPONENTIAL_MAX:
            reading.max = _double(buf, start)
        elif tag == _ZERO_THRESHOLD:
            reading.zero_threshold = _double(buf, start)
    return 0


@kernel(types.int64(BYTES, types.int64, types.int64, FLOATS_T, READING_T), **KERNEL)
def summary(buf, pos, end, quantiles, reading):  # type: ignore[no-untyped-def]
    """Read a SummaryDataPoint: pairs of quantile and value into `quantiles`, their number into `counts`."""
    _blank(reading)
    reading.sum = 0.0  # it has no presence in a summary
    while pos < end:
        tag, _, start, pos = field(buf, pos, end, 5)
        if pos < 0:
            return pos
        if tag == _SUM:
            reading.sum = _double(buf, start)
        elif tag == _QUANTILE_VALUES:
            at = 2 * reading.counts
            if at + 2 > quantiles.size:
                return TOO_MANY
            quantiles[at] = quantiles[at + 1] = 0.0
            while start < pos:
                part, _, inner, start = field(buf, start, pos, 6)
                if start < 0:
                    return start
                if part == _QUANTILE:
                    quantiles[at] = _double(buf, inner)
                elif part == _QUANTILE_VALUE:
                    quantiles[at + 1] = _double(buf, inner)
            reading.counts += 1
    return 0


@kernel(types.uint64(BYTES, types.int64), **KERNEL)
def _big_endian(buf, pos):  # type: ignore[no-untyped-def]
    value = np.uint64(0)
    for index in range(pos, pos + 8):
        value = (value << np.uint64(8)) | np.uint64(buf[index])
    return value


@kernel(types.int64(BYTES, types.int64, types.int64, types.int64, EXEMPLARS_T), **KERNEL)
def exemplars(buf, pos, end, wanted, out):  # type: ignore[no-untyped-def]
    """Read the exemplars of a data point, its fields with tag `wanted`: how many, at most `out.size`."""
    found = 0
    while pos < end and found < out.size:
        tag, _, inner, pos = field(buf, pos, end, 5)
        if pos < 0:
            return pos
        if tag != wanted:
            continue
        one = out[found]
        one.value = np.nan
        one.time_ns = one.trace_high = one.trace_low = one.span_id = 0
        while inner < pos:
            part, _, start, inner = field(buf, inner, pos, 6)
            if inner < 0:
                return inner
            if part == 0x11:
                one.time_ns = word(buf, start)
            elif part == 0x19:
                one.value = _double(buf, start)
            elif part == 0x31:
                one.value = np.float64(np.int64(word(buf, start)))
            elif part == 0x22:
                one.span_id = _big_endian(buf, start) if inner - start == 8 else np.uint64(0)
            elif part == 0x2A:
                whole = inner - start == 16
                one.trace_high = _big_endian(buf, start) if whole else np.uint64(0)
                one.trace_low = _big_endian(buf, start + 8) if whole else np.uint64(0)
        found += 1
    return found


@kernel(
    types.void(
        BYTES,
        types.Array(POINT_T, 1, "C", readonly=True),
        types.int64[::1],
        EXEMPLAR_T[:, ::1],
        types.int64[::1],
    ),
    **KERNEL,
)
def read_exemplars(buf, points, places, out, sizes):  # type: ignore[no-untyped-def]
    """Read the exemplars of `points[places[i]]` into `out[i, : sizes[i]]`; a size is at least 0."""
    for at in range(places.size):
        point = points[places[at]]
        tag = 0x2A if point.kind <= 2 else 0x42 if point.kind == 3 else 0x5A
        begin = np.int64(point.offset)
        sizes[at] = max(exemplars(buf, begin, begin + np.int64(point.length), tag, out[at]), 0)


@kernel(
    types.int64(
        BYTES,
        types.int64,
        types.int64,
        types.int64,
        types.int64,
        types.boolean,
        types.boolean,
        types.uint8[::1],
    ),
    **KERNEL,
)
def _gather(buf, pos, end, level, wanted, only_last, framed, out):  # type: ignore[no-untyped-def]
    size = 0
    while pos < end:
        at = pos
        tag, _, start, pos = field(buf, pos, end, level)
        if pos < 0:
            return pos
        if tag == wanted:
            if only_last:
                size = 0
            if framed:
                start = at
            if size + pos - start > out.size:
                return TOO_MANY
            for place in range(start, pos):
                out[size] = buf[place]
                size += 1
    return size


def gather(
    raw: bytes,
    offset: int,
    length: int,
    level: int,
    tag: int,
    most: int,
    *,
    only_last: bool = False,
    framed: bool = False,
) -> bytes:
    """The payloads of all fields `tag` in the message at [offset, offset + length), one after the other.

    Those of a submessage are a submessage that reads the same, for so protobuf merges its pieces; of a
    string `only_last` counts. `framed`: each with its tag and length, a message of these fields alone.
    `level` is the message's depth, 0 for the request itself.

    Raises:
        ValueError: where they are more than `most` bytes, or not well-formed.
    """
    out = np.empty(min(most, length), np.uint8)
    size = _gather(view(raw), offset, offset + length, level, tag, only_last, framed, out)
    if size < 0:
        raise ValueError(f"a field is malformed or has more than {most} bytes")
    return out[:size].tobytes()

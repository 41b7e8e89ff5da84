"""Marks: what a span tells besides its own duration, in an attribute's value or an event's time."""

from __future__ import annotations

import enum

import numpy as np
from numba import types

from tidegauge.stats.kernel import KERNEL, kernel
from tidegauge.wire.protobuf import BYTES, NOT_UTF8, field, is_utf8, word


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

STRING, BOOL, INT, DOUBLE = 0x0A, 0x10, 0x18, 0x21
"""Tags of an AnyValue's scalars."""

_EVENTS = tuple(mark.name.encode() for mark in Mark if mark >= Mark.QUEUE_START)
_FIRST_EVENT = int(Mark.QUEUE_START)
_NAMES = np.frombuffer(b"".join(_EVENTS), np.uint8)
_ENDS = np.cumsum([len(name) for name in _EVENTS])
_TIME, _NAME = 0x09, 0x12
_EXACT_DIGITS = np.uint64(10**17)
_NO_POWER = 2**31


@kernel(types.int64(BYTES, types.int64, types.int64), **KERNEL)
def _exponent(buf, pos, end):  # type: ignore[no-untyped-def]
    negative = pos < end and buf[pos] == 0x2D
    if negative or (pos < end and buf[pos] == 0x2B):
        pos += 1
    if pos == end:
        return _NO_POWER
    power = 0
    while pos < end:
        if not 0x30 <= buf[pos] <= 0x39:
            return _NO_POWER
        if power < 10**6:  # which is beyond every double
            power = power * 10 + int(buf[pos]) - 0x30
        pos += 1
    return -power if negative else power


@kernel(types.int64(BYTES, types.int64, types.int64), **KERNEL)
def _power(buf, pos, end):  # type: ignore[no-untyped-def]
    """The power of ten that [pos, end) stands for: an exponent, a unit or nothing."""
    if pos == end:
        return 0
    first, last, size = buf[pos], buf[end - 1], end - pos
    if first in (0x45, 0x65):
        return _exponent(buf, pos + 1, end)
    power = _NO_POWER
    if last == 0x73 and size == 1:
        power = 0
    elif last == 0x73 and size == 2:
        power = -3 if first == 0x6D else -6 if first == 0x75 else -9 if first == 0x6E else _NO_POWER
    elif last == 0x73 and size == 3 and first == 0xC2 and buf[pos + 1] == 0xB5:
        power = -6
    return power


@kernel(types.float64(types.float64, types.int64), **KERNEL)
def _scaled(value, power):  # type: ignore[no-untyped-def]
    # Divided rather than multiplied by 1e-3, which is no double; in two steps where 10**power is none.
    # And to a real power: numba multiplies its way to a whole one, which is off by a bit beyond 1e22.
    if power < -300:
        return value / 1e300 / 10.0 ** np.float64(min(-power - 300, 308))
    if power < 0:
        return value / 10.0 ** np.float64(-power)
    if power > 308:
        return np.inf if value > 0 else value
    return value * 10.0 ** np.float64(power)


@kernel(types.float64(BYTES, types.int64, types.int64), **KERNEL)
def decimal(buf, pos, end):  # type: ignore[no-untyped-def]
    """Read "12.5", "-1e-3", or a duration such as "12.3ms", "850µs", "870ns", "1.5s" in seconds.

    NaN for any other text. Exact to the last bit up to 15 digits and within a few bits beyond. Rust
    writes the micro sign U+00B5; "us" is as good.
    """
    negative = pos < end and buf[pos] == 0x2D
    if negative or (pos < end and buf[pos] == 0x2B):
        pos += 1
    mantissa, power, digits, behind_point = np.uint64(0), 0, 0, 0
    while pos < end:
        byte = buf[pos]
        if 0x30 <= byte <= 0x39:
            digits += 1
            if mantissa < _EXACT_DIGITS:
                mantissa = mantissa * np.uint64(10) + np.uint64(byte - 0x30)
                power -= behind_point
            else:
                power += 1 - behind_point
        elif byte == 0x2E and not behind_point:
            behind_point = 1
        else:
            break
        pos += 1
    more = _power(buf, pos, end)
    if digits == 0 or more == _NO_POWER:
        return np.nan
    value = _scaled(np.float64(mantissa), power + more)
    return -value if negative else value


@kernel(types.float64(BYTES, types.int64, types.int64), **KERNEL)
def number(buf, pos, end):  # type: ignore[no-untyped-def]
    """The number in [pos, end), one well-formed scalar field of an AnyValue; NaN where it has none.

    A boolean is 0 or 1. Text is a decimal number, or a duration as Rust's Debug writes it.
    """
    tag, value, start, _ = field(buf, pos, end, 0)
    if tag == STRING:
        return decimal(buf, start, end)
    if tag == DOUBLE:
        return np.uint64(word(buf, start)).view(np.float64)
    if tag == BOOL:
        return 1.0 if value != 0 else 0.0
    return np.float64(np.int64(value))


@kernel(types.int64(BYTES, types.int64, types.int64), **KERNEL)
def _known(buf, pos, end):  # type: ignore[no-untyped-def]
    """The mark of the event that is named [pos, end); 0 where it is none of ours."""
    begin = 0
    for index in range(_ENDS.size):
        stop = _ENDS[index]
        if stop - begin == end - pos:
            place = pos
            while place < end and buf[place] == _NAMES[begin + place - pos]:
                place += 1
            if place == end:
                return _FIRST_EVENT + index
        begin = stop
    return 0


@kernel(types.Tuple((types.int64, types.uint64))(BYTES, types.int64, types.int64, types.int64), **KERNEL)
def event(buf, pos, end, level):  # type: ignore[no-untyped-def]
    """Read a Span.Event at `level`: (its mark, or 0 for any other or an untimed one; Unix time in ns).

    A negative mark is an error. Of the event's attributes only the lengths are read.
    """
    mark, time_ns = 0, np.uint64(0)
    while pos < end:
        tag, _, start, pos = field(buf, pos, end, level)
        if pos < 0:
            return pos, time_ns
        if tag == _TIME:
            time_ns = word(buf, start)
        elif tag == _NAME:
            if not is_utf8(buf, start, pos):
                return NOT_UTF8, time_ns
            mark = _known(buf, start, pos)
    return mark if time_ns else 0, time_ns

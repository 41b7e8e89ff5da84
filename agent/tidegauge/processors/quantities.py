"""Reads a span's marks into the quantities that are measured, and folds these into histograms."""

from __future__ import annotations

import enum

import numba
import numpy as np
from numba import types

from tidegauge.processors.halves import COMPUTE, HALF_T, LOST_T, MODEL, TIMES, join
from tidegauge.processors.histograms import CHANGED
from tidegauge.processors.requests import TRITON, is_request
from tidegauge.processors.series_table import OVERFLOW_SERIES, find
from tidegauge.stats.exponential import HISTOGRAM_T, add
from tidegauge.stats.kernel import KERNEL, kernel
from tidegauge.stats.keyed import ENTRIES_T
from tidegauge.wire.traces import MARK, SPAN, Mark


class Quantity(enum.IntEnum):
    """What is measured. Histogram `identity * QUANTITIES + quantity` is that of an identity."""

    TIME_TO_FIRST_TOKEN = 0  # this and all down to VALIDATION as in Mark
    TIME_PER_OUTPUT_TOKEN = 1
    QUEUE = 2
    PREFILL = 3
    DECODE = 4
    INFERENCE = 5
    VALIDATION = 6
    COMPUTE_INPUT = 7
    COMPUTE_INFER = 8
    COMPUTE_OUTPUT = 9
    INPUT_TOKENS = 10  # this and all below: 2 more than in Mark
    OUTPUT_TOKENS = 11
    COLD_START = 12  # 0 or 1


QUANTITIES = len(Quantity)

TOLD = np.dtype(
    [
        ("values", np.float64, (16,)),  # of the attributes of the span at hand, by Mark
        ("seen", np.int64),  # the set of its marks, as bits
        ("invalid", np.int64),  # values left out: negative, not finite or beyond belief
        ("overflow", np.int64),  # spans counted under the overflow identity
    ],
    align=True,
)
"""What a span tells, and what was left out of all."""

_TOTAL, _OUTPUT_TOKENS, _COLD_START = int(Mark.TOTAL), int(Mark.OUTPUT_TOKENS), int(Mark.COLD_START)
_FIRST_TOKEN, _PER_TOKEN, _DECODE = 0, int(Mark.TIME_PER_OUTPUT_TOKEN), int(Mark.DECODE)
_FIRST_EVENT = int(Mark.QUEUE_START)
_DURATIONS = 2 ** (_TOTAL + 1) - 1  # the set of marks that are times in seconds
_QUEUE, _COMPUTE_INPUT = int(Quantity.QUEUE), int(Quantity.COMPUTE_INPUT)

_MOST = 2.0**53
"""Beyond it are no tokens and no seconds. A value near the largest double would make the sum infinite and the
buckets as wide as can be, for good."""

_SPAN_T = numba.from_dtype(SPAN)
_TOLD_T = numba.from_dtype(TOLD)
_MARKS_T = types.Array(numba.from_dtype(MARK), 1, "C", readonly=True)
_HISTOGRAMS_T = HISTOGRAM_T[::1]
_CHANGED_T = types.uint64[::1]


@kernel(types.int64(_MARKS_T, types.int64, _TOLD_T, HALF_T), **KERNEL)
def _read(marks, begin, told, half):  # type: ignore[no-untyped-def]
    """Read the marks of one span from `begin` on, and return where the next span's begin.

    Of several marks of one kind the first counts.
    """
    place = marks[begin].span
    told.seen = 0
    for time in range(TIMES):
        half.times[time] = 0
    while begin < marks.size and marks[begin].span == place:
        mark = marks[begin]
        kind = np.int64(mark.mark)
        if told.seen >> kind & 1 == 0:
            told.seen |= 1 << kind
            if kind < _FIRST_EVENT:
                told.values[kind] = mark.value
            else:
                half.times[kind - _FIRST_EVENT] = mark.time_ns
        begin += 1
    return begin


@kernel(types.void(_HISTOGRAMS_T, _CHANGED_T, types.int64, types.float64, _TOLD_T), **KERNEL)
def _observe(histograms, changed, place, value, told):  # type: ignore[no-untyped-def]
    if 0 <= value < _MOST:
        add(histograms[place], value)
        changed[place] |= CHANGED
    else:
        told.invalid += 1


@kernel(types.void(_HISTOGRAMS_T, _CHANGED_T, types.int64, types.float64, _TOLD_T), **KERNEL)
def _observe_attributes(histograms, changed, first, duration_s, told):  # type: ignore[no-untyped-def]
    """Count what a request's attributes tell; `first` is its identity's first histogram.

    Where no time per output token is told but n >= 2 tokens, it is decode time / (n - 1), as vLLM has
    it, or else (whole time - time to first token) / (n - 1). The whole time is as told, or the span's.
    """
    for mark in range(_COLD_START + 1):
        if told.seen >> mark & 1 and mark != _TOTAL:
            quantity = mark if mark < _TOTAL else mark + 2
            value = told.values[mark]
            if mark == _COLD_START and value == value:
                value = 1.0 if value != 0 else 0.0
            _observe(histograms, changed, first + quantity, value, told)
    gaps = told.values[_OUTPUT_TOKENS] - 1
    if told.seen >> _PER_TOKEN & 1 or not (told.seen >> _OUTPUT_TOKENS & 1 and 1 <= gaps < np.inf):
        return
    if told.seen >> _DECODE & 1:
        _observe(histograms, changed, first + _PER_TOKEN, told.values[_DECODE] / gaps, told)
    elif told.seen >> _FIRST_TOKEN & 1:
        whole_s = told.values[_TOTAL] if told.seen >> _TOTAL & 1 else duration_s
        decode_s = whole_s - told.values[_FIRST_TOKEN]
        _observe(histograms, changed, first + _PER_TOKEN, decode_s / gaps, told)


@kernel(types.void(_HISTOGRAMS_T, _CHANGED_T, HALF_T, _TOLD_T), **KERNEL)
def _observe_events(histograms, changed, half, told):  # type: ignore[no-untyped-def]
    """Count the times between the events of a model span and its compute child, now joined."""
    for time in range(TIMES - 1):
        earlier, later = half.times[time], half.times[time + 1]
        if earlier == 0 or later == 0:
            continue
        quantity = _QUEUE if time == 0 else _COMPUTE_INPUT + time - 1
        # Unsigned: a later time that is before the earlier one would be centuries after it.
        elapsed = np.float64(later - earlier) / 1e9 if later >= earlier else -1.0
        _observe(histograms, changed, half.series * QUANTITIES + quantity, elapsed, told)


@kernel(
    types.int64(
        types.Array(_SPAN_T, 1, "C", readonly=True),
        _MARKS_T,
        types.int64,
        types.boolean,
        types.boolean,
        ENTRIES_T,
        _HISTOGRAMS_T,
        _CHANGED_T,
        HALF_T[:, ::1],
        HALF_T,
        LOST_T,
        _TOLD_T,
    ),
    **KERNEL,
)
def fold(  # type: ignore[no-untyped-def]
    spans, marks, begin, every_span, full, entries, histograms, changed, halves, half, lost, told
):
    """Fold marks from `begin` on: the index of the first of a span whose key is unknown, or all there are.

    A span's marks count where it is a request, and where it tells a duration that a server measured,
    for TGI tells them on an inner span. Triton's compute span counts through its parent.
    """
    while begin < marks.size:
        span = spans[marks[begin].span]
        end = _read(marks, begin, told, half)
        is_triton = span.scope == TRITON
        if is_triton and not span.has_model:
            if told.seen >> (_FIRST_EVENT + 1) != 0:
                half.kind = COMPUTE
                half.trace_high = span.trace_high
                half.trace_low = span.trace_low
                half.span_id = span.parent_id
                if join(halves, half, lost):
                    _observe_events(histograms, changed, half, told)
        elif every_span or is_request(span) or told.seen & _DURATIONS:
            series = find(entries, full, span.key)
            if series < 0:
                return begin
            told.overflow += series == OVERFLOW_SERIES
            duration_s = np.float64(span.duration_ns) / 1e9
            _observe_attributes(histograms, changed, series * QUANTITIES, duration_s, told)
            if is_triton and told.seen >> _FIRST_EVENT & 1:
                half.kind = MODEL
                half.series = series
                half.trace_high = span.trace_high
                half.trace_low = span.trace_low
                half.span_id = span.span_id
                if join(halves, half, lost):
                    _observe_events(histograms, changed, half, told)
        begin = end
    return begin

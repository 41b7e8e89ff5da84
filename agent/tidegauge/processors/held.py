"""Spans that wait for the rest of their request: a fixed array, and how spans enter and leave it."""

from __future__ import annotations

import enum

import numba
import numpy as np
import numpy.typing as npt
from numba import carray, types

from tidegauge.batch import Spans
from tidegauge.stats.kernel import KERNEL, kernel
from tidegauge.stats.keyed import ENTRIES_T, mix, slot_of
from tidegauge.stats.pointers import as_pointer
from tidegauge.wire.traces import MARK, SPAN, Mark

HELD = np.dtype(
    [
        ("trace", np.uint64),  # hash of the trace id; its order decides which traces are left out
        ("span_id", np.uint64),  # 0: not a span, but the sign that its trace was given up as too large
        ("parent_id", np.uint64),  # 0: none
        ("start_ns", np.uint64),
        ("duration_ns", np.int64),
        ("arrived_ns", np.int64),  # the first collect() that saw it; 0 before
        ("label", np.int32),  # place in the labels: its name and identity
        ("kind", np.int32),
        ("is_root", np.bool_),
        ("failed", np.bool_),
        ("has_model", np.bool_),
        ("is_cold", np.bool_),
    ],
    align=True,
)
"""A span that waits, in 64 bytes."""

HELD_T = numba.from_dtype(HELD)[::1]

LABEL = np.dtype([("name", np.int32), ("identity", np.int32), ("is_cold", np.bool_)], align=True)
"""What the spans of one key have in common: the places of their name and identity, 0 beyond the limit."""

LABELS_T = numba.from_dtype(LABEL)[::1]


class Outcome(enum.IntEnum):
    """What became of a span. The first waits."""

    WAITING = 0
    ANALYSED = 1
    SAMPLED = 2  # left out with its trace, for the array was too small for all
    DUPLICATE = 3
    ORPHANED = 4  # no request has come for it
    TOO_LARGE = 5  # its trace has more spans than an eighth of the array
    TOO_LONG = 6  # its request took longer than the array keeps spans
    UNIDENTIFIED = 7  # without a trace or span id
    UNTIMED = 8  # without a start


DISCARDED = -1
"""The arrival of a held span that `compact` is to remove."""

DONE, UNKNOWN, FULL = 0, 1, 2
"""Why `admit` stops: no more spans, a span whose key has no label, no room."""

_BATCH = np.dtype([("spans", np.int64), ("count", np.int64), ("marks", np.int64), ("marked", np.int64)])
"""Addresses of a batch's two arrays, and their lengths."""

_CURSOR = np.dtype([("batch", np.int64), ("span", np.int64), ("mark", np.int64)])

_SAMPLED, _TOO_LARGE = int(Outcome.SAMPLED), int(Outcome.TOO_LARGE)
_UNIDENTIFIED, _UNTIMED = int(Outcome.UNIDENTIFIED), int(Outcome.UNTIMED)
_COLD_START = int(Mark.COLD_START)
_TOMBSTONE_ID = 0


def addresses(batches: list[Spans]) -> npt.NDArray[np.void]:
    """Where the batches' columns and marks lie, for `admit`; the batches must outlive its use."""
    rows = [
        (batch.columns.ctypes.data, len(batch.columns), batch.marks.ctypes.data, len(batch.marks))
        for batch in batches
    ]
    return np.array(rows, _BATCH)


def cursor() -> npt.NDArray[np.void]:
    """Where `admit` stands in the batches, one element: at their beginning."""
    return np.zeros(1, _CURSOR)


@kernel(types.uint64(types.uint64, types.uint64, types.uint64), **KERNEL)
def trace_hash(high, low, seed):  # type: ignore[no-untyped-def]
    """Seeded, so that no sender can choose which traces are left out."""
    return mix(low ^ high * np.uint64(0x9E3779B97F4A7C15) ^ seed)


_CURSOR_T = numba.from_dtype(_CURSOR)


@kernel(types.boolean(numba.from_dtype(MARK)[::1], _CURSOR_T, types.int64), **KERNEL)
def _is_cold(marks, at, place):  # type: ignore[no-untyped-def]
    """Whether a mark says so of the span; the cursor moves on behind the span's marks."""
    is_cold = False
    while at.mark < marks.size and np.int64(marks[at.mark].span) <= place:
        mark = marks[at.mark]
        is_cold = is_cold or (mark.span == place and mark.mark == _COLD_START and mark.value != 0)
        at.mark += 1
    return is_cold


@kernel(
    types.UniTuple(types.int64, 2)(
        numba.from_dtype(SPAN)[::1],
        numba.from_dtype(MARK)[::1],
        _CURSOR_T,
        HELD_T,
        types.int64,
        ENTRIES_T,
        LABELS_T,
        types.boolean,
        types.uint64,
        types.uint64,
        types.int64[::1],
    ),
    **KERNEL,
)
def _admit(spans, marks, at, held, count, table, labels, full, seed, threshold, tally):  # type: ignore[no-untyped-def]
    stopped, sampled, place = DONE, 0, at.span
    while place < spans.size:
        span = spans[np.uintp(place)]
        trace = trace_hash(span.trace_high, span.trace_low, seed)
        if trace > threshold:
            sampled += 1
        elif (span.trace_high | span.trace_low) == 0 or span.span_id == 0:
            tally[_UNIDENTIFIED] += 1
        elif span.start_ns == 0:
            tally[_UNTIMED] += 1
        else:
            label = table[slot_of(table, span.key)].series
            if (label < 0 and not full) or count == held.size:
                stopped = FULL if count == held.size else UNKNOWN
                break
            label = max(label, 0)
            row = held[np.uintp(count)]
            count += 1
            row.trace = trace
            row.span_id = span.span_id
            row.parent_id = np.uint64(0) if span.is_root else span.parent_id
            row.start_ns = span.start_ns
            row.duration_ns = span.duration_ns
            row.arrived_ns = 0
            row.label = label
            row.kind = span.kind
            row.is_root = span.is_root
            row.failed = span.status == 1
            row.has_model = span.has_model
            row.is_cold = _is_cold(marks, at, place) or labels[np.uintp(label)].is_cold
        place += 1
    at.span = place
    tally[_SAMPLED] += sampled
    return stopped, count


@kernel(
    types.UniTuple(types.int64, 2)(
        numba.from_dtype(_BATCH)[::1],
        _CURSOR_T[::1],
        HELD_T,
        types.int64,
        ENTRIES_T,
        LABELS_T,
        types.boolean,
        types.uint64,
        types.uint64,
        types.int64[::1],
    ),
    cache=True,
    nogil=True,
)
def admit(batches, cursors, held, count, table, labels, full, seed, threshold, tally):  # type: ignore[no-untyped-def]
    """Take spans into held[count:] from the cursor on: (why it stops, the new count).

    Traces whose hash is above `threshold` are passed over. Where the labels are `full`, a span with an
    unknown key gets label 0. `tally` counts those that do not get in, by Outcome.
    """
    at = cursors[0]
    while at.batch < batches.size:
        batch = batches[at.batch]
        spans = carray(as_pointer(batch.spans), (batch.count,), SPAN)
        marks = carray(as_pointer(batch.marks), (batch.marked,), MARK)
        stopped, count = _admit(spans, marks, at, held, count, table, labels, full, seed, threshold, tally)
        if stopped != DONE:
            return stopped, count
        at.batch += 1
        at.span = 0
        at.mark = 0
    return DONE, count


@kernel(types.int64(HELD_T, types.int64), **KERNEL)
def compact(held, count):  # type: ignore[no-untyped-def]
    """Close the gaps that discarded spans have left; the new count."""
    kept = 0
    for place in range(count):
        if held[place].arrived_ns == DISCARDED:
            continue
        if kept < place:
            held[kept] = held[place]
        kept += 1
    return kept


@kernel(types.int64(HELD_T, types.int64, types.uint64, types.int64[::1]), **KERNEL)
def sample(held, count, threshold, tally):  # type: ignore[no-untyped-def]
    """Leave out the traces whose hash is above `threshold`; the new count."""
    for place in range(count):
        row = held[place]
        if row.trace > threshold:
            tally[_SAMPLED] += row.span_id != _TOMBSTONE_ID
            row.arrived_ns = DISCARDED
    return compact(held, count)


@kernel(types.uintp(HELD_T, types.int32[::1], types.uint64, types.uint64), **KERNEL)
def _trace_slot(held, table, mask, trace):  # type: ignore[no-untyped-def]
    slot = np.uintp(trace & mask)
    while table[slot] >= 0 and held[table[slot]].trace != trace:
        slot = (slot + np.uintp(1)) & np.uintp(mask)
    return slot


@kernel(
    types.int64(HELD_T, types.int64, types.int64, types.int32[::1], types.int32[::1], types.int64[::1]),
    **KERNEL,
)
def give_up_large(held, count, limit, table, sizes, tally):  # type: ignore[no-untyped-def]
    """Leave out traces of more than `limit` spans, a tombstone in place of each; the new count.

    `table` and `sizes` have the same power of two of elements, more than the count; what they hold does
    not matter.
    """
    mask = np.uint64(table.size - 1)
    table[:] = -1
    largest = np.int32(0)
    for place in range(count):
        slot = _trace_slot(held, table, mask, held[place].trace)
        if table[slot] < 0:
            table[slot] = place
            sizes[slot] = 0
        sizes[slot] += 1
        largest = max(largest, sizes[slot])
    if largest <= limit:
        return count
    for place in range(count):
        row = held[place]
        slot = _trace_slot(held, table, mask, row.trace)
        if sizes[slot] <= limit:
            continue
        tally[_TOO_LARGE] += row.span_id != _TOMBSTONE_ID
        row.span_id = _TOMBSTONE_ID
        row.parent_id = 0
        row.kind = 0
        row.is_root = row.has_model = False
        row.arrived_ns = 0 if table[slot] == place else DISCARDED
    return compact(held, count)

"""Histograms as Prometheus has them: classic buckets, native ones, and exemplars in buckets.

**Classic buckets of an exponential histogram** are cumulative counts at powers of two, or of its
square root. They are exact where each such bound is also a bucket's: from scale 1 on for square roots,
from scale 0 on for whole powers. At coarser scales a bucket counts only at bounds above the whole of it,
so a quantile read from them is never too low.

**Native buckets** (Prometheus, "Native Histograms") are the same as OpenTelemetry's up to a shift of
the index by one: Prometheus names a bucket by its upper bound, OpenTelemetry by its lower one.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

from tidegauge.metric import Exemplar, ExponentialHistogram
from tidegauge.stats.exponential import explicit_bounds

MAX_SCHEMA, MIN_SCHEMA = 8, -4
_ZERO_THRESHOLD = 1e-128
"""Where a point has none of its own ("Prometheus and OpenMetrics Compatibility")."""
_FILLED_GAP = 2
"""Empty buckets that cost less written out than a new span: a byte each against four and more."""
_NO_BUCKETS_BELOW = -12
"""At this scale the bounds are 2**-4096, 1 and 2**4096: a coarser one has no others among the doubles."""


class View(NamedTuple):
    """The classic bounds 2**(k / per_octave), k = first .. last."""

    first: int
    last: int
    per_octave: int


SECONDS = View(-26, 10, 2)
"""122 us to 32 s."""
OTHERS = View(0, 20, 1)
"""1 to 1,048,576, for whatever is counted: tokens, bytes, milliseconds."""


class Native(NamedTuple):
    """A native histogram's buckets; spans are pairs of offset and length."""

    schema: int
    zero_threshold: float
    positive_spans: list[tuple[int, int]]
    positive_deltas: list[int]
    negative_spans: list[tuple[int, int]]
    negative_deltas: list[int]


def view_of(unit: str) -> View:
    """The classic view of an exponential histogram of that unit (UCUM)."""
    return SECONDS if unit == "s" else OTHERS


@functools.cache
def classic_bounds(view: View) -> tuple[float, ...]:
    """The view's bounds, each the largest double that does not exceed it."""
    step = 2 // view.per_octave
    return explicit_bounds(view.first * step, view.last * step)[::step]


def classic_counts(point: ExponentialHistogram, view: View) -> list[int]:
    """Cumulative counts at the view's bounds, and of all."""
    scale, offset, counts = downscaled(point.scale, point.offset, point.counts)
    low = point.zero_count + sum(point.negative_counts)
    below = list(accumulate(counts, initial=low))
    most = len(counts)
    # Bucket b ends at 2**((b + 1) * 2**-scale), so those up to floor(k * 2**scale / per_octave) - 1 do by k.
    up, down = max(scale, 0), max(-scale, 0)
    per_octave = view.per_octave << down
    ends = (((k << up) // per_octave) - offset for k in range(view.first, view.last + 1))
    cumulative = [below[0 if end < 0 else end if end < most else most] for end in ends]
    if point.zero_threshold > 0:
        # The zero bucket, too, counts only at bounds above the whole of it.
        for place in range(bisect_left(classic_bounds(view), point.zero_threshold)):
            cumulative[place] -= point.zero_count
    return [*cumulative, below[-1]]


def native(point: ExponentialHistogram) -> Native | None:
    """The point's native buckets; None where it is too coarse for any schema.

    Finer than schema 8 it is made coarser: buckets nest.

    Raises:
        ValueError: where a count does not fit into 63 bits.
    """
    if point.scale < MIN_SCHEMA:
        return None
    schema, offset, counts = downscaled(point.scale, point.offset, point.counts)
    _, negative_offset, negative_counts = downscaled(
        point.scale, point.negative_offset, point.negative_counts
    )
    if max(max(counts, default=0), max(negative_counts, default=0)) >> 63:
        raise ValueError("a bucket's count exceeds 63 bits")
    positive = native_spans(offset + 1, counts)
    negative = native_spans(negative_offset + 1, negative_counts)
    if not positive[0] and not negative[0]:
        # Without any span a histogram is read as a classic one.
        positive = [(0, 0)], []
    return Native(schema, point.zero_threshold or _ZERO_THRESHOLD, *positive, *negative)


def native_spans(first: int, counts: Sequence[int]) -> tuple[list[tuple[int, int]], list[int]]:
    """Spans of buckets and the differences of their counts; `counts` are of the buckets from `first` on.

    >>> native_spans(5, (2, 3, 0, 1, 0, 0, 0, 4))
    ([(5, 4), (3, 1)], [2, 1, -3, 1, 3])
    """
    spans: list[tuple[int, int]] = []
    deltas: list[int] = []
    before, end = 0, 0
    for index, count in enumerate(counts, first):
        if not count:
            continue
        gap = index - end
        if spans and gap <= _FILLED_GAP:
            if gap:
                deltas += (-before, 0)[:gap]
                before = 0
            spans[-1] = spans[-1][0], spans[-1][1] + gap + 1
        else:
            spans.append((gap, 1))
        deltas.append(count - before)
        before, end = count, index + 1
    return spans, deltas


def downscaled(scale: int, offset: int, counts: Sequence[int]) -> tuple[int, int, Sequence[int]]:
    """Buckets of at most schema 8 and at least what doubles know; an exact merge where that is coarser."""
    by = scale - MAX_SCHEMA
    if by <= 0:
        return max(scale, _NO_BUCKETS_BELOW), offset, counts
    low = offset >> by
    merged = [0] * (((offset + len(counts) - 1) >> by) - low + 1)
    for index, count in enumerate(counts, offset):
        merged[(index >> by) - low] += count
    return MAX_SCHEMA, low, merged


def by_bucket(bounds: Sequence[float], exemplars: Iterable[Exemplar]) -> dict[int, Exemplar]:
    """The latest exemplar of each bucket, by the bucket's place; the last is above every bound."""
    found: dict[int, Exemplar] = {}
    for exemplar in exemplars:
        if not math.isnan(exemplar.value):
            place = bisect_left(bounds, exemplar.value)
            if place not in found or found[place].time_ns <= exemplar.time_ns:
                found[place] = exemplar
    return found

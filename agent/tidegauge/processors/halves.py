"""Joins Triton's model span with its compute child, whichever comes first and in whichever request.

The model span tells the model and when the request was queued, its child "compute" when the computation
began and ended. A half waits for the other one in a table of 512 sets of 8, so adding, finding and
removing touch one set. A half is given up when its set is full and it is the oldest there, and when it
has waited for 25 s; it is counted then. A model span that has no child is given up like any other:
an ensemble's own, and those of responses from Triton's cache.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
from numba import types

from tidegauge.stats.kernel import INLINE, KERNEL, kernel
from tidegauge.stats.keyed import mix
from tidegauge.wire.traces import Mark

SETS, WAYS = 512, 8
MAX_AGE_NS = 25 * 10**9
"""By the clock of `expire`, which is read every 5 s. A half has arrived at the last reading."""

FREE, MODEL, COMPUTE = 0, 1, 2
TIMES = Mark.COMPUTE_END - Mark.QUEUE_START + 1

HALF = np.dtype(
    [
        ("trace_high", np.uint64),
        ("trace_low", np.uint64),
        ("span_id", np.uint64),  # the model span's
        ("times", np.uint64, (TIMES,)),  # Unix ns of QUEUE_START to COMPUTE_END; 0 where not told
        ("number", np.uint64),  # halves that came before
        ("since_ns", np.int64),
        ("series", np.int32),  # of a model span
        ("kind", np.int32),
    ],
    align=True,
)
HALF_T = numba.from_dtype(HALF)

LOST_T = types.int64[::1]


class Halves:
    """The table: `rows`, an array of HALF of shape (SETS, WAYS), 336 KiB.

    `given` is one HALF, the one that a kernel is about to join. `lost` counts those given up, by kind.
    """

    def __init__(self, now_ns: int) -> None:
        self.rows: npt.NDArray[np.void] = np.zeros((SETS, WAYS), HALF)
        self.given: npt.NDArray[np.void] = np.zeros(1, HALF)
        self.given["since_ns"] = now_ns
        self.lost: npt.NDArray[np.int64] = np.zeros(COMPUTE + 1, np.int64)

    def expire(self, now_ns: int) -> None:
        """Give up what has waited for too long, and note the time for what comes next."""
        self.given["since_ns"] = now_ns
        kinds = self.rows["kind"]
        if (held := kinds != FREE).any():
            old = held & (self.rows["since_ns"] < now_ns - MAX_AGE_NS)
            self.lost += np.bincount(kinds[old], minlength=len(self.lost))
            kinds[old] = FREE


@kernel(types.boolean(HALF_T, HALF_T), **INLINE)
def _same(row, half):  # type: ignore[no-untyped-def]
    ids = row.span_id == half.span_id and row.trace_low == half.trace_low
    return row.kind != FREE and ids and row.trace_high == half.trace_high


@kernel(types.int64(HALF_T[:, ::1], types.int64, HALF_T), **KERNEL)
def _way(rows, ways, half):  # type: ignore[no-untyped-def]
    """The place in a set that has the ids, else a free one, else the oldest."""
    best = 0
    for way in range(WAYS):
        row = rows[ways, way]
        if _same(row, half):
            return way
        chosen = rows[ways, best]
        if chosen.kind != FREE and (row.kind == FREE or row.number < chosen.number):
            best = way
    return best


@kernel(types.boolean(HALF_T[:, ::1], HALF_T, LOST_T), **KERNEL)
def join(rows, half, lost):  # type: ignore[no-untyped-def]
    """Complete `half` with its other half, if that is there; else let it wait. Whether it is complete.

    A second half of the same kind takes the first one's place. One without valid ids cannot be joined.
    """
    half.number += np.uint64(1)
    if half.span_id == 0 or (half.trace_high | half.trace_low) == 0:
        lost[half.kind] += 1
        return False
    ways = np.int64(mix(half.trace_low ^ half.span_id) % np.uint64(SETS))
    way = _way(rows, ways, half)
    row = rows[ways, way]
    if _same(row, half) and row.kind != half.kind:
        if half.kind == COMPUTE:
            half.series = row.series
        for time in range(TIMES):
            half.times[time] |= row.times[time]
        row.kind = FREE
        return True
    if row.kind != FREE:
        lost[row.kind] += 1
    rows[ways, way] = half
    return False

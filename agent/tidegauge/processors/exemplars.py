"""The latest span in each bucket of a series: where to look when a bucket fills up.

A bucket is one of the classic view, with bounds 2**(k/2) for k = -26..10 (`explicit_bounds`), as
OpenMetrics attaches an exemplar to each of these. Kept are the ids as they came, 40 bytes a bucket and
1520 a series; they become text when a point is made of them.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
from numba import types

from tidegauge.metric import Exemplar
from tidegauge.stats.exponential import explicit_place
from tidegauge.stats.kernel import INLINE, kernel
from tidegauge.wire.traces import SPAN

FIRST, LAST = -26, 10
BUCKETS = LAST - FIRST + 2

EXEMPLAR = np.dtype(
    [
        ("trace_high", np.uint64),
        ("trace_low", np.uint64),
        ("span_id", np.uint64),  # 0: none yet
        ("end_ns", np.uint64),
        ("duration_ns", np.int64),
    ],
    align=True,
)
_PLACES = np.arange(BUCKETS, dtype=np.uint64)
EXEMPLARS_T = numba.from_dtype(EXEMPLAR)[:, ::1]


class Exemplars:
    """The latest spans of many series: `rows`, an array of EXEMPLAR of shape (series, BUCKETS)."""

    def __init__(self) -> None:
        self.rows: npt.NDArray[np.void] = np.zeros((0, BUCKETS), EXEMPLAR)
        self._made: dict[int, dict[int, Exemplar]] = {}

    def reserve(self, series: int) -> None:
        """Make room for so many series."""
        self.rows = np.concatenate([self.rows, np.zeros((series - len(self.rows), BUCKETS), EXEMPLAR)])

    def refresh(self, changed: npt.NDArray[np.uint64]) -> None:
        """Make anew what `changed` tells of each series: the set of its buckets, as bits."""
        told = np.flatnonzero(changed[: len(self.rows)])
        which, buckets = np.nonzero(changed[told, None] >> _PLACES & np.uint64(1))
        series = told[which]
        rows = self.rows[series, buckets]
        ids = np.stack([rows["trace_high"], rows["trace_low"], rows["span_id"]], axis=1).astype(">u8")
        text = ids.tobytes().hex()
        seconds = rows["duration_ns"] / 1e9
        places = zip(series.tolist(), buckets.tolist(), strict=True)
        observed = zip(seconds.tolist(), rows["end_ns"].tolist(), range(0, len(text), 48), strict=True)
        for (one, bucket), (value, end_ns, at) in zip(places, observed, strict=True):
            both = ("trace_id", text[at : at + 32]), ("span_id", text[at + 32 : at + 48])
            self._made.setdefault(one, {})[bucket] = Exemplar(value, end_ns, both)

    def of(self, series: int) -> tuple[Exemplar, ...]:
        """Those of a series, in the order of buckets, as of the last `refresh`."""
        made = self._made.get(series)
        return tuple([made[bucket] for bucket in sorted(made)]) if made else ()


@kernel(types.uint64(EXEMPLARS_T, types.int64, types.int64, numba.from_dtype(SPAN)), **INLINE)
def note(rows, series, bucket, span):  # type: ignore[no-untyped-def]
    """Keep a span as the latest in its bucket (of scale 8). Returns the place as a bit; 0 without ids."""
    if span.span_id == 0 or (span.trace_high | span.trace_low) == 0:
        return np.uint64(0)
    place = explicit_place(bucket, FIRST, LAST)
    row = rows[series, place]
    row.trace_high = span.trace_high
    row.trace_low = span.trace_low
    row.span_id = span.span_id
    row.end_ns = span.start_ns + np.uint64(span.duration_ns)
    row.duration_ns = span.duration_ns
    return np.uint64(1) << np.uint64(place)

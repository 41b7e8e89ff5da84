"""The spans of many batches as one array, so that one kernel call folds them all."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from tidegauge.batch import Spans
from tidegauge.wire.traces import MARK, SPAN

MAX_SPANS = 2**16
"""Spans joined at a time: 6.8 MB."""


class Joined:
    """Batches joined end to end: `spans`, an array of SPAN, and `marks`, one of MARK.

    A mark's `span` is its place in `spans`; the spans' offsets point into their own request's bytes,
    which `raw` tells. A single batch's arrays are not copied.

    Copying costs 1.6 us for 512 spans and 0.04 us for one; handing over addresses 0.3 us a batch.
    """

    def __init__(self, batches: Sequence[Spans]) -> None:
        self._batches = batches
        self._starts = [0, *accumulate(len(batch.columns) for batch in batches[:-1])]
        if len(batches) == 1:
            self.spans, self.marks = batches[0].columns, batches[0].marks
            return
        columns: list[Any] = [batch.columns for batch in batches]
        marks: list[Any] = [batch.marks for batch in batches]
        # np.concatenate copies structured arrays field by field, 25 times slower.
        self.spans = np.frombuffer(b"".join(columns), SPAN)
        self.marks = np.frombuffer(bytearray().join(marks), MARK)
        self.marks["span"] += np.repeat(np.array(self._starts, np.uint32), list(map(len, marks)))

    def raw(self, place: int) -> bytes:
        """The bytes of the request that holds the span at `place`."""
        return self._batches[bisect_right(self._starts, place) - 1].raw


def join(batches: Iterable[Spans]) -> Iterator[Joined]:
    """Join batches, in their order, into as few runs of at most MAX_SPANS (or one batch) as may be."""
    group: list[Spans] = []
    size = 0
    for batch in batches:
        if group and size + len(batch.columns) > MAX_SPANS:
            yield Joined(group)
            group, size = [], 0
        group.append(batch)
        size += len(batch.columns)
    if group:
        yield Joined(group)

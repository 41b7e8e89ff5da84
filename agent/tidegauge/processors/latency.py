"""Folds spans into latency histograms, one per identity, operation and status."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numba
import numpy as np
from numba import types

from tidegauge import config
from tidegauge.batch import Batch, Spans
from tidegauge.metric import Kind, Metric, Number
from tidegauge.processors.exemplars import EXEMPLARS_T, Exemplars, note
from tidegauge.processors.histograms import CHANGED, Histograms
from tidegauge.processors.joined import Joined, join
from tidegauge.processors.requests import is_request
from tidegauge.processors.series_table import OVERFLOW_SERIES, SeriesTable, find
from tidegauge.stats.exponential import HISTOGRAM_T, add
from tidegauge.stats.kernel import KERNEL, kernel
from tidegauge.stats.keyed import ENTRIES_T
from tidegauge.wire.traces import SPAN, identity, operation


class Latency:
    """The processor of `model.inference.latency`.

    A span counts where it is a request (`requests.is_request`); with `spans: all` every span counts. A
    span without a start time has no latency and is left out.

    Series are bounded by `max_series`; what comes later is counted in one that is marked as overflow.
    A point carries the latest span of each bucket of the classic view as an exemplar, and is the same
    object as long as its series does not change.
    """

    def __init__(self, settings: config.Latency, start_ns: int | None = None) -> None:
        self._every_span = settings.spans == "all"
        self._with_exemplars = settings.exemplars
        self._start_ns = time.time_ns() if start_ns is None else start_ns
        self._table = SeriesTable(settings.max_series)
        self._histograms = Histograms()
        self._exemplars = Exemplars()
        self._reserve(min(16, settings.max_series + 1))
        self._metrics: tuple[Metric, ...] = ()

    def update(self, *batches: Batch) -> Mapping[str, int]:
        """Fold trace batches."""
        untimed = sum(map(self._fold, join(batch for batch in batches if isinstance(batch, Spans))))
        return {"untimed": untimed} if untimed else {}

    def collect(self, now_ns: int) -> tuple[Metric, ...]:
        """The histograms, cumulative since the processor's start, and what overflowed."""
        self._exemplars.refresh(self._histograms.changed)
        attributes = self._table.attributes.__getitem__
        if self._histograms.refresh(attributes, self._exemplars.of) or not self._metrics:
            self._metrics = self._latency(), self._overflow()
        return self._metrics

    def _latency(self) -> Metric:
        return Metric(
            "model.inference.latency",
            Kind.EXPONENTIAL_HISTOGRAM,
            "s",
            "Duration of model requests, from their spans.",
            self._histograms.points(),
            self._start_ns,
        )

    def _overflow(self) -> Metric:
        points = self._histograms.points(slice(OVERFLOW_SERIES, OVERFLOW_SERIES + 1))
        return Metric(
            "tidegauge.latency.overflow",
            Kind.COUNTER,
            "{span}",
            "Spans counted in the overflow series because latency.max_series were there already.",
            (Number((), float(sum(point.count for point in points))),),
            self._start_ns,
        )

    def _fold(self, joined: Joined) -> int:
        done, untimed = 0, 0
        while True:
            done, skipped = _fold(
                joined.spans,
                done,
                self._every_span,
                self._table.full,
                self._table.entries,
                self._histograms.rows,
                self._histograms.changed,
                self._exemplars.rows,
            )
            untimed += int(skipped)
            if done == len(joined.spans):
                return untimed
            self._register(joined.raw(done), joined.spans[done])

    def _register(self, raw: bytes, span: np.void) -> None:
        status = "error" if span["status"] else "ok"
        series = identity(raw, span).attributes(operation=operation(raw, span), status=status)
        self._table.register(span["key"], series)
        if len(self._table.attributes) > len(self._histograms.rows):
            self._reserve(min(2 * len(self._histograms.rows), self._table.max_series + 1))

    def _reserve(self, series: int) -> None:
        self._histograms.reserve(series)
        if self._with_exemplars:
            self._exemplars.reserve(series)


@kernel(
    types.UniTuple(types.int64, 2)(
        types.Array(numba.from_dtype(SPAN), 1, "C", readonly=True),
        types.int64,
        types.boolean,
        types.boolean,
        ENTRIES_T,
        HISTOGRAM_T[::1],
        types.uint64[::1],
        EXEMPLARS_T,
    ),
    **KERNEL,
)
def _fold(spans, begin, every_span, full, entries, histograms, changed, exemplars):  # type: ignore[no-untyped-def]
    """Fold spans from `begin` on: (index of the first whose key is unknown, spans without a start)."""
    untimed = 0
    for place in range(begin, spans.size):
        span = spans[place]
        if not (every_span or is_request(span)):
            continue
        if span.start_ns == 0:
            untimed += 1
            continue
        series = find(entries, full, span.key)
        if series < 0:
            return place, untimed
        # Division, not a product with 1e-9, which would misplace a duration that is a power of two.
        bucket = add(histograms[series], np.float64(span.duration_ns) / 1e9)
        kept = CHANGED
        if exemplars.shape[0] > 0:
            kept |= note(exemplars, series, bucket, span)
        changed[series] |= kept
    return spans.size, untimed

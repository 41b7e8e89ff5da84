"""Folds spans into latency histograms, one per identity, operation and status."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numba
import numpy as np
import numpy.typing as npt
from numba import njit, types

from tidegauge import config
from tidegauge.batch import Batch, Spans
from tidegauge.identity import OVERFLOW, UNKNOWN_MODEL
from tidegauge.metric import Attributes, ExponentialHistogram, Kind, Metric, Number
from tidegauge.stats.exponential import HISTOGRAM_T, add, empty
from tidegauge.wire.traces import SPAN, identity, operation

ENTRY = np.dtype([("key", np.uint64), ("series", np.int64)], align=True)
"""A slot of the table from span key to series. Series -1: free."""

_OVERFLOW_SERIES = 0
_KEYS_PER_SERIES = 4
"""Room for spellings of one identity (a version sent as text and as a number) and for keys that overflow."""

_SERVER, _CONSUMER = 2, 5
_KERNEL = {"cache": True, "nogil": True, "_nrt": False}
_ENTRIES_T = numba.from_dtype(ENTRY)[::1]


class Latency:
    """The processor of `model.inference.latency`.

    A span counts where it is a request: of kind server or consumer, or a root, or itself naming a
    model; that leaves out a framework's inner spans, such as ASGI's "http send". With
    `spans: all` every span counts. A span without a start time has no latency and is left out.

    Series are bounded by `max_series`; what comes later is counted in one that is marked as overflow.
    """

    def __init__(self, settings: config.Latency, start_ns: int | None = None) -> None:
        self._every_span = settings.spans == "all"
        self._max_series = settings.max_series
        self._max_keys = _KEYS_PER_SERIES * settings.max_series
        self._start_ns = time.time_ns() if start_ns is None else start_ns
        self._series: dict[Attributes, int] = {OVERFLOW: _OVERFLOW_SERIES}
        self._histograms = empty(16)
        self._table = _free(64)
        self._keys = 0

    def update(self, *batches: Batch) -> Mapping[str, int]:
        """Fold trace batches."""
        untimed = sum(self._update(batch) for batch in batches if isinstance(batch, Spans))
        return {"untimed": untimed} if untimed else {}

    def _update(self, batch: Spans) -> int:
        spans, done, untimed = batch.columns, 0, 0
        while done < len(spans):
            full = self._keys >= self._max_keys
            done, skipped = _fold(spans, done, self._every_span, full, self._table, self._histograms)
            untimed += int(skipped)
            if done < len(spans):
                self._register(batch.raw, spans[done])
        return untimed

    def collect(self, now_ns: int) -> tuple[Metric, ...]:
        """The histograms, cumulative since the processor's start, and what overflowed."""
        points = (_point(key, self._histograms[series]) for key, series in self._series.items())
        latency = Metric(
            "model.inference.latency",
            Kind.EXPONENTIAL_HISTOGRAM,
            "s",
            "Duration of model requests, from their spans.",
            tuple(point for point in points if point.count),
            self._start_ns,
        )
        overflow = Metric(
            "tidegauge.latency.overflow",
            Kind.COUNTER,
            "{span}",
            "Spans counted in the overflow series because latency.max_series were there already.",
            (Number((), float(_point((), self._histograms[_OVERFLOW_SERIES]).count)),),
            self._start_ns,
        )
        return latency, overflow

    def _register(self, raw: bytes, span: np.void) -> None:
        """Give the span's key a series: a new one, one that its attributes have already, or overflow."""
        who = identity(raw, span)
        key = who._replace(model=who.model or UNKNOWN_MODEL).attributes(
            operation=operation(raw, span), status="error" if span["status"] else "ok"
        )
        if key not in self._series and len(self._series) <= self._max_series:
            self._series[key] = len(self._series)
            if len(self._series) > len(self._histograms):
                self._histograms = np.concatenate([self._histograms, empty(len(self._histograms))])
        self._keys += 1
        if 2 * self._keys > len(self._table):
            larger = _free(2 * len(self._table))
            for entry in self._table[self._table["series"] >= 0]:
                _insert(larger, entry["key"], entry["series"])
            self._table = larger
        _insert(self._table, span["key"], self._series.get(key, _OVERFLOW_SERIES))


def _free(slots: int) -> npt.NDArray[np.void]:
    table = np.zeros(slots, ENTRY)
    table["series"] = -1
    return table


def _point(attributes: Attributes, histogram: np.void) -> ExponentialHistogram:
    return ExponentialHistogram(
        attributes,
        int(histogram["scale"]),
        int(histogram["offset"]),
        tuple(histogram["counts"][: histogram["buckets"]].tolist()),
        int(histogram["zero_count"]),
        float(histogram["sum"]),
        float(histogram["min"]),
        float(histogram["max"]),
    )


@njit(types.int64(_ENTRIES_T, types.uint64), **_KERNEL)
def _slot(table, key):  # type: ignore[no-untyped-def]
    """The slot that has the key, or the free one where it belongs. The size is a power of two."""
    mask = np.uint64(table.size - 1)
    slot = key & mask
    while table[slot].series >= 0 and table[slot].key != key:
        slot = (slot + np.uint64(1)) & mask
    return np.int64(slot)


@njit(types.void(_ENTRIES_T, types.uint64, types.int64), **_KERNEL)
def _insert(table, key, series):  # type: ignore[no-untyped-def]
    entry = table[_slot(table, key)]
    entry.key = key
    entry.series = series


@njit(
    types.UniTuple(types.int64, 2)(
        numba.from_dtype(SPAN)[::1],
        types.int64,
        types.boolean,
        types.boolean,
        _ENTRIES_T,
        HISTOGRAM_T[::1],
    ),
    **_KERNEL,
)
def _fold(spans, begin, every_span, full, table, histograms):  # type: ignore[no-untyped-def]
    """Fold spans from `begin` on: (index of the first whose key is unknown, spans without a start).

    Where the table is `full`, unknown keys go to the overflow series.
    """
    untimed = 0
    for place in range(begin, spans.size):
        span = spans[place]
        is_request = span.kind in (_SERVER, _CONSUMER) or span.is_root or span.has_model
        if not (every_span or is_request):
            continue
        if span.start_ns == 0:
            untimed += 1
            continue
        series = table[_slot(table, span.key)].series
        if series < 0:
            if not full:
                return place, untimed
            series = _OVERFLOW_SERIES
        # Division, not a product with 1e-9, which would misplace a duration that is a power of two.
        add(histograms[series], np.float64(span.duration_ns) / 1e9)
    return spans.size, untimed

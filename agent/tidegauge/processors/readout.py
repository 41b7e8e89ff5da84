"""The points of received metrics, made of the state that the kernels keep."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tidegauge.metric import (
    Attributes,
    Exemplar,
    ExponentialHistogram,
    Histogram,
    Kind,
    Number,
    Point,
    Summary,
)
from tidegauge.processors.series import State


def make_exemplars(found: npt.NDArray[np.void] | None) -> tuple[Exemplar, ...]:
    """Exemplars of an array of wire.points.EXEMPLAR; those without a value are left out."""
    if found is None:
        return ()
    return tuple(
        Exemplar(value, time_ns, _ids(high, low, span))
        for value, time_ns, high, low, span in found.tolist()
        if value == value
    )


def _ids(high: int, low: int, span: int) -> Attributes:
    trace_id = f"{high:016x}{low:016x}" if high or low else ""
    span_id = f"{span:016x}" if span else ""
    return tuple((key, text) for key, text in (("trace_id", trace_id), ("span_id", span_id)) if text)


def read_point(
    state: State, row: int, kind: Kind, labels: Attributes, exemplars: tuple[Exemplar, ...]
) -> Point:
    """The point of a shown series."""
    one = state.series[row]
    total = float(one["value"])
    if np.isfinite(total):
        total += float(one["carry"])
    start_ns = int(one["start_ns"])
    match kind:
        case Kind.GAUGE:
            return Number(labels, total + int(one["whole"]))
        case Kind.COUNTER:
            value = total + int(one["whole"]) if total else float(int(one["whole"]))
            return Number(labels, value, start_ns, exemplars[-1] if exemplars else None)
        case Kind.HISTOGRAM:
            counts, bounds = _cells(state, one)
            return Histogram(labels, bounds, counts, total, start_ns, exemplars)
        case Kind.SUMMARY:
            first, size = int(one["cells"]), 2 * int(one["buckets"])
            flat = state.floats[first : first + size].tolist() if size else []
            # One sample each, and no other quantiles: OpenMetrics' readers refuse the whole page for one.
            pairs = {q: value for q, value in zip(flat[::2], flat[1::2], strict=True) if 0 <= q <= 1}
            return Summary(labels, int(one["whole"]), total, tuple(sorted(pairs.items())), start_ns)
        case _:
            return _exponential(state, one, labels, total, exemplars)


def _cells(state: State, one: np.void) -> tuple[tuple[int, ...], tuple[float, ...]]:
    first, buckets = int(one["cells"]), int(one["buckets"])
    counts = state.cells[first : first + buckets].tolist()
    bounds = state.floats[first + buckets : first + 2 * buckets - 1].tolist()
    return tuple(counts), tuple(bounds)


def _exponential(
    state: State, one: np.void, labels: Attributes, total: float, exemplars: tuple[Exemplar, ...]
) -> ExponentialHistogram:
    merged = state.exponentials[int(one["cells"])]
    offsets, sizes = merged["offset"].tolist(), merged["buckets"].tolist()
    positive, negative = (merged["counts"][side, : sizes[side]].tolist() for side in (0, 1))
    return ExponentialHistogram(
        labels,
        int(merged["scale"]),
        offsets[0],
        tuple(positive),
        int(merged["zero_count"]),
        total,
        float(one["min"]),
        float(one["max"]),
        offsets[1],
        tuple(negative),
        float(merged["zero_threshold"]),
        int(one["start_ns"]),
        exemplars,
    )

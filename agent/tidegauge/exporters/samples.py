"""A snapshot as samples of single series, as Prometheus keeps them and remote write sends them.

The series are those of the text formats, with the same names and labels: buckets, counts and sums each by
itself. An exponential histogram may be a native one instead, which is one series.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from tidegauge.exporters.buckets import (
    Native,
    by_bucket,
    classic_bounds,
    classic_counts,
    native,
    view_of,
)
from tidegauge.exporters.families import Family, check_points, families, label_pairs
from tidegauge.exporters.pause import Pause
from tidegauge.exporters.text_format import ascending, go_float
from tidegauge.metric import Exemplar, ExponentialHistogram, Histogram, Kind, Metric, Summary, Table

Labels = tuple[tuple[str, str], ...]
"""Label pairs in the order of their names, `__name__` among them."""


class NativeHistogram(NamedTuple):
    """A native histogram's totals and buckets."""

    observations: int
    sum: float
    zero_count: int
    buckets: Native


class Sample(NamedTuple):
    """A series' value at the snapshot's time. `start_ms` is when a cumulative one began, 0 where unknown."""

    labels: Labels
    value: float | NativeHistogram
    family: Family
    start_ms: int = 0
    exemplars: tuple[Exemplar, ...] = ()


def samples(
    metrics: Iterable[Metric], *, also: Mapping[str, str], histograms: bool = False
) -> Iterator[Sample]:
    """The samples of `metrics`, each series once.

    `also` are labels of every series that does not have them: job and instance, which a scrape would add.
    With `histograms` exponential histograms are native ones where Prometheus has a schema for them. What
    cannot be written is left out, as from the pages.
    """
    pause, seen = Pause(), set[Labels]()
    for family in families(metrics)[0]:
        for metric in family.metrics:
            for sample in _sound(family, metric, also, histograms):
                pause()
                if sample.labels not in seen:
                    seen.add(sample.labels)
                    yield sample


def _sound(family: Family, metric: Metric, also: Mapping[str, str], histograms: bool) -> Iterator[Sample]:
    """Nothing of a metric with a point that is none of its kind, and nothing of a histogram that is none."""
    try:
        check_points(metric.kind, metric.points)
    except TypeError:
        return
    for point in metric.points:
        assert not isinstance(point, Table)  # Snapshot.metrics has none
        pairs = {**also, **dict(label_pairs(point.attributes, family.type))}
        start_ms = (point.start_ns or metric.start_ns) // 10**6
        try:
            found = list(_of_point(family, metric, point, histograms))
        except ValueError:
            continue
        for suffix, own, value, exemplars in found:
            labels = {"__name__": family.name + suffix, **pairs, **own}
            start = 0 if metric.kind is Kind.GAUGE else start_ms
            yield Sample(tuple(sorted(labels.items())), value, family, start, exemplars)


_Part = tuple[str, dict[str, str], float | NativeHistogram, tuple[Exemplar, ...]]
"""What follows the family's name, labels besides the point's, the value and its exemplars."""


def _of_point(family: Family, metric: Metric, point: Any, histograms: bool) -> Iterator[_Part]:
    match metric.kind:
        case Kind.GAUGE:
            yield "", {}, point.value, ()
        case Kind.COUNTER:
            if point.value >= 0:
                yield "_total", {}, point.value, () if point.exemplar is None else (point.exemplar,)
        case Kind.HISTOGRAM:
            yield from _explicit(point)
        case Kind.EXPONENTIAL_HISTOGRAM:
            buckets = native(point) if histograms else None
            if buckets is None:
                yield from _classic(point, metric.unit)
            else:
                whole = NativeHistogram(point.count, point.sum, point.zero_count, buckets)
                yield "", {}, whole, tuple(one for one in point.exemplars if one.time_ns)
        case Kind.SUMMARY:
            yield from _summary(point)


def _explicit(point: Histogram) -> Iterator[_Part]:
    les = ascending(point.bounds)
    if len(point.counts) != len(les):
        raise ValueError(f"{len(point.counts)} counts between {len(point.bounds)} bounds")
    total = point.sum if not point.bounds or point.bounds[0] >= 0 else math.nan
    return _buckets(les, list(accumulate(point.counts)), total, by_bucket(point.bounds, point.exemplars))


def _classic(point: ExponentialHistogram, unit: str) -> Iterator[_Part]:
    view = view_of(unit)
    bounds = classic_bounds(view)
    total = math.nan if any(point.negative_counts) else point.sum
    exemplars = by_bucket(bounds, point.exemplars)
    return _buckets(ascending(bounds), classic_counts(point, view), total, exemplars)


def _buckets(
    les: Sequence[str], below: Sequence[int], total: float, exemplars: Mapping[int, Exemplar]
) -> Iterator[_Part]:
    for place, (le, count) in enumerate(zip(les, below, strict=True)):
        found = (exemplars[place],) if place in exemplars else ()
        yield "_bucket", {"le": le}, float(count), found
    if total >= 0:
        yield "_count", {}, float(below[-1]), ()
        yield "_sum", {}, total, ()


def _summary(point: Summary) -> Iterator[_Part]:
    for quantile, value in point.quantiles:
        if not value < 0:
            yield "", {"quantile": go_float(quantile)}, value, ()
    yield "_count", {}, float(point.count), ()
    if point.sum >= 0:
        yield "_sum", {}, point.sum, ()

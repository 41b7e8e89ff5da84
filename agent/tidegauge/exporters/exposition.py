"""Metrics as Prometheus text 0.0.4 and OpenMetrics 1.0, through prometheus_client's own encoders."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from prometheus_client import exposition as text
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from tidegauge.exporters.naming import labels, metric_name, unit_suffix
from tidegauge.metric import ExponentialHistogram, Histogram, Kind, Metric, Number, Point
from tidegauge.stats.exponential import explicit_bounds, explicit_counts

_TYPES = {
    Kind.GAUGE: "gauge",
    Kind.COUNTER: "counter",
    Kind.HISTOGRAM: "histogram",
    Kind.EXPONENTIAL_HISTOGRAM: "histogram",
}
# The sample names that a family of each type takes for itself (OpenMetrics 1.0, "Suffixes").
_SUFFIXES = {
    "gauge": ("",),
    "counter": ("", "_total", "_created"),
    "histogram": ("", "_bucket", "_count", "_sum", "_created"),
}


def _le(bound: float) -> str:
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]


_LE = tuple(map(_le, explicit_bounds()))


class Format(enum.Enum):
    """A text format that is served."""

    TEXT = "text"
    OPENMETRICS = "openmetrics"


class Exposition(NamedTuple):
    """A rendered page, and why any metric is not on it."""

    body: bytes
    left_out: tuple[str, ...]


class _Families:
    """What prometheus_client's encoders ask of a registry."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        return self._families


def render(metrics: Iterable[Metric], form: Format) -> Exposition:
    """The exposition of `metrics`; UTF-8. A metric that cannot stand beside the others is left out."""
    found, left_out = families(metrics)
    if form is Format.OPENMETRICS:
        body = openmetrics.generate_latest(_Families(found), version="1.0.0")  # type: ignore[no-untyped-call]
    else:
        body = text.generate_latest(_Families(found))
    return Exposition(body, tuple(left_out))


def families(metrics: Iterable[Metric]) -> tuple[list[Family], list[str]]:
    """prometheus_client's families, in the order given, and what was left out and why.

    Metrics of one Prometheus name and type are one family, the first one's HELP. One whose name is
    taken by a family of another type is left out, as the specification has it, and so are a series
    that was there already and a counter that is negative or NaN.
    """
    found: dict[str, Family] = {}
    owners: dict[str, str] = {}
    series: dict[str, set[frozenset[tuple[str, str]]]] = {}
    left_out: list[str] = []
    for metric in metrics:
        name, kind = _family_name(metric), _TYPES[metric.kind]
        if name not in found or found[name].type != kind:
            taken = {name + suffix for suffix in _SUFFIXES[kind]}
            if clash := sorted(taken & owners.keys()):
                left_out.append(f"{metric.name}: {clash[0]} is taken by {owners[clash[0]]}")
                continue
            owners |= dict.fromkeys(taken, metric.name)
            series[name] = set()
            found[name] = Family(name, metric.description, kind, _unit(metric, name))
        try:
            found[name].samples += list(_samples(name, metric, series[name]))
        except (TypeError, ValueError) as error:
            left_out.append(f"{metric.name}: {error}")
    return [family for family in found.values() if family.samples], left_out


def half_power_counts(point: ExponentialHistogram) -> list[int]:
    """Cumulative counts at the bounds 2**(k/2), k = -26..10 (0.12 ms to 32 s), and above them all.

    Exact at scale 1 and above, where every such bound is also a bucket's. Below that a bucket counts
    only at bounds above the whole of it, so a quantile read from these is never too low.
    """
    if point.scale >= 1:
        counts = explicit_counts(point.scale, point.offset, point.counts, point.zero_count)
        return list(accumulate(counts))
    parts = [explicit_counts(1, 0, (), point.zero_count)]
    for bucket, count in enumerate(point.counts, point.offset):
        topmost = ((bucket + 1) << (1 - point.scale)) - 1
        parts.append(explicit_counts(1, topmost, (count,), 0))
    return list(accumulate(map(sum, zip(*parts, strict=True))))


def _family_name(metric: Metric) -> str:
    name = metric_name(metric.name, metric.unit, metric.kind)
    return name.removesuffix("_total") if metric.kind is Kind.COUNTER else name


def _unit(metric: Metric, name: str) -> str:
    unit = unit_suffix(metric.unit, metric.kind)
    return unit if unit and name.endswith(f"_{unit}") else ""


def _samples(name: str, metric: Metric, series: set[frozenset[tuple[str, str]]]) -> Iterator[Sample]:
    for point in metric.points:
        pairs = labels(point.attributes)
        key = frozenset(pairs.items())
        if key not in series:
            series.add(key)
            yield from _point(name, metric.kind, point, pairs)


def _point(name: str, kind: Kind, point: Point, pairs: dict[str, str]) -> Iterator[Sample]:
    match kind, point:
        case Kind.GAUGE, Number(value=value):
            yield Sample(name, pairs, value)
        case Kind.COUNTER, Number(value=value):
            if value >= 0:  # OpenMetrics: neither negative nor NaN
                yield Sample(f"{name}_total", pairs, value)
        case Kind.HISTOGRAM, Histogram(bounds=bounds, counts=counts):
            le = tuple(map(_le, bounds))
            below = list(accumulate(counts))
            # OpenMetrics: a sum that could fall, and so the count, is not told.
            total = point.sum if not bounds or bounds[0] >= 0 else math.nan
            yield from _histogram(name, pairs, le, below, total)
        case Kind.EXPONENTIAL_HISTOGRAM, ExponentialHistogram():
            yield from _histogram(name, pairs, _LE, half_power_counts(point), point.sum)
        case _:
            raise TypeError(f"a {type(point).__name__} is no point of a {kind.value}")


def _histogram(
    name: str, pairs: dict[str, str], le: Sequence[str], below: Sequence[int], total: float
) -> Iterator[Sample]:
    if "le" in pairs:
        # As Prometheus renames a label of a target that clashes with its own.
        pairs = {"exported_le" if key == "le" else key: value for key, value in pairs.items()}
    bucket = f"{name}_bucket"
    for bound, cumulative in zip((*le, "+Inf"), below, strict=True):
        yield Sample(bucket, {**pairs, "le": bound}, cumulative)
    if not math.isnan(total):
        yield Sample(f"{name}_count", pairs, below[-1])
        yield Sample(f"{name}_sum", pairs, total)

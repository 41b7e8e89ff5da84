"""The one shape in which processors and scrapers hand numbers to exporters.

Names and units are OpenTelemetry's (dotted names, UCUM units); an exporter translates. Everything
here is immutable, so a snapshot may be read from any thread while the next one is being made.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec

Attributes = tuple[tuple[str, str], ...]
"""Attribute pairs in a stable order. An empty value is left out: Prometheus reads it as absent."""


class Kind(enum.Enum):
    """What a metric's points mean."""

    GAUGE = "gauge"
    COUNTER = "counter"  # cumulative and monotonic
    HISTOGRAM = "histogram"  # cumulative, explicit bounds
    EXPONENTIAL_HISTOGRAM = "exponential_histogram"  # cumulative, base 2
    SUMMARY = "summary"  # cumulative, with quantiles that somebody else computed
    TABLE = "table"  # for the snapshot alone: too much for series


class Exemplar(msgspec.Struct, frozen=True, gc=False):
    """One observation, and where it came from: `trace_id` and `span_id`, in hex, come first.

    `time_ns` is the Unix time of the observation.
    """

    value: float
    time_ns: int
    attributes: Attributes


class Number(msgspec.Struct, frozen=True, gc=False):
    """One gauge or counter value. `start_ns` is a counter's own start, where not the metric's."""

    attributes: Attributes
    value: float
    start_ns: int = 0
    exemplar: Exemplar | None = None


class Histogram(msgspec.Struct, frozen=True):
    """Counts between explicit bounds: `counts[i]` lies in (bounds[i-1], bounds[i]].

    `counts` has one entry more than `bounds`; the last is above every bound.
    """

    attributes: Attributes
    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    start_ns: int = 0
    exemplars: tuple[Exemplar, ...] = ()


class ExponentialHistogram(msgspec.Struct, frozen=True):
    """An OpenTelemetry base-2 exponential histogram.

    `counts[i]` lies in (base**(offset+i), base**(offset+i+1)] with base = 2**(2**-scale), and
    `negative_counts` is the same for the absolute values of negative ones. `zero_count` holds what is
    at most `zero_threshold` from zero. `min` and `max` are exact.
    """

    attributes: Attributes
    scale: int
    offset: int
    counts: tuple[int, ...]
    zero_count: int
    sum: float
    min: float
    max: float
    negative_offset: int = 0
    negative_counts: tuple[int, ...] = ()
    zero_threshold: float = 0.0
    start_ns: int = 0
    exemplars: tuple[Exemplar, ...] = ()

    @property
    def count(self) -> int:
        """Observations in all."""
        return self.zero_count + sum(self.counts) + sum(self.negative_counts)


class Summary(msgspec.Struct, frozen=True):
    """Quantiles that the sender computed: pairs of a quantile in [0, 1] and its value."""

    attributes: Attributes
    count: int
    sum: float
    quantiles: tuple[tuple[float, float], ...]
    start_ns: int = 0


class Table(msgspec.Struct, frozen=True, gc=False):
    """Rows of numbers under common column names: `values[row][i]` belongs to `columns[i]`."""

    attributes: Attributes
    columns: tuple[str, ...]
    values: dict[str, tuple[float, ...]]


Shown = Number | Histogram | ExponentialHistogram | Summary
Point = Shown | Table


class Metric(msgspec.Struct, frozen=True):
    """A named family of points of one kind.

    `unit` is UCUM: `s`, `By`, `1` for a ratio, `{row}` for an annotation. `start_ns` is the Unix
    time from which cumulative kinds count; 0 where it does not apply. `received`: a sender made it,
    and what it sent is forwarded as it came, so it is shown but never pushed again.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    points: Sequence[Point]
    start_ns: int = 0
    received: bool = False


def attributes(**pairs: str) -> Attributes:
    """Attribute pairs without the empty ones.

    >>> attributes(model="fraud", stage="")
    (('model', 'fraud'),)
    """
    return tuple([pair for pair in pairs.items() if pair[1]])

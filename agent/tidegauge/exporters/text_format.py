"""Prometheus text 0.0.4 and OpenMetrics text 1.0.

They differ in the lines above a family, in exemplars, which only OpenMetrics has, and in its last line.
The samples are the same, so that a series is the same whichever a scraper asks for:

- No `_created`: it would be one more series for each counter and histogram.
- No `_sum`, and so no `_count`, of a histogram with values below zero, nor where the sum is unknown: a
  counter cannot fall (OpenMetrics 1.0, "Histogram").
- No counter that is negative or NaN.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from tidegauge.exporters.buckets import by_bucket, classic_bounds, classic_counts, view_of
from tidegauge.exporters.families import Family, check_points, exemplar_pairs, label_pairs
from tidegauge.metric import (
    Attributes,
    Exemplar,
    ExponentialHistogram,
    Histogram,
    Kind,
    Metric,
    Number,
    Summary,
)

Points = Sequence[tuple[str, Any]]
"""Points, of the metric's kind, with their keys: the labels in braces, or nothing."""


class Text:
    """Text 0.0.4. What a series is known by is its labels as written, braces included."""

    end = b""
    _exemplars = False

    def key(self, attributes: Attributes, type_: str) -> str:
        """The labels of a series of a family of that type."""
        return braced(label_pairs(attributes, type_))

    def head(self, family: Family, size: int) -> bytes:
        """The lines above the samples; `size` is theirs in bytes, which text does not tell."""
        name = f"{family.name}_total" if family.type == "counter" else family.name
        text = family.help.replace("\\", r"\\").replace("\n", r"\n")
        return f"# HELP {name} {text}\n# TYPE {name} {family.type}\n".encode("utf-8", "replace")

    def points(self, family: Family, metric: Metric, points: Points) -> bytes:
        """The samples of some points of one of the family's metrics.

        Raises:
            TypeError: where a point is none of the metric's kind.
            ValueError: where a histogram's bounds do not ascend, or are not one less than its counts.
        """
        check_points(metric.kind, [point for _, point in points])
        name = family.name
        match metric.kind:
            case Kind.GAUGE:
                return self._numbers(name, points)
            case Kind.COUNTER:
                return self._numbers(f"{name}_total", [one for one in points if one[1].value >= 0])
            case Kind.HISTOGRAM:
                lines = [self._histogram(name, *one) for one in points]
            case Kind.EXPONENTIAL_HISTOGRAM:
                lines = [self._exponential(name, metric.unit, *one) for one in points]
            case Kind.SUMMARY:
                lines = [self._summary(name, *one) for one in points]
        return "".join(lines).encode()

    def _numbers(self, name: str, points: Sequence[tuple[str, Number]]) -> bytes:
        values = [point.value for _, point in points]
        # A sum is not finite where a value is not, and asking once is three times as quick.
        if math.isfinite(sum(values)):
            lines = [f"{name}{key} {value}\n" for (key, _), value in zip(points, values, strict=True)]
        else:
            lines = [
                f"{name}{key} {go_float(value)}\n" for (key, _), value in zip(points, values, strict=True)
            ]
        if self._exemplars:
            for place, (_, point) in enumerate(points):
                if point.exemplar is not None:
                    lines[place] = f"{lines[place][:-1]}{exemplar_text(point.exemplar)}\n"
        return "".join(lines).encode()

    def _histogram(self, name: str, key: str, point: Histogram) -> str:
        les = ascending(point.bounds)
        if len(point.counts) != len(les):
            raise ValueError(f"{len(point.counts)} counts between {len(point.bounds)} bounds")
        # A first bound below zero lets values be so, too.
        total = point.sum if not point.bounds or point.bounds[0] >= 0 else math.nan
        below = list(accumulate(point.counts))
        return self._buckets(name, key, les, below, total, by_bucket(point.bounds, point.exemplars))

    def _exponential(self, name: str, unit: str, key: str, point: ExponentialHistogram) -> str:
        view = view_of(unit)
        bounds = classic_bounds(view)
        total = math.nan if any(point.negative_counts) else point.sum
        below = classic_counts(point, view)
        return self._buckets(name, key, ascending(bounds), below, total, by_bucket(bounds, point.exemplars))

    def _buckets(
        self,
        name: str,
        key: str,
        les: Sequence[str],
        below: Sequence[int],
        total: float,
        exemplars: Mapping[int, Exemplar],
    ) -> str:
        stem = f"{name}_bucket{key[:-1]}," if key else f"{name}_bucket{{"
        lines = [f'{stem}le="{le}"}} {count}\n' for le, count in zip(les, below, strict=True)]
        if self._exemplars:
            for place, exemplar in exemplars.items():
                lines[place] = f"{lines[place][:-1]}{exemplar_text(exemplar)}\n"
        if total >= 0:
            lines.append(f"{name}_count{key} {below[-1]}\n{name}_sum{key} {go_float(total)}\n")
        return "".join(lines)

    def _summary(self, name: str, key: str, point: Summary) -> str:
        stem = f"{name}{key[:-1]}," if key else f"{name}{{"
        lines = [
            f'{stem}quantile="{go_float(quantile)}"}} {go_float(value)}\n'
            for quantile, value in point.quantiles
            if not value < 0  # OpenMetrics allows NaN and no negative one
        ]
        lines.append(f"{name}_count{key} {point.count}\n")
        if point.sum >= 0:
            lines.append(f"{name}_sum{key} {go_float(point.sum)}\n")
        return "".join(lines)


class OpenMetrics(Text):
    """OpenMetrics 1.0: exemplars, units, and an end that shows that nothing is missing."""

    end = b"# EOF\n"
    _exemplars = True

    def head(self, family: Family, size: int) -> bytes:
        """As in text, but a counter's family has no `_total`."""
        name, text = family.name, escaped(family.help)
        unit = f"# UNIT {name} {family.unit}\n" if family.unit else ""
        return f"# HELP {name} {text}\n# TYPE {name} {family.type}\n{unit}".encode("utf-8", "replace")


def escaped(text: str) -> str:
    """As it stands between quotes."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def braced(pairs: Sequence[tuple[str, str]]) -> str:
    """Labels in braces; nothing where there are none."""
    inner = ",".join([f'{name}="{escaped(value)}"' for name, value in pairs])
    return f"{{{inner}}}" if inner else ""


def exemplar_text(exemplar: Exemplar) -> str:
    """What follows a sample: labels, value and, in seconds, the time (OpenMetrics 1.0, "Exemplars")."""
    time_s = f" {exemplar.time_ns / 1e9:.3f}" if exemplar.time_ns else ""
    return f" # {braced(exemplar_pairs(exemplar)) or '{}'} {go_float(exemplar.value)}{time_s}"


def go_float(value: float) -> str:
    """A double as Go writes it with %g and OpenMetrics wants it in `le`: 1.0, 1e+06, 1.048576e+06, +Inf.

    >>> [go_float(value) for value in (0.5, 100000, 1048576.0, 1e6, -1e-5, float("inf"))]
    ['0.5', '100000.0', '1.048576e+06', '1e+06', '-1e-05', '+Inf']
    """
    text = str(float(value))
    if not math.isfinite(value):
        return {"inf": "+Inf", "-inf": "-Inf"}.get(text, "NaN")
    if "e" in text or -1e6 < value < 1e6:
        return text
    digits = text.removeprefix("-").removesuffix(".0")
    whole, _, fraction = digits.partition(".")
    mantissa = f"{whole[0]}.{whole[1:]}{fraction}".rstrip("0").rstrip(".")
    return f"{'-' if value < 0 else ''}{mantissa}e+{len(whole) - 1:02}"


@functools.lru_cache(maxsize=256)
def ascending(bounds: tuple[float, ...]) -> tuple[str, ...]:
    """The values of `le` for finite, strictly ascending bounds, and +Inf.

    Raises:
        ValueError: where they are not.
    """
    whole = (-math.inf, *bounds, math.inf)
    if not all(low < high for low, high in pairwise(whole)):
        raise ValueError("bounds do not ascend")
    return tuple(map(go_float, whole[1:]))

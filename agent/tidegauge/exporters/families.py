"""Metrics as Prometheus families: what their names are, and which cannot stand beside the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tidegauge.exporters.naming import labels, metric_name, unit_suffix
from tidegauge.metric import (
    Attributes,
    Exemplar,
    ExponentialHistogram,
    Histogram,
    Kind,
    Metric,
    Number,
    Point,
    Summary,
)

TYPES = {
    Kind.GAUGE: "gauge",
    Kind.COUNTER: "counter",
    Kind.HISTOGRAM: "histogram",
    Kind.EXPONENTIAL_HISTOGRAM: "histogram",
    Kind.SUMMARY: "summary",
}
"""The type of each kind's family."""

_POINTS: dict[Kind, type[Point]] = {
    Kind.GAUGE: Number,
    Kind.COUNTER: Number,
    Kind.HISTOGRAM: Histogram,
    Kind.EXPONENTIAL_HISTOGRAM: ExponentialHistogram,
    Kind.SUMMARY: Summary,
}
# The sample names that a family of each type takes for itself (OpenMetrics 1.0, "Suffixes").
_SUFFIXES = {
    "gauge": ("",),
    "counter": ("", "_total", "_created"),
    "histogram": ("", "_bucket", "_count", "_sum", "_created"),
    "summary": ("", "_count", "_sum", "_created"),
}
_OWN_LABEL = {"histogram": "le", "summary": "quantile"}
_MOST_EXEMPLAR_CHARACTERS = 128  # OpenMetrics 1.0, "Exemplars": names and values together


class Family(NamedTuple):
    """Metrics of one Prometheus name and type. `name` is without a counter's `_total`."""

    name: str
    type: str
    unit: str
    help: str
    metrics: list[Metric]


def families(metrics: Iterable[Metric]) -> tuple[list[Family], list[str]]:
    """Families in the order of their first metric, and what was left out and why.

    Metrics of one name and type are one family, the first one's HELP and UNIT. One whose name is taken
    by a family of another type is left out, as the specification has it ("Prometheus and OpenMetrics
    Compatibility"). So is a sender's where the family is the agent's own: sums over that are to be true.
    """
    found: dict[str, Family] = {}
    owners: dict[str, str] = {}
    left_out: list[str] = []
    for metric in metrics:
        kind = TYPES[metric.kind]
        name = metric_name(metric.name, metric.unit, metric.kind)
        name = name.removesuffix("_total") if kind == "counter" else name
        family = found.get(name)
        if family is None or (family.type, family.metrics[0].received) != (kind, metric.received):
            taken = {name + suffix for suffix in _SUFFIXES[kind]}
            if clash := sorted(taken & owners.keys()):
                left_out.append(f"{metric.name}: {clash[0]} is taken by {owners[clash[0]]}")
                continue
            owners |= dict.fromkeys(taken, metric.name)
            family = found[name] = Family(name, kind, _unit(metric, name), metric.description, [])
        family.metrics.append(metric)
    return list(found.values()), left_out


def label_pairs(attributes: Attributes, type_: str) -> list[tuple[str, str]]:
    """A series' labels, sorted by name, so that equal ones are equal whatever order they came in.

    An attribute called as the label that a histogram or a summary needs for itself becomes
    `exported_le` or `exported_quantile`, as Prometheus renames a target's labels that clash with its own.
    """
    found = labels(attributes)
    own = _OWN_LABEL.get(type_)
    if own in found:
        found = labels(tuple((f"exported_{own}" if key == own else key, value) for key, value in attributes))
    return sorted(found.items())


def exemplar_pairs(exemplar: Exemplar) -> list[tuple[str, str]]:
    """Labels of an exemplar, from the first on as many as are allowed."""
    room, pairs = _MOST_EXEMPLAR_CHARACTERS, []
    for name, value in labels(exemplar.attributes).items():
        room -= len(name) + len(value)
        if room < 0:
            break
        pairs.append((name, value))
    return pairs


def check_points(kind: Kind, points: Sequence[Point]) -> None:
    """Raises TypeError where a point is none of the kind."""
    for wrong in set(map(type, points)) - {_POINTS[kind]}:
        raise TypeError(f"a {wrong.__name__} is no point of a {kind.value}")


def _unit(metric: Metric, name: str) -> str:
    unit = unit_suffix(metric.unit, metric.kind)
    return unit if unit and name.endswith(f"_{unit}") else ""

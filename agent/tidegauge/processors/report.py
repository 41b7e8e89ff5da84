"""How the drift of a window is written down: metric names, units, descriptions and points."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegauge.identity import Identity
from tidegauge.layout import Kind, Role
from tidegauge.metric import Histogram, Number, Point
from tidegauge.metric import Kind as MetricKind
from tidegauge.processors.counts import Tally
from tidegauge.processors.evidence import NULL_QUANTILE, PRIMARY, Evidence

Points = dict[str, list[Point]]
"""Points by metric name."""


def family(role: Role) -> tuple[str, str]:
    """A role's metric prefix, and the attribute that holds its columns' names."""
    return ("feature", "feature") if role is Role.FEATURE else ("prediction", "output")


def describe(identity: Identity, column: Tally, points: Points) -> None:
    """Points that need no reference to be large enough: rows, shares and counts."""
    profile = column.profile
    prefix, key = family(profile.role)
    where = identity.attributes(**{key: profile.name})
    present, rows = column.rows, column.rows + column.missing
    points[f"{prefix}.window.rows"].append(Number(where, float(rows)))
    if rows:
        points[f"{prefix}.missing"].append(Number(where, column.missing / rows))
    if present and profile.kind is Kind.CATEGORICAL:
        points[f"{prefix}.unseen"].append(Number(where, int(column.counts[-1]) / present))
    if present and profile.rows and profile.kind is Kind.NUMERIC:
        points[f"{prefix}.out_of_range"].append(Number(where, column.out_of_range / present))
        if prefix == "prediction" and present > column.infinite:
            mean = profile.center + _sum(column.sums) / (present - column.infinite)
            if math.isfinite(mean):
                points["prediction.mean"].append(Number(where, mean))
    for label, count in zip(
        (*profile.bin_labels(), "__missing__"), (*column.counts.tolist(), column.missing), strict=True
    ):
        points[f"{prefix}.window.count"].append(
            Number(identity.attributes(**{key: profile.name, "bin": label}), float(count))
        )


def report(identity: Identity, column: Tally, its: Evidence, drifted: bool, points: Points) -> None:
    """Points of a column that is judged: statistics, p-values and the verdict."""
    prefix, key = family(column.profile.role)
    where = {key: column.profile.name}
    points[f"{prefix}.drift.score"].append(Number(identity.attributes(**where), its.score))
    points[f"{prefix}.drifted"].append(Number(identity.attributes(**where), float(drifted)))
    quantile = identity.attributes(**where, statistic=PRIMARY, probability=str(NULL_QUANTILE))
    points[f"{prefix}.drift.null_quantile"].append(Number(quantile, its.null_quantile))
    for name, value in its.statistics.items():
        points[f"{prefix}.drift.statistic"].append(
            Number(identity.attributes(**where, statistic=name), value)
        )
    for name, value in its.p_values.items():
        points[f"{prefix}.drift.p_value"].append(Number(identity.attributes(**where, statistic=name), value))


def lifetime(identity: Identity, column: Tally) -> Histogram:
    """All values of a numeric output since the start.

    `sum` is of the finite ones, and NaN where they have none among the doubles.
    """
    total = column.profile.center * (column.rows - column.infinite) + _sum(column.sums)
    total = total if math.isfinite(total) else math.nan
    where = identity.attributes(output=column.profile.name)
    return Histogram(where, tuple(column.profile.edges.tolist()), tuple(column.counts.tolist()), total)


def _sum(sums: npt.NDArray[np.float64]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(sums.sum())


class About(NamedTuple):
    """How a metric is described to exporters."""

    kind: MetricKind
    unit: str
    description: str


def _about(prefix: str, what: str) -> dict[str, About]:
    gauge = MetricKind.GAUGE
    return {
        f"{prefix}.drift.score": About(gauge, "{score}", f"The {what}'s distance to its reference: PSI."),
        f"{prefix}.drift.statistic": About(gauge, "{score}", f"Distances of the {what} to its reference."),
        f"{prefix}.drift.p_value": About(
            gauge, "{probability}", "Probability of so large a statistic without drift."
        ),
        f"{prefix}.drift.null_quantile": About(
            gauge, "{score}", "The statistic's quantile without drift, at the rows at hand."
        ),
        f"{prefix}.drifted": About(
            gauge,
            "{verdict}",
            "1 where the drift is significant and material; absent where it is not judged.",
        ),
        f"{prefix}.window.rows": About(
            gauge, "{row}", f"Rows of the {what} in the window, missing ones too."
        ),
        f"{prefix}.missing": About(gauge, "1", "Share of the window's rows without a value (null or NaN)."),
        f"{prefix}.unseen": About(gauge, "1", "Share of values that are no category of the reference."),
        f"{prefix}.out_of_range": About(gauge, "1", "Share of values outside the reference's range."),
        f"{prefix}.window.count": About(gauge, "{row}", "Rows per bin in the window; adds up over replicas."),
        f"{prefix}.reference.count": About(gauge, "{row}", "Rows per bin in the reference."),
        f"{prefix}.skipped": About(
            gauge, "{column}", "1 for a column that gets no statistics, with the reason."
        ),
    }


METRICS: dict[str, About] = {
    **_about("feature", "feature"),
    **_about("prediction", "output"),
    "prediction.mean": About(MetricKind.GAUGE, "{value}", "Mean of the output in the window."),
    "prediction.histogram": About(
        MetricKind.HISTOGRAM, "{value}", "Values of the output since the start, on the reference's bins."
    ),
    "reference.rows": About(MetricKind.GAUGE, "{row}", "Rows that the model's reference is made of."),
    "reference.ready": About(
        MetricKind.GAUGE, "{verdict}", "1 where the model has a reference, 0 while its first rows become one."
    ),
}
"""Every metric of this processor, in the order in which they are shown."""

"""How the drift of a window is written down: metric names, units, descriptions and points."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegauge.heavy_hitters import Ranked
from tidegauge.identity import Identity
from tidegauge.layout import Kind, Role
from tidegauge.metric import Attributes, Histogram
from tidegauge.metric import Kind as MetricKind
from tidegauge.processors.drift.alarms import Alarms
from tidegauge.processors.drift.counts import Tables, Tally
from tidegauge.processors.drift.evidence import EMPTY_REFERENCE, FEW_ROWS, NULL_QUANTILE, Evidence
from tidegauge.profile import Profile, category_label
from tidegauge.runs import Column
from tidegauge.stats.comparison import PSI, STATISTICS

Points = dict[str, Column]
"""Points by metric name."""

Pair = tuple[str, str]

BESIDE = ("baseline", "reference")
"""Attributes of points that are not of the reference proper, but of what stands beside it."""


_STATISTICS = tuple(("statistic", name) for name in STATISTICS)
_PROBABILITY = ("probability", str(NULL_QUANTILE))
_REASONS = {reason: ("reason", reason) for reason in (FEW_ROWS, EMPTY_REFERENCE)}
_MISSING = ("bin", "__missing__")


_NAMED = 0.01
"""The share of a window's rows from which an unseen category is named."""


def family(role: Role) -> tuple[str, str]:
    """A role's metric prefix, and the attribute that holds its columns' names."""
    return ("feature", "feature") if role is Role.FEATURE else ("prediction", "output")


class Labels:
    """The attributes of one column's points, made once: making them costs more than the points do.

    Pairs are shared, those of `identity` by all columns: a pair takes 56 bytes, and a column has 90 series.
    `bins` are those of the counts, where the window tells them; `told` the statistics that it tells.
    """

    __slots__ = ("bins", "column", "places", "prefix", "quantiles", "statistics")

    def __init__(
        self,
        identity: Attributes,
        profile: Profile,
        window: str = "",
        bins: tuple[Attributes, ...] = (),
        told: Collection[str] = STATISTICS,
    ) -> None:
        self.prefix, key = family(profile.role)
        self.column: Attributes = (*identity, (key, profile.name))
        self.bins = bins
        if window:
            self.column = (*self.column, ("window", window))
        self.places = tuple(place for place, name in enumerate(STATISTICS) if name in told)
        self.statistics = tuple((*self.column, _STATISTICS[place]) for place in self.places)
        self.quantiles = tuple((*names, _PROBABILITY) for names in self.statistics)


def bin_labels(tables: Tables, identity: Attributes) -> tuple[tuple[Attributes, ...], ...]:
    """The attributes of each bin of each column, and of missing values, made once: a reference's counts have
    the window's where an identity is no more than a model and its version."""
    found = tables.labelled.get(identity)
    if found is None:
        columns = [(*identity, (family(one.role)[1], one.name)) for one in tables.profiles]
        found = tables.labelled[identity] = tuple(
            tuple((*column, pair) for pair in (*bins, _MISSING))
            for column, bins in zip(columns, tables.bins, strict=True)
        )
    return found


def describe(labels: Labels, column: Tally, points: Points) -> None:
    """Points that need no reference to be large enough: rows, shares and counts."""
    profile, prefix, where = column.profile, labels.prefix, labels.column
    present, rows = column.rows, column.rows + column.missing
    points[f"{prefix}.window.rows"].note(where, float(rows))
    if rows:
        points[f"{prefix}.missing"].note(where, column.missing / rows)
    if present and profile.kind is Kind.CATEGORICAL:
        points[f"{prefix}.unseen"].note(where, int(column.counts[-1]) / present)
    if present and profile.rows and profile.kind is Kind.NUMERIC:
        points[f"{prefix}.out_of_range"].note(where, column.out_of_range / present)
        if prefix == "prediction" and present > column.infinite:
            mean = profile.center + _sum(column.sums) / (present - column.infinite)
            if math.isfinite(mean):
                points["prediction.mean"].note(where, mean)
    counts = (*column.counts.tolist(), column.missing)
    points[f"{prefix}.window.count"].put(labels.bins, map(float, counts))


def name_unseen(labels: Labels, column: Tally, frequent: Ranked, most: int, points: Points) -> None:
    """Points of the `most` frequent unseen categories. Those with less than a hundredth of the rows are left
    out: of texts that hardly ever come twice, others would be named each time."""
    for text, count in zip(frequent.texts[:most], frequent.counts[:most].tolist(), strict=True):
        if count >= _NAMED * column.rows:
            where = (*labels.column, ("category", category_label(text)))
            points[f"{labels.prefix}.unseen.category.rows"].note(where, float(count))


def report(labels: Sequence[Labels], its: Evidence, points: Points) -> None:
    """Points of all columns of a window: statistics, p-values and the verdict, or why there is none."""
    table = zip(
        labels,
        its.drifted.tolist(),
        its.values.tolist(),
        its.p_values.tolist(),
        its.null_quantiles.tolist(),
        strict=True,
    )
    for place, (names, drifted, values, p_values, quantiles) in enumerate(table):
        prefix = names.prefix
        if reason := its.unjudged(place):
            points[f"{prefix}.drift.unjudged"].note((*names.column, _REASONS[reason]), 1.0)
            continue
        points[f"{prefix}.drift.score"].note(names.column, values[PSI])
        points[f"{prefix}.drifted"].note(names.column, float(drifted))
        for metric, keys, found in (
            ("statistic", names.statistics, values),
            ("p_value", names.statistics, p_values),
            ("null_quantile", names.quantiles, quantiles),
        ):
            told = found if len(keys) == len(found) else [found[at] for at in names.places]
            column = points[f"{prefix}.drift.{metric}"]
            if math.isfinite(sum(told)):
                column.put(keys, told)
                continue
            for key, value in zip(keys, told, strict=True):
                if math.isfinite(value):
                    column.note(key, value)


def alarm(labels: Sequence[Labels], alarms: Alarms, shared: Attributes, points: Points) -> None:
    """Points of the detectors: which columns are in alarm, and how near the others are."""
    alarming, shares = alarms.alarming.tolist(), alarms.shares.tolist()
    for names, is_alarm, share in zip(labels, alarming, shares, strict=True):
        points[f"{names.prefix}.drift.alarm"].note(names.column, float(is_alarm))
        points[f"{names.prefix}.drift.evidence"].note(names.column, share)
    points["model.drift.alarm"].note(shared, float(any(alarming)))


def own_quantiles(
    labels: Sequence[Labels], usual: npt.NDArray[np.float64], quantile: float, points: Points
) -> None:
    """Points of float64[columns]: what the columns' scores are below in a share of `quantile` of windows."""
    for names, value in zip(labels, usual.tolist(), strict=True):
        if math.isfinite(value):
            where = (*names.column, ("probability", f"{quantile:g}"))
            points[f"{names.prefix}.drift.own_quantile"].note(where, value)


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
        f"{prefix}.drift.unjudged": About(
            gauge, "{column}", f"1 for a {what} whose drift is not judged, with the reason."
        ),
        f"{prefix}.drift.alarm": About(
            gauge, "{verdict}", "1 while the evidence of drift over time is worth a page."
        ),
        f"{prefix}.drift.evidence": About(
            gauge, "1", "Evidence of drift over time, as a share of what makes an alarm (logarithms)."
        ),
        f"{prefix}.drift.own_quantile": About(
            gauge, "{score}", "The quantile of the column's own scores: the adaptive threshold."
        ),
        f"{prefix}.seasonal.deviation": About(
            gauge,
            "{deviation}",
            "The last hour's summary less what its week and hour let expect, in standard deviations.",
        ),
        f"{prefix}.window.rows": About(
            gauge, "{row}", f"Rows of the {what} in the window, missing ones too."
        ),
        f"{prefix}.missing": About(gauge, "1", "Share of the window's rows without a value (null or NaN)."),
        f"{prefix}.unseen": About(gauge, "1", "Share of values that are no category of the reference."),
        f"{prefix}.unseen.category.rows": About(
            gauge, "{row}", "Rows at least of the most frequent categories that the reference lacks."
        ),
        f"{prefix}.out_of_range": About(gauge, "1", "Share of values outside the reference's range."),
        f"{prefix}.nan": About(gauge, "1", "Share of the window's rows that are NaN."),
        f"{prefix}.infinite": About(gauge, "1", "Share of values that are infinite."),
        f"{prefix}.constant": About(
            gauge, "{verdict}", f"1 where the {what} has one value in the window and not in the reference."
        ),
        f"{prefix}.vanished": About(gauge, "{column}", f"1 for a {what} that the latest batches lack."),
        f"{prefix}.window.count": About(gauge, "{row}", "Rows per bin in the window; adds up over replicas."),
        f"{prefix}.reference.count": About(gauge, "{row}", "Rows per bin in the reference."),
        f"{prefix}.skipped": About(
            gauge, "{column}", "1 for a column that gets no statistics, with the reason."
        ),
    }


METRICS: dict[str, About] = {
    **_about("feature", "feature"),
    **_about("prediction", "output"),
    "model.drift.alarm": About(MetricKind.GAUGE, "{verdict}", "1 while any column of the model is in alarm."),
    "model.data_quality.violations": About(
        MetricKind.GAUGE, "{column}", "Columns whose values are not as the reference's, by check."
    ),
    "model.schema.changes": About(
        MetricKind.COUNTER, "{schema}", "Schemas that differ from all that came before them."
    ),
    "model.drift.limit": About(
        MetricKind.GAUGE,
        "{limit}",
        "What verdicts go by: rows, PSI that is material, false discovery rate.",
    ),
    "model.slice.rows": About(MetricKind.GAUGE, "{row}", "Rows of the slice in the window."),
    "model.slice.drifted_columns": About(
        MetricKind.GAUGE, "{column}", "Columns of the slice whose drift is significant and material."
    ),
    "model.slice.drift.score": About(
        MetricKind.GAUGE, "{score}", "PSI of a slice's column to the reference, of the worst ones."
    ),
    "model.slice.drift.statistic": About(
        MetricKind.GAUGE, "{score}", "Distances of a slice's column to the reference, of the worst ones."
    ),
    "model.slice.drift.p_value": About(
        MetricKind.GAUGE, "{probability}", "Probability of so large a statistic of the slice without drift."
    ),
    "model.slice.drifted": About(
        MetricKind.GAUGE, "{verdict}", "1 where the drift of a slice's column is significant and material."
    ),
    "model.slice.overflow": About(
        MetricKind.COUNTER, "{row}", "Rows whose value of the segment column has no slice of its own."
    ),
    "model.slice.columns": About(MetricKind.TABLE, "1", "All columns of each slice."),
    "model.slice.bins": About(MetricKind.TABLE, "1", "Histograms of what moved most in each slice."),
    "records.age": About(MetricKind.GAUGE, "s", "Time since the latest batch arrived."),
    "records.stale": About(MetricKind.GAUGE, "{verdict}", "1 where nothing has come for longer than usual."),
    "records.left_out": About(MetricKind.COUNTER, "{row}", "Rows left out for their event time, by reason."),
    "prediction_id.duplicates": About(
        MetricKind.COUNTER, "{row}", "Prediction ids that had come before, among those remembered."
    ),
    "model.drifted": About(
        MetricKind.GAUGE, "{verdict}", "1 where a classifier tells the window's rows from the reference's."
    ),
    "model.drift.statistic": About(
        MetricKind.GAUGE,
        "{score}",
        "Distances of the window's rows to the reference's, all features at once.",
    ),
    "model.drift.p_value": About(
        MetricKind.GAUGE, "{probability}", "Probability of so large a statistic without drift."
    ),
    "model.drift.null_quantile": About(
        MetricKind.GAUGE, "{score}", "The statistic's quantile without drift, at the rows at hand."
    ),
    "model.drift.unjudged": About(
        MetricKind.GAUGE, "{model}", "1 where the features together are not judged, with the reason."
    ),
    "model.drift.sample_rows": About(MetricKind.GAUGE, "{row}", "Rows of the window's sample."),
    "model.drift.group.size": About(
        MetricKind.GAUGE, "{feature}", "Features that are drifted and correlated, by the first one's name."
    ),
    "feature.drift.group": About(MetricKind.GAUGE, "{feature}", "1 for each member of such a group."),
    "prediction.changes": About(
        MetricKind.COUNTER, "{change}", "Changes that a detector found in an output, or in its error."
    ),
    "prediction.change.time": About(
        MetricKind.GAUGE, "s", "Event time of the last change that a detector found."
    ),
    "prediction.mean": About(MetricKind.GAUGE, "{value}", "Mean of the output in the window."),
    "prediction.histogram": About(
        MetricKind.HISTOGRAM, "{value}", "Values of the output since the start, on the reference's bins."
    ),
    "model.reference.info": About(
        MetricKind.GAUGE, "{reference}", "1 for each reference that the model is compared with."
    ),
    "reference.rows": About(MetricKind.GAUGE, "{row}", "Rows that the model's reference is made of."),
    "reference.ready": About(
        MetricKind.GAUGE, "{verdict}", "1 where the model has a reference, 0 while its first rows become one."
    ),
}
"""Every metric of this processor, in the order in which they are shown."""

"""Drift of embedding columns, written down as that of numbers and categories is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from tidegauge.config import Drift as Settings
from tidegauge.metric import Attributes, Number, attributes
from tidegauge.processors.drift.counts import Counts, Tables
from tidegauge.processors.drift.evidence import FEW_ROWS, NULL_QUANTILE
from tidegauge.processors.drift.quality import is_unusual
from tidegauge.processors.drift.report import Points, family
from tidegauge.processors.drift.vectors import Frame
from tidegauge.stats.distances import false_discoveries
from tidegauge.stats.embedding import MMD, STATISTICS, Findings, compare


def report_embeddings(
    shared: Attributes,
    frames: Sequence[Frame],
    counts: Counts,
    window: str,
    settings: Settings,
    points: Points,
) -> None:
    """Points of all embeddings of a window; `window` is its label, "" for `drift.window`.

    One is drifted where its MMD is significant, at the false discovery rate `drift.significance` over the
    judged embeddings of the identity, and at least `drift.multivariate.mmd_threshold`. `shared` are the
    identity's attributes.
    """
    told: list[tuple[str, Attributes, Findings]] = []
    for frame in frames:
        prefix, key = family(frame.embedding.role)
        where = (*shared, *attributes(**{key: frame.embedding.name, "window": window}))
        sums = frame.read(counts.vectors)
        if sums.rows < settings.min_rows:
            points[f"{prefix}.drift.unjudged"].append(Number((*where, ("reason", FEW_ROWS)), 1.0))
            continue
        found = compare(
            frame.embedding.summary,
            sums.rows,
            sums.moments,
            sums.waves,
            settings.significance,
            settings.threshold,
        )
        told.append((prefix, where, found))
    rare = false_discoveries(np.array([found.p_values[MMD] for _, _, found in told]), settings.significance)
    for (prefix, where, found), is_rare in zip(told, rare.tolist(), strict=True):
        drifted = is_rare and found.values[MMD] >= settings.multivariate.mmd_threshold
        points[f"{prefix}.drift.score"].append(Number(where, float(found.values[MMD])))
        points[f"{prefix}.drifted"].append(Number(where, float(drifted)))
        _statistics(prefix, where, found, points)


def inspect_embeddings(
    shared: Attributes,
    tables: Tables,
    counts: Counts,
    vanished: Collection[int],
    settings: Settings,
    points: Points,
) -> Counter[str]:
    """Points of `drift.window` that need no reference to be large enough: rows, the missing share, and which
    columns no batch has. Returns how many embeddings violate which check of data quality."""
    violations: Counter[str] = Counter(vanished=len(vanished))
    for place, frame in enumerate(tables.frames):
        prefix, key = family(frame.embedding.role)
        where = (*shared, (key, frame.embedding.name))
        sums = frame.read(counts.vectors)
        rows = sums.rows + sums.missing
        points[f"{prefix}.window.rows"].append(Number(where, float(rows)))
        if rows:
            points[f"{prefix}.missing"].append(Number(where, sums.missing / rows))
        if place in vanished:
            points[f"{prefix}.vanished"].append(Number(where, 1.0))
        violations["missing"] += is_unusual(
            sums.missing, rows, frame.embedding.missing, tables.rows, settings
        )
    return violations


def _statistics(prefix: str, where: Attributes, found: Findings, points: Points) -> None:
    probability = ("probability", str(NULL_QUANTILE))
    for metric, values, more in (
        ("statistic", found.values, ()),
        ("p_value", found.p_values, ()),
        ("null_quantile", found.null_quantiles, (probability,)),
    ):
        points[f"{prefix}.drift.{metric}"].extend(
            Number((*where, ("statistic", name), *more), value)
            for name, value in zip(STATISTICS, values.tolist(), strict=True)
            if math.isfinite(value)
        )

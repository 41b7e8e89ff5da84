"""Thresholds made of a column's own scores."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from msgspec import structs

from tidegauge.batch import Records
from tidegauge.config import Adaptive
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.adaptive import Scores
from tidegauge.processors.drift.counts import Counts, Tables
from tidegauge.processors.drift.drift import Drift
from tidegauge.processors.drift.evidence import Evidence
from tidegauge.reference import ReferenceBuilder
from tidegauge.units import Duration

WINDOW_NS = 3_600 * 10**9
SETTINGS = Settings(adaptive=Adaptive(use="show", quantile=0.9, period=Duration("4d")))


def fed(scores, count, seed=0, columns=3):
    """What `count` windows add: float64[count, columns]."""
    values = np.random.default_rng(seed).random((count, columns))
    for number, row in enumerate(values):
        for minute in (0, 5, 30):  # several looks at a window are one score
            scores.look(number * WINDOW_NS + minute * 60 * 10**9, row, np.ones(columns, bool))
    return values


def test_a_tenth_of_the_earlier_scores_lie_above_the_threshold():
    scores = Scores(3, SETTINGS)
    values = fed(scores, 90)
    earlier = values[:-1]
    assert np.array_equal(
        scores.usual, np.quantile(earlier.astype(np.float32), 0.9, axis=0, method="inverted_cdf")
    )
    assert (earlier > scores.usual).mean(axis=0) == pytest.approx(0.1, abs=0.02)


def test_it_is_of_the_latest_period_alone():
    scores = Scores(3, SETTINGS)
    values = fed(scores, 300)
    assert np.array_equal(
        scores.usual, np.quantile(values[-97:-1].astype(np.float32), 0.9, axis=0, method="inverted_cdf")
    )


def test_too_few_scores_give_none():
    scores = Scores(3, SETTINGS)
    fed(scores, Scores.LEAST)
    assert np.isnan(scores.usual).all()  # the last one waits
    fed_later = Scores(2, SETTINGS)
    judged = np.array([True, False])
    for number in range(60):
        fed_later.look(number * WINDOW_NS, np.array([0.5, 0.5]), judged)
    assert np.isnan(fed_later.usual).tolist() == [False, True]


@pytest.mark.parametrize("count", [0, 1, 30, 200])
def test_it_goes_on_after_a_restart(count):
    old, new = Scores(3, SETTINGS), Scores(3, SETTINGS)
    fed(old, count)
    new.restore(old.capture())
    assert np.array_equal(new.usual, old.usual, equal_nan=True)
    for one in (old, new):
        one.look(500 * WINDOW_NS, np.full(3, 2.0), np.ones(3, bool))
        one.look(501 * WINDOW_NS, np.full(3, 3.0), np.ones(3, bool))
    assert np.array_equal(new.usual, old.usual, equal_nan=True)


def told(use, hours, mean):
    """(drifted, own quantile) in the last hour: of a mean that was 0.45 off for `hours`, and then `mean`."""
    columns = {"x": np.random.default_rng(0).normal(size=20_000)}
    rows = pa.RecordBatch.from_pydict(columns)
    builder = ReferenceBuilder(bins=10, max_categories=10)
    builder.update(rows, layout_of(rows.schema))
    settings = structs.replace(
        SETTINGS, panes=2, adaptive=Adaptive(use=use, quantile=0.95, period=Duration("4d"))
    )
    drift, random = Drift(settings, [builder.build("m", "", "file")]), np.random.default_rng(1)
    for hour in range(hours + 1):
        for half in (0, 1):
            now = 1_800_000_000 * 10**9 + hour * WINDOW_NS + half * WINDOW_NS // 2
            rows = pa.RecordBatch.from_pydict({"x": random.normal(mean if hour == hours else 0.45, 1, 1_000)})
            drift.update(Records("test", Identity("m"), layout_of(rows.schema), rows, now, rows.nbytes))
            found = {metric.name: metric.points for metric in drift.collect(now)}
    own = [point.value for point in found.get("feature.drift.own_quantile", ())]
    return [point.value for point in found["feature.drifted"]], own


def test_what_a_column_always_does_is_no_drift_to_a_verdict_that_adapts():
    """A PSI of about 0.2, every hour: above the threshold of 0.1, and nothing new."""
    assert told("none", 40, 0.45) == ([1], [])
    drifted, [own] = told("show", 40, 0.45)
    assert drifted == [1]
    assert 0.15 < own < 0.35
    assert told("verdict", 40, 0.3) == ([0], [own])
    assert told("verdict", 40, 1.0) == ([1], [own])
    assert told("verdict", Scores.LEAST - 2, 0.45) == ([1], [])


def test_a_threshold_that_adapts_is_never_below_the_one_that_is_set():
    """A column that never moved has tiny scores: a small shift is not material for that."""
    columns = {"x": np.random.default_rng(0).normal(size=20_000)}
    rows = pa.RecordBatch.from_pydict(columns)
    builder = ReferenceBuilder(bins=10, max_categories=10)
    builder.update(rows, layout_of(rows.schema))
    tables = Tables(builder.build("m", "", "file"))
    window = Counts(tables)
    window.counts[0] = np.linspace(900, 1_100, 10)
    for least, drifted in ((np.array([0.001]), False), (None, False)):
        assert Evidence(tables, window, Settings(), least).drifted.tolist() == [drifted]
    assert Evidence(tables, window, Settings(threshold=0.001), np.array([0.002])).drifted.all()
    assert not Evidence(tables, window, Settings(threshold=0.001), np.array([0.2])).drifted.any()

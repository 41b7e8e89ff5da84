"""Data quality: each wrong value in one check, none by chance, and what a column lacks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.drift import Drift
from tidegauge.processors.drift.quality import CHECKS
from tidegauge.reference import ReferenceBuilder

NOW = 1_800_000_000 * 10**9
ME = Identity("fraud", "2.1")
ROWS = 2_000


def table(rows=ROWS, seed=0, **columns):
    random = np.random.default_rng(seed)
    found = {"x": random.normal(50, 10, rows), "c": random.choice(["a", "b", "d"], rows)}
    return {name: column for name, column in (found | columns).items() if column is not None}


def records(columns, identity=ME):
    rows = pa.RecordBatch.from_pydict(columns)
    return Records("flight", identity, layout_of(rows.schema), rows, NOW, rows.nbytes)


def drift(columns=None, **settings):
    rows = pa.RecordBatch.from_pydict(columns or table(20_000, 1))
    builder = ReferenceBuilder(bins=20, max_categories=100)
    builder.update(rows, layout_of(rows.schema))
    return Drift(Settings(**settings), [builder.build("fraud", "2.1", "file")])


def points(one, name):
    """A metric's values by their attributes besides the identity; None stands for a metric without points."""
    for metric in one.collect(NOW):
        if metric.name == name:
            return {
                " ".join(value for key, value in point.attributes if key not in ME._fields): point.value
                for point in metric.points
            }
    return None


def violated(one):
    return {check: value for check, value in points(one, "model.data_quality.violations").items() if value}


def some(value, share, rows=ROWS, seed=9):
    """Normal values, `share` of which are `value`."""
    random = np.random.default_rng(seed)
    column = pa.array(random.normal(50, 10, rows))
    where = pa.array(random.random(rows) < share)
    return pa.array(
        [value if hit else one for hit, one in zip(where.to_pylist(), column.to_pylist(), strict=True)]
    )


def test_clean_rows_violate_nothing_and_every_check_is_told():
    one = drift()
    one.update(records(table()))
    assert points(one, "model.data_quality.violations") == dict.fromkeys(CHECKS, 0.0)
    assert points(one, "feature.nan") == {"x": 0}
    assert points(one, "feature.infinite") == {"x": 0}
    assert points(one, "feature.constant") == {"x": 0, "c": 0}
    assert points(one, "feature.vanished") is None


@pytest.mark.parametrize(
    ("value", "check"),
    [
        (None, "missing"),
        (float("nan"), "nan"),
        (float("inf"), "infinite"),
        (-float("inf"), "infinite"),
        (1e6, "out_of_range"),
    ],
)
def test_a_wrong_number_violates_one_check(value, check):
    one = drift()
    one.update(records(table(x=some(value, 0.05))))
    assert violated(one) == {check: 1}


def test_shares_of_nan_and_of_infinity():
    one = drift()
    values = [float("nan")] * 100 + [None] * 100 + [float("inf")] * 40 + [50.0] * 160
    one.update(records({"x": pa.array(values), "c": ["a"] * 400}))
    assert points(one, "feature.nan") == {"x": 0.25}
    assert points(one, "feature.infinite") == {"x": 0.2}
    assert points(one, "feature.missing") == {"x": 0.5, "c": 0}


def test_categories_that_the_reference_has_not_are_a_violation():
    one = drift()
    one.update(records(table(c=["a", "b"] * 950 + ["z"] * 100)))
    assert violated(one) == {"unseen": 1}


def test_what_the_reference_has_too_is_none():
    dirty = table(20_000, 1, x=some(None, 0.2, 20_000))
    one = drift(dirty)
    one.update(records(table(x=some(None, 0.2))))
    assert violated(one) == {}
    worse = drift(dirty)
    worse.update(records(table(x=some(None, 0.3))))
    assert violated(worse) == {"missing": 1}


def test_a_share_within_the_margin_or_of_few_rows_is_none():
    one = drift()
    one.update(records(table(x=some(None, 0.006))))
    assert violated(one) == {}
    strict = drift(quality_margin=0.001)
    strict.update(records(table(20_000, x=some(None, 0.006, 20_000))))
    assert violated(strict) == {"missing": 1}
    few = drift(min_rows=200)
    few.update(records(table(199, x=some(None, 0.5, 199))))
    assert violated(few) == {}


def test_shares_that_are_the_same_are_called_different_by_chance_almost_never():
    dirty = table(5_000, 1, x=some(None, 0.3, 5_000, seed=1))
    false = 0
    for seed in range(300):
        one = drift(dirty)
        one.update(records(table(300, x=some(None, 0.3, 300, seed=100 + seed))))
        false += bool(violated(one))
    assert false <= 1  # once in 30 000 is expected


@pytest.mark.parametrize("value", [50.0, 0.1, -3e9, 50.123456789])
def test_a_number_that_stands_still_is_constant(value):
    one = drift()
    one.update(records(table(x=[value] * ROWS)))
    assert points(one, "feature.constant")["x"] == 1
    assert violated(one)["constant"] == 1
    one.update(records(table(seed=5)))
    assert points(one, "feature.constant")["x"] == 0


def test_numbers_of_one_bin_that_move_are_not_constant():
    one = drift()
    one.update(records(table(x=500 + np.random.default_rng(3).normal(size=ROWS))))
    assert points(one, "feature.constant")["x"] == 0


def test_a_category_that_stands_still_is_constant_and_a_constant_reference_is_not():
    one = drift()
    one.update(records(table(c=["b"] * ROWS)))
    assert points(one, "feature.constant") == {"x": 0, "c": 1}
    other = drift(table(20_000, 1, x=[7.0] * 20_000, c=["a"] * 20_000))
    other.update(records(table(x=[7.0] * ROWS, c=["a"] * ROWS)))
    assert points(other, "feature.constant") is None
    unseen = drift()
    unseen.update(records(table(c=[f"z{i}" for i in range(ROWS)])))
    assert points(unseen, "feature.constant")["c"] == 0


def test_columns_that_vanish_are_new_or_change_their_type_are_told():
    one = drift()
    one.update(records({"x": ["text"] * 300, "extra": [1.0] * 300}))
    assert points(one, "feature.vanished") == {"c": 1}
    assert violated(one) == {"vanished": 1, "new": 1, "type_changed": 1, "missing": 1}
    one.update(records(table()))
    assert points(one, "feature.vanished") is None


def test_a_column_is_not_vanished_while_another_client_sends_it():
    one = drift()
    without = table(c=None)
    one.update(records(table()), records(without), records(table()), records(without))
    assert points(one, "feature.vanished") is None
    one.update(records(without))
    assert points(one, "feature.vanished") == {"c": 1}
    assert points(one, "feature.vanished") == {"c": 1}  # and stays, while nothing comes


def test_every_output_is_inspected_as_a_feature_is():
    columns = {"x": np.arange(1000.0), "prediction": np.arange(1000.0)}
    one = drift(columns)
    one.update(records({"x": np.arange(1000.0)}))
    assert points(one, "prediction.vanished") == {"prediction": 1}
    one.update(records(columns | {"prediction": [1.0] * 1000}))
    assert points(one, "prediction.constant") == {"prediction": 1}
    assert points(one, "prediction.nan") == {"prediction": 0}
    assert points(one, "prediction.infinite") == {"prediction": 0}


def test_how_a_stream_comes_is_told_per_identity():
    one = drift()
    ids = [str(i % 150) for i in range(200)]
    one.update(records(table(200) | {"prediction_id": ids}, ME._replace(stage="canary")))
    late = pa.array([NOW - 3600 * 10**9, NOW], pa.timestamp("ns"))
    one.update(records(table(200)), records({"x": [1.0, 2.0], "timestamp": late}))
    assert points(one, "prediction_id.duplicates") == {"": 50}
    assert points(one, "records.age") == {"": 0}
    found = {
        point.attributes: point.value
        for metric in one.collect(NOW)
        if metric.name == "records.left_out"
        for point in metric.points
    }
    assert found[ME.attributes(reason="late")] == 1
    assert sum(found.values()) == 1

"""The drift processor: references, warm-up, verdicts and the published metrics."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats

from tidegauge.batch import Logs, Records
from tidegauge.config import Drift as Settings
from tidegauge.config import Statistic
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.drift import Drift
from tidegauge.reference import ReferenceBuilder
from tidegauge.stats.comparison import STATISTICS
from tidegauge.units import Duration, Size
from tidegauge.wire.logs import LOG

NOW = 1_800_000_000 * 10**9
ME = Identity("fraud", "2.1", "production")


def records(columns, identity=ME):
    rows = columns if isinstance(columns, pa.RecordBatch) else pa.RecordBatch.from_pydict(columns)
    return Records("flight", identity, layout_of(rows.schema), rows, NOW, rows.nbytes)


def reference(columns, model="fraud", version="2.1", **settings):
    builder = ReferenceBuilder(**{"bins": 20, "max_categories": 100} | settings)
    rows = pa.RecordBatch.from_pydict(columns)
    builder.update(rows, layout_of(rows.schema))
    return builder.build(model, version, "file")


def values(drift, name, **wanted):
    """The values of a metric's points that carry `wanted`, by their other attributes.

    Those of other windows than `drift.window` only where `wanted` names one.
    """
    found = {}
    for metric in drift.collect(NOW):
        for point in metric.points if metric.name == name else ():
            attributes = dict(point.attributes)
            if "window" in attributes and "window" not in wanted:
                continue
            if wanted.items() <= attributes.items():
                rest = {k: v for k, v in attributes.items() if k not in wanted and k not in ME._fields}
                found[" ".join(rest.values())] = point.value
    return found


def rng(seed=0):
    return np.random.default_rng(seed)


def table(n, seed=0, shift=0.0):
    r = rng(seed)
    return {
        "age": r.normal(40 + shift, 10, n),
        "amount": r.lognormal(3, 1, n),
        "country": r.choice(["de", "fr", "it"], n, p=[0.5, 0.3, 0.2]),
        "member": r.random(n) < 0.4,
        "prediction": r.integers(0, 2, n),
        "score": r.random(n),
    }


def test_only_what_moved_is_drifted():
    drift = Drift(Settings(), [reference(table(20_000, 1))])
    assert drift.update(records(table(5_000, 2, shift=8.0))) == {}
    assert values(drift, "feature.drifted") == {"age": 1, "amount": 0, "country": 0, "member": 0}
    assert values(drift, "prediction.drifted") == {"prediction": 0, "score": 0}
    score = values(drift, "feature.drift.score")
    assert score["age"] > 0.3
    assert max(score["amount"], score["country"], score["member"]) < 0.02
    assert score == values(drift, "feature.drift.statistic", statistic="psi")


def test_statistics_are_those_of_the_raw_values():
    before, after = table(20_000, 1), table(4_000, 2, shift=3.0)
    drift = Drift(Settings(bins=500), [reference(before, bins=500)])
    drift.update(records(after))
    ks = scipy.stats.ks_2samp(before["age"], after["age"])
    assert values(drift, "feature.drift.statistic", statistic="ks")["age"] == pytest.approx(
        ks.statistic, abs=0.002
    )
    distance = scipy.stats.wasserstein_distance(before["age"], after["age"])
    assert values(drift, "feature.drift.statistic", statistic="wasserstein")["age"] == pytest.approx(
        distance, rel=0.01
    )
    seen = [[(side["country"] == c).sum() for c in ("de", "fr", "it")] for side in (before, after)]
    wanted = scipy.stats.chi2_contingency(seen, correction=False)
    chi2 = values(drift, "feature.drift.statistic", statistic="chi2")["country"]
    assert chi2 == pytest.approx(wanted.statistic)
    assert values(drift, "feature.drift.p_value", statistic="chi2")["country"] == pytest.approx(wanted.pvalue)


def test_other_windows_are_judged_under_their_label():
    settings = Settings(other_windows=(Duration("5m"), Duration("24h")))
    drift = Drift(settings, [reference(table(20_000, 1))])
    drift.update(records(table(5_000, 2, shift=8.0)))
    for window in ("5m", "24h"):
        score = values(drift, "feature.drift.score", window=window)
        assert score == values(drift, "feature.drift.score")
        assert values(drift, "feature.drifted", window=window)["age"] == 1
    assert values(drift, "feature.window.count", window="5m") == {}


def test_below_the_least_rows_there_is_no_estimate():
    drift = Drift(Settings(min_rows=200), [reference(table(5_000))])
    drift.update(records(table(199, shift=50)))
    assert values(drift, "feature.drift.score") == {}
    assert values(drift, "feature.drifted") == {}
    assert values(drift, "feature.window.rows")["age"] == 199
    drift.update(records(table(1, shift=50)))
    assert values(drift, "feature.drifted")["age"] == 1


def test_a_significant_but_small_shift_is_not_drift():
    drift = Drift(Settings(), [reference(table(100_000, 1))])
    drift.update(records(table(100_000, 2, shift=1.0)))
    assert values(drift, "feature.drift.p_value", statistic="psi")["age"] < 1e-6
    assert values(drift, "feature.drift.score")["age"] < 0.1
    assert values(drift, "feature.drifted")["age"] == 0


def test_the_null_quantile_is_what_one_window_in_twenty_passes():
    drift = Drift(Settings(), [reference({"x": rng(1).normal(size=50_000)})])
    found, passed = None, 0
    for seed in range(400):
        fresh = Drift(Settings(), list(drift._references.values()))
        fresh.update(records({"x": rng(1000 + seed).normal(size=2_000)}))
        found = values(fresh, "feature.drift.null_quantile", statistic="psi")["x 0.95"]
        passed += values(fresh, "feature.drift.score")["x"] > found
    assert found == pytest.approx(scipy.stats.chi2.ppf(0.95, 19) * (1 / 50_000 + 1 / 2_000))
    assert passed / 400 == pytest.approx(0.05, abs=0.035)


def test_the_first_rows_become_the_reference_and_the_rest_is_judged():
    made = []
    drift = Drift(Settings(reference_rows=1_000), on_reference=made.append)
    for seed in range(3):
        drift.update(records(table(300, seed)))
    assert values(drift, "reference.ready", source="first_rows") == {"": 0}
    assert values(drift, "reference.rows", source="first_rows") == {"": 900}
    assert values(drift, "feature.window.rows") == {}
    drift.update(records(table(600, 9)))
    assert [one.rows for one in made] == [1_000]
    assert values(drift, "reference.ready", source="first_rows") == {"": 1}
    assert values(drift, "feature.window.rows")["age"] == 500  # the rest of that batch
    drift.update(records(table(2_000, 10, shift=30)))
    assert values(drift, "feature.drifted")["age"] == 1


def test_a_warm_up_ends_early_rather_than_pass_its_memory():
    drift = Drift(Settings(reference_rows=100_000, reference_memory=Size("100kB")))
    for seed in range(5):
        drift.update(records(table(1_000, seed)))
    (rows,) = values(drift, "reference.rows", source="first_rows").values()
    assert 1_000 < rows < 5_000
    assert values(drift, "feature.window.rows")["age"] == 5_000 - rows


def test_warm_ups_share_one_memory():
    """The largest ends early when all together pass the limit, whichever model's batch does it."""
    one = records(table(1_000)).nbytes
    drift = Drift(Settings(reference_rows=100_000, reference_memory=Size(f"{4 * one}B")))
    for seed in range(3):
        drift.update(records(table(1_000, seed), Identity("big")))
    drift.update(records(table(1_000), Identity("small")))
    assert values(drift, "reference.ready", source="first_rows") == {"": 0}
    assert drift.update(records(table(1_000), Identity("small"))) == {}
    ready = {
        dict(point.attributes)["model"]: point.value
        for metric in drift.collect(NOW)
        if metric.name == "reference.ready"
        for point in metric.points
    }
    assert ready == {"big": 1, "small": 0}


def test_a_column_that_changes_its_type_in_the_first_rows_is_left_out():
    drift = Drift(Settings(reference_rows=200))
    drift.update(records({"x": [1.0] * 100, "y": [1.0] * 100}))
    drift.update(records({"x": ["a"] * 100, "y": [2.0] * 100}))
    drift.update(records({"x": ["a"] * 300, "y": [2.0] * 300}))
    assert values(drift, "feature.window.rows") == {"y": 300}
    assert values(drift, "feature.skipped") == {"x no_reference": 1}


def test_first_rows_that_cannot_be_a_reference_begin_anew():
    drift = Drift(Settings(reference_rows=200))
    drift.update(records({"x": [1.0] * 100}))
    assert drift.update(records({"x": ["a"] * 150})) == {"schema_changed": 50}
    drift.update(records({"x": [1.0] * 200}))
    assert values(drift, "reference.ready", source="first_rows") == {"": 1}


def test_missing_unseen_and_out_of_range():
    drift = Drift(Settings(), [reference({"x": np.arange(1000.0), "c": ["a", "b"] * 500})])
    drift.update(
        records({"x": [None, float("nan"), -1.0, 5.0, float("inf")], "c": ["a", "z", None, "z", "b"]})
    )
    assert values(drift, "feature.missing") == {"x": 0.4, "c": 0.2}
    assert values(drift, "feature.unseen") == {"c": 0.5}
    assert values(drift, "feature.out_of_range") == {"x": pytest.approx(2 / 3)}


def test_counts_per_bin_add_up_on_both_sides():
    drift = Drift(Settings(), [reference(table(2_000, 1))])
    drift.update(records(table(700, 2)))
    window = values(drift, "feature.window.count", feature="age")
    assert sum(window.values()) == 700
    assert window.pop("__missing__") == 0
    assert window.keys() == values(drift, "feature.reference.count", feature="age").keys()
    assert sum(values(drift, "feature.reference.count", feature="age").values()) == 2_000
    assert set(values(drift, "feature.window.count", feature="country")) == {
        *("de", "fr", "it"),
        *("__unseen__", "__missing__"),
    }


def test_a_constant_that_changes_is_drift():
    drift = Drift(Settings(), [reference({"x": [7.0] * 1_000})])
    drift.update(records({"x": [7.0] * 500}))
    assert values(drift, "feature.drifted") == {"x": 0}
    drift.update(records({"x": [8.0] * 500}))
    assert values(drift, "feature.drifted") == {"x": 1}


def test_one_bin_taking_everything_and_all_missing():
    drift = Drift(Settings(), [reference(table(5_000)), reference({"x": [None] * 1_000 + [1.0]}, "gone", "")])
    drift.update(records(table(500) | {"age": np.full(500, 1e300), "amount": np.full(500, np.nan)}))
    assert values(drift, "feature.drifted")["age"] == 1
    assert values(drift, "feature.missing")["amount"] == 1
    assert "amount" not in values(drift, "feature.drift.score")
    drift.update(records({"x": pa.array([None] * 300, pa.float64())}, Identity("gone")))
    assert values(drift, "feature.missing")["x"] == 1


def test_every_column_type_folds_as_its_values():
    plain = rng(3).integers(0, 100, 3_000)
    wanted = None
    for kind in (
        pa.float64(),
        pa.float32(),
        pa.float16(),
        pa.int64(),
        pa.int32(),
        pa.int16(),
        pa.uint8(),
        pa.uint64(),
    ):
        drift = Drift(Settings(), [reference({"x": plain.astype(float)})])
        column = pa.array(plain.astype("float16")) if kind == pa.float16() else pa.array(plain, kind)
        drift.update(records({"x": column.slice(100)}))
        found = values(drift, "feature.window.count", feature="x")
        wanted = wanted or found
        assert found == wanted, kind


def test_integers_that_are_codes_count_as_categories():
    codes = {"x": rng(4).choice([10, 20, 30], 2_000)}
    drift = Drift(Settings(), [reference(codes, categorical={"x"})])
    drift.update(records({"x": [10, 10, 99]}))
    assert values(drift, "feature.window.count", feature="x")["10"] == 2
    assert values(drift, "feature.unseen")["x"] == pytest.approx(1 / 3)


def test_columns_without_statistics_are_named_with_the_reason():
    drift = Drift(Settings(), [reference({"x": np.arange(100.0), "c": ["a"] * 100})])
    embedding = pa.FixedSizeListArray.from_arrays(pa.array([0.5] * 8), 4)
    drift.update(records({"x": ["1", "2"], "c": ["a", "a"], "new": [1.0, 2.0], "e": embedding}))
    assert values(drift, "feature.skipped") == {
        "x type_changed": 1,
        "new no_reference": 1,
        "e no_reference": 1,
    }
    assert values(drift, "feature.window.rows") == {"x": 0, "c": 2}


def test_stages_and_data_sources_have_windows_of_their_own():
    drift = Drift(Settings(), [reference(table(5_000))])
    drift.update(records(table(1_000, 1)))
    drift.update(records(table(1_000, 2, shift=30), ME._replace(stage="canary", data_source="eu")))
    assert values(drift, "feature.drifted", stage="production")["age"] == 0
    assert values(drift, "feature.drifted", stage="canary", data_source="eu")["age"] == 1


def test_identities_are_bounded():
    drift = Drift(Settings(max_identities=2, reference_rows=100))
    for number in range(3):
        told = drift.update(records({"x": [1.0] * 150}, Identity(f"m{number}")))
        assert told == ({} if number < 2 else {"identity_limit": 150})
    known = Drift(Settings(max_identities=1), [reference(table(1_000))])
    known.update(records(table(10)))
    assert known.update(records(table(10), ME._replace(stage="canary"))) == {"identity_limit": 10}


def test_features_are_bounded():
    drift = Drift(Settings(max_features=2), [reference(table(1_000))])
    drift.update(records(table(500)))
    assert set(values(drift, "feature.window.rows")) == {"age", "amount"}
    assert values(drift, "feature.skipped")["country no_reference"] == 1


def test_predictions_have_their_mean_and_a_histogram_since_the_start():
    drift = Drift(Settings(), [reference(table(2_000))])
    sent = [table(400, seed) for seed in (1, 2)]
    for one in sent:
        drift.update(records(one))
    scores = np.concatenate([one["score"] for one in sent])
    assert values(drift, "prediction.mean")["score"] == pytest.approx(scores.mean())
    (metric,) = [m for m in drift.collect(NOW) if m.name == "prediction.histogram"]
    (point,) = [p for p in metric.points if dict(p.attributes)["output"] == "score"]
    assert sum(point.counts) == 800
    assert point.sum == pytest.approx(scores.sum())
    for bound, below in zip(point.bounds, np.cumsum(point.counts), strict=False):
        assert below == (scores <= bound).sum()
    later = [m for m in drift.collect(NOW + 10**9 * 86_400) if m.name == "prediction.histogram"]
    assert later[0].points == metric.points  # a counter: the window's end takes nothing away


def test_other_signals_and_empty_batches_pass_through():
    drift = Drift(Settings())
    assert drift.update(Logs("otlp_grpc", b"", np.zeros(3, LOG))) == {}
    assert drift.update(records({"x": pa.array([], pa.float64())})) == {}
    assert drift.collect(NOW) == ()


def test_collecting_again_without_news_is_the_same():
    drift = Drift(Settings(), [reference(table(2_000))])
    drift.update(records(table(500)))
    before, after = (
        [metric for metric in drift.collect(now) if metric.name != "records.age"] for now in (NOW, NOW + 1)
    )
    assert before == after
    drift.update(records(table(500)))
    assert values(drift, "feature.window.rows")["age"] == 1_000


def test_values_that_span_more_than_the_doubles_have_no_wasserstein_distance():
    wide = np.array([-1.7e308, 1.7e308] * 300)
    drift = Drift(Settings(), [reference({"x": wide})])
    drift.update(records({"x": wide}))
    assert values(drift, "feature.drift.statistic", statistic="wasserstein") == {}
    assert values(drift, "feature.drifted") == {"x": 0}


def test_one_models_extreme_values_do_not_take_the_others_off_the_page():
    scores = {"score": rng().random(1_000)}
    drift = Drift(Settings(), [reference(scores), reference(scores, "healthy", "1")])
    drift.update(records({"score": [0.5] * 300}, Identity("healthy", "1")))
    drift.update(records({"score": [1.7e308, 1.7e308, -1.7e308, -1.7e308] * 100}))
    rows = values(drift, "prediction.window.rows", output="score", model="healthy")
    assert rows == {"": 300}
    assert values(drift, "prediction.drifted", model="fraud") == {"score": 1}
    assert values(drift, "prediction.mean", model="fraud") == {}


def test_infinite_values_count_but_have_no_mean():
    drift = Drift(Settings(), [reference({"score": np.full(1_000, 100.0)})])
    drift.update(records({"score": [100.0, float("inf")] * 150}))
    assert values(drift, "prediction.mean") == {"score": 100}
    assert values(drift, "prediction.out_of_range") == {"score": 0.5}
    assert values(drift, "prediction.drift.statistic", statistic="wasserstein") == {}
    (histogram,) = [m for m in drift.collect(NOW) if m.name == "prediction.histogram"]
    assert histogram.points[0].sum == 15_000


@pytest.mark.parametrize("seed", range(3))
def test_float32_served_against_a_float64_reference_is_not_drift(seed):
    r = rng(seed)
    columns = {
        "steps": np.round(r.integers(1, 11, 20_000) * 0.1, 1),
        "constant": np.full(20_000, 0.1),
        "atom": np.where(r.random(20_000) < 0.9, 0.1, r.random(20_000)),
    }
    drift = Drift(Settings(), [reference(columns)])
    drift.update(records({name: column[:5_000].astype(np.float32) for name, column in columns.items()}))
    assert values(drift, "feature.drifted") == {"steps": 0, "constant": 0, "atom": 0}
    assert values(drift, "feature.out_of_range") == {"steps": 0, "constant": 0, "atom": 0}


def test_a_saturated_column_that_leaves_its_ceiling_is_drift():
    r = rng(7)
    drift = Drift(
        Settings(), [reference({"x": np.where(r.random(20_000) < 0.96, 100.0, r.random(20_000) * 100)})]
    )
    drift.update(records({"x": np.full(5_000, 50.0)}))
    assert values(drift, "feature.drifted") == {"x": 1}


@pytest.mark.parametrize("distinct", [300, 3_000])
def test_many_categories_of_one_frequency_are_not_drift(distinct):
    r = rng(distinct)
    for _ in range(5):
        drift = Drift(Settings(), [reference({"c": r.integers(0, distinct, 5_000).astype(str)})])
        drift.update(records({"c": r.integers(0, distinct, 10_000).astype(str)}))
        assert values(drift, "feature.drifted") == {"c": 0}


def test_a_column_that_vanishes_is_missing():
    drift = Drift(Settings(), [reference({"x": [1.0, 2.0], "c": ["a", "b"], "y": [1.0, 2.0]})])
    drift.update(records({"y": [1.0] * 10}))
    assert values(drift, "feature.missing") == {"x": 1, "c": 1, "y": 0}


def test_skipped_columns_are_those_of_the_latest_batches_and_outputs_are_outputs():
    drift = Drift(Settings(), [reference({"x": [1.0, 2.0]})])
    more = records({"x": [1.0], "z": [1.0], "score": [0.5]})
    drift.update(more)
    drift.update(records({"x": [1.0]}))
    assert values(drift, "feature.skipped") == {"z no_reference": 1}
    drift.update(records({"x": [1.0]}))
    assert values(drift, "feature.skipped") == {}
    drift.update(more)
    assert values(drift, "feature.skipped") == {"z no_reference": 1}
    assert values(drift, "prediction.skipped") == {"score no_reference": 1}


def test_other_windows_tell_the_statistics_that_are_asked_for():
    settings = Settings(other_windows=(Duration("5m"),), other_windows_statistics=("psi", "ks"))
    drift = Drift(settings, [reference(table(20_000, 1))])
    drift.update(records(table(5_000, 2, shift=8.0)))
    for name in ("statistic", "p_value"):
        whole = values(drift, f"feature.drift.{name}")
        told = {key: value for key, value in whole.items() if key.split()[1] in ("psi", "ks")}
        assert values(drift, f"feature.drift.{name}", window="5m") == told
        assert len(whole) > 3 * len(told)
    quantiles = values(drift, "feature.drift.null_quantile", window="5m")
    assert {key.split()[1] for key in quantiles} == {"psi", "ks"}


def test_settings_know_every_statistic():
    assert get_args(Statistic) == STATISTICS

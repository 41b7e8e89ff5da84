"""What is told of several columns together: verdict, groups, outliers; through the drift processor."""

from __future__ import annotations

import builtins
import logging
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.config import Multivariate
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.drift import Drift
from tidegauge.reference import ReferenceBuilder

NOW = 1_800_000_000 * 10**9
LATER = NOW + 61 * 10**9
ME = Identity("fraud", "2.1")


def records(columns, now=NOW):
    rows = pa.RecordBatch.from_pydict(columns)
    return Records("flight", ME, layout_of(rows.schema), rows, now, rows.nbytes)


def reference(columns):
    builder = ReferenceBuilder(bins=20, max_categories=10)
    rows = pa.RecordBatch.from_pydict(columns)
    builder.update(rows, layout_of(rows.schema))
    return builder.build("fraud", "2.1", "file")


def table(rows, seed, correlation=0.9, shift=0.0):
    random = np.random.default_rng(seed)
    a, b, other = (random.normal(size=rows) for _ in range(3))
    return {
        "income": a + shift,
        "spend": correlation * a + (1 - correlation**2) ** 0.5 * b + shift,
        "age": other,
        "country": random.choice(["de", "fr", "it"], rows),
        "member": random.random(rows) < 0.4,
        "score": random.random(rows),
    }


def values(drift, name, later=LATER):
    """By attributes besides the identity, when what is begun at `later` is done."""
    for now in (NOW, later):
        drift.collect(now)
    drift.turns.wait()
    return {
        " ".join(value for key, value in point.attributes if key not in ME._fields): point.value
        for metric in drift.collect(later)
        for point in (metric.points if metric.name == name else ())
    }


def fed(columns, *, of=None, **settings):
    drift = Drift(Settings(multivariate=Multivariate(**settings)), [reference(of or table(5_000, 1))])
    drift.update(records(columns))
    return drift


def test_rows_like_the_references_are_not_drifted():
    drift = fed(table(2_000, 2))
    assert values(drift, "model.drifted") == {"": 0}
    found = values(drift, "model.drift.statistic")
    assert found["domain_auc"] == pytest.approx(0.5, abs=0.05)
    assert found["pca_error"] == pytest.approx(1, abs=0.2)
    assert min(values(drift, "model.drift.p_value").values()) > 0.01
    assert values(drift, "model.drift.sample_rows")[""] == 1_000


def test_a_correlation_that_breaks_is_seen_though_no_column_moves():
    drift = fed(table(2_000, 2, correlation=0.0))
    assert values(drift, "model.drifted") == {"": 1}
    assert set(values(drift, "feature.drifted").values()) == {0}
    found = values(drift, "model.drift.statistic")
    assert found["domain_auc"] > 0.7
    assert found["pca_error"] > 1.2
    assert values(drift, "model.drift.p_value")["pca_error"] < 1e-6


def test_features_that_drift_together_are_a_group():
    columns = table(2_000, 2, shift=1.0)
    columns["age"] = columns["age"] + 1.0
    drift = fed(columns)
    assert values(drift, "model.drift.group.size") == {"income": 2}
    assert values(drift, "feature.drift.group") == {"income income": 1, "spend income": 1}
    assert values(drift, "feature.drifted")["age"] == 1


def test_correlated_features_that_do_not_drift_are_no_group():
    assert values(fed(table(2_000, 2)), "model.drift.group.size") == {}


def test_few_rows_and_old_references_are_not_judged():
    few = fed(table(150, 2))
    assert values(few, "model.drift.unjudged") == {"few_rows": 1}
    made = reference(table(5_000, 1))
    old = replace(made, profiles=tuple(replace(one, sample=one.sample[:0]) for one in made.profiles))
    drift = Drift(Settings(), [old])
    drift.update(records(table(2_000, 2)))
    assert values(drift, "model.drift.unjudged") == {"no_sample": 1}
    assert values(drift, "model.drifted") == {}


def test_nothing_is_sampled_where_that_is_off():
    drift = fed(table(2_000, 2), sample_rows=0)
    assert values(drift, "model.drift.unjudged") == {}
    assert values(drift, "model.drifted") == {}


def test_outlying_rows_are_a_share():
    pytest.importorskip("sklearn", reason="the extra outliers is not installed")
    odd = table(2_000, 2)
    for name in ("income", "spend", "age"):
        odd[name][:400] += 12.0
    for columns, low, high in ((table(2_000, 2), 0.02, 0.09), (odd, 0.18, 0.3)):
        drift = fed(columns, outliers=True)
        ratio = values(drift, "model.drift.statistic")["outlier_ratio"]
        assert low < ratio < high
        assert (values(drift, "model.drift.p_value")["outlier_ratio"] < 1e-6) == (columns is odd)


def test_without_the_extra_the_rest_is_told_and_the_log_says_why(monkeypatch, caplog):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    drift = fed(table(2_000, 2), outliers=True)
    with caplog.at_level(logging.WARNING):
        values(drift, "model.drifted")
    assert "pip install 'tidegauge[outliers]'" in caplog.text
    assert set(values(drift, "model.drift.statistic")) == {"domain_auc", "pca_error"}


def test_an_evaluation_waits_for_its_interval_and_for_rows():
    drift = fed(table(2_000, 2))
    before = values(drift, "model.drift.statistic")
    drift.update(records(table(2_000, 3, shift=1.0)))
    assert values(drift, "model.drift.statistic") == before
    after = values(drift, "model.drift.statistic", later=NOW + 122 * 10**9)
    assert after["domain_auc"] > before["domain_auc"] + 0.1


def test_what_was_found_of_rows_leaves_the_window_with_them():
    drift = fed(table(2_000, 2, shift=1.0))
    assert values(drift, "model.drifted") == {"": 1}
    within, after = NOW + 3_000 * 10**9, NOW + 4_000 * 10**9  # of a window of an hour
    assert values(drift, "model.drifted", later=within) == {"": 1}
    assert values(drift, "model.drifted", later=after) == {}
    assert values(drift, "model.drift.unjudged", later=after) == {"few_rows": 1}


def test_nothing_is_judged_before_the_first_interval_is_over():
    drift = fed(table(2_000, 2))
    assert values(drift, "model.drifted", later=NOW + 59 * 10**9) == {}


def test_what_cannot_be_evaluated_takes_nothing_else_off_the_page(caplog):
    drift = fed({**table(2_000, 2), "age": np.full(2_000, np.inf)})
    assert values(drift, "model.drifted") == {"": 1}
    assert "could not be judged" not in caplog.text

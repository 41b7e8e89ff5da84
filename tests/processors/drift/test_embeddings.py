"""Embedding columns through the drift processor."""

from __future__ import annotations

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
from tidegauge.profile import Reference
from tidegauge.reference import ReferenceBuilder

NOW = 1_800_000_000 * 10**9
ME = Identity("ranker", "1")
WIDTH = 24


def vectors(rows, seed, shift=0.0, width=WIDTH, kind=np.float32):
    values = (np.random.default_rng(seed).normal(1, 1, (rows, width)) + shift).astype(kind)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)


def records(columns, now=NOW):
    rows = columns if isinstance(columns, pa.RecordBatch) else pa.RecordBatch.from_pydict(columns)
    return Records("flight", ME, layout_of(rows.schema), rows, now, rows.nbytes)


def reference(*batches):
    builder = ReferenceBuilder(bins=10, max_categories=10)
    for columns in batches:
        rows = pa.RecordBatch.from_pydict(columns)
        builder.update(rows, layout_of(rows.schema))
    return builder.build("ranker", "1", "file")


def values(drift, name, now=NOW):
    return {
        " ".join(value for key, value in point.attributes if key not in ME._fields): point.value
        for metric in drift.collect(now)
        for point in (metric.points if metric.name == name else ())
    }


def test_an_embedding_that_moves_is_drifted_and_one_that_does_not_is_not():
    drift = Drift(Settings(), [reference({"e": vectors(3_000, 1), "still": vectors(3_000, 2)})])
    drift.update(records({"e": vectors(800, 3, shift=0.5), "still": vectors(800, 4)}))
    assert values(drift, "feature.drifted") == {"e": 1, "still": 0}
    score = values(drift, "feature.drift.score")
    assert score["e"] > 0.2
    assert score["still"] < 0.05
    found = values(drift, "feature.drift.statistic")
    assert found["e mmd"] == score["e"]
    assert found["e drifted_components"] == 1.0  # 0.25 variances, of which 0.1 are material
    assert found["e mean_euclidean"] == pytest.approx(0.5 * WIDTH**0.5, rel=0.1)
    assert values(drift, "feature.drift.p_value")["e mmd"] < 1e-9
    assert values(drift, "feature.window.rows") == {"e": 800, "still": 800}


def test_components_that_moved_are_a_share():
    moved = np.zeros(WIDTH)
    moved[:6] = 1.0
    drift = Drift(Settings(threshold=0.2), [reference({"e": vectors(3_000, 1)})])
    drift.update(records({"e": vectors(2_000, 3, shift=moved)}))
    assert values(drift, "feature.drift.statistic")["e drifted_components"] == 0.25


def test_rows_without_a_whole_vector_are_missing():
    rows = [
        [1.0] * WIDTH,
        None,
        [np.nan] + [1.0] * (WIDTH - 1),
        [1.0] * (WIDTH - 1) + [np.inf],
        [2.0] * WIDTH,
    ]
    column = pa.array(rows, pa.list_(pa.float64(), WIDTH))
    drift = Drift(Settings(), [reference({"e": vectors(3_000, 1), "x": np.arange(3_000.0)})])
    drift.update(records({"e": column, "x": np.arange(5.0)}))
    drift.update(records({"x": np.arange(5.0)}))
    assert values(drift, "feature.window.rows")["e"] == 10
    assert values(drift, "feature.missing")["e"] == 0.8
    assert values(drift, "feature.drift.unjudged")["e few_rows"] == 1


def test_batches_however_cut_and_typed_give_the_same_sums():
    made = reference({"e": vectors(3_000, 1)})
    whole = vectors(1_000, 5)
    doubles = whole.cast(pa.list_(pa.float64(), WIDTH))
    found = []
    for pieces in ([whole], [doubles], [whole.slice(0, 37), whole.slice(37, 400), whole.slice(437)]):
        drift = Drift(Settings(), [made])
        drift.update(*(records({"e": piece}) for piece in pieces))
        found.append(values(drift, "feature.drift.statistic"))
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0] == pytest.approx(found[2], rel=1e-6)


def test_another_width_is_another_type():
    drift = Drift(Settings(), [reference({"e": vectors(3_000, 1)})])
    drift.update(records({"e": vectors(300, 1, width=8)}))
    assert values(drift, "feature.skipped") == {"e type_changed": 1}


def test_a_reference_of_first_rows_has_embeddings_too():
    drift = Drift(Settings(reference_rows=1_000))
    drift.update(records({"e": vectors(1_000, 1), "x": np.arange(1_000.0)}))
    drift.update(records({"e": vectors(500, 2, shift=1.0), "x": np.arange(500.0)}))
    assert values(drift, "feature.drifted")["e"] == 1


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30])
def test_vectors_of_any_length_are_judged(scale):
    with np.errstate(under="ignore"):
        still, moved = ((vectors(400, 1, shift).flatten().to_numpy() * scale) for shift in (0.0, 1.0))
    column = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(flat.astype(np.float32)), WIDTH)
        for name, flat in (("e", still), ("moved", moved))
    }
    drift = Drift(Settings(), [reference({"e": column["e"]})])
    drift.update(records({"e": column["e"]}))
    assert values(drift, "feature.drifted") == {"e": 0}
    drift = Drift(Settings(), [reference({"e": column["e"]})])
    drift.update(records({"e": column["moved"]}))
    assert values(drift, "feature.drifted") == {"e": 1}


def test_first_rows_that_will_not_do_are_told_once(caplog):
    drift = Drift(Settings(reference_rows=100))
    nothing = vectors(100, 1, shift=np.nan)
    for _ in range(5):
        drift.update(records({"e": nothing}))
    assert caplog.text.count("no reference of ranker 1") == 1


def test_no_more_embeddings_are_watched_than_is_set():
    made = reference({name: vectors(300, 1) for name in "abc"})
    drift = Drift(Settings(multivariate=Multivariate(max_embeddings=2)), [made])
    drift.update(records({name: vectors(300, 2) for name in "abc"}))
    assert set(values(drift, "feature.drifted")) == {"a", "b"}


def test_what_is_saved_is_what_is_loaded(tmp_path):
    made = reference({"e": vectors(500, 1), "x": np.arange(500.0)})
    made.save(tmp_path / "r.parquet")
    loaded = Reference.load(tmp_path / "r.parquet")
    [mine], [its] = made.embeddings, loaded.embeddings
    assert (mine.name, mine.role, mine.missing) == (its.name, its.role, its.missing)
    for one, two in zip(mine.summary, its.summary, strict=True):
        assert np.array_equal(one, two)
    assert np.array_equal(made.profiles[0].sample, loaded.profiles[0].sample)


def test_the_sums_survive_a_restart():
    made = reference({"e": vectors(2_000, 1)})
    before, after = Drift(Settings(), [made]), Drift(Settings(), [made])
    before.update(records({"e": vectors(700, 2, shift=0.3)}))
    assert after.restore(before.capture().frames(), complete=True) == []
    assert values(after, "feature.drift.statistic") == values(before, "feature.drift.statistic")


def test_rows_and_limits_are_told_once_beside_an_outgoing_reference():
    drift = Drift(Settings(), [reference({"e": vectors(3_000, 1)})])
    drift.update(records({"e": vectors(800, 3)}))
    prepared = drift.prepare(reference({"e": vectors(3_000, 2)}))
    assert prepared is not None
    drift.switch(prepared, NOW)
    drift.update(records({"e": vectors(700, 4)}))
    assert values(drift, "feature.window.rows") == {"e": 700}
    assert values(drift, "feature.missing") == {"e": 0}
    assert len(values(drift, "feature.drift.score")) == 2
    assert values(drift, "model.drift.limit")["mmd_threshold"] == 0.1


@pytest.mark.parametrize("width", [WIDTH, WIDTH + 6])
def test_after_a_switch_vectors_are_summed_about_the_new_reference(width):
    old, new = reference({"e": vectors(3_000, 1)}), reference({"e": vectors(3_000, 2, 3.0, width)})
    switched, fresh = Drift(Settings(), [old]), Drift(Settings(), [new])
    switched.update(records({"e": vectors(800, 3)}))
    prepared = switched.prepare(new)
    assert prepared is not None
    switched.switch(prepared, NOW)
    switched.collect(NOW)
    for drift in (switched, fresh):
        assert drift.update(records({"e": vectors(800, 4, 2.5, width)})) == {}
    scores, wanted = (values(drift, "feature.drift.score") for drift in (switched, fresh))
    assert scores["e"] == wanted["e"] > 0.1
    assert values(switched, "feature.window.rows") == {"e": 800}


def test_the_same_vectors_go_on_after_a_switch():
    old = reference({"e": vectors(3_000, 1), "kind": ["a"] * 2_000 + ["b"] * 1_000})
    new = replace(old, profiles=tuple(replace(one, counts=one.counts * 2) for one in old.profiles))
    drift = Drift(Settings(), [old])
    drift.update(records({"e": vectors(800, 3), "kind": ["a"] * 800}))
    prepared = drift.prepare(new)
    assert prepared is not None
    drift.switch(prepared, NOW)
    assert values(drift, "feature.window.rows") == {"e": 800, "kind": 800}


def test_vectors_that_are_missing_or_gone_violate_data_quality():
    drift = Drift(Settings(), [reference({"e": vectors(3_000, 1), "kind": ["a", "b", "c"] * 1_000})])
    drift.update(records({"e": vectors(800, 2), "kind": ["a", "b"] * 400}))
    assert values(drift, "feature.vanished") == {}
    assert not any(values(drift, "model.data_quality.violations").values())
    drift.update(records({"kind": ["a", "b"] * 400}))
    assert values(drift, "feature.vanished") == {"e": 1}
    found = values(drift, "model.data_quality.violations")
    assert {check for check, count in found.items() if count} == {"vanished", "missing"}
    assert values(drift, "feature.missing")["e"] == 0.5

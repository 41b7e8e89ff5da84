"""Change detectors on outputs and errors: what they are fed, when they tell, and what a restart keeps."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import drift as river

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.changes import Changes
from tidegauge.processors.drift.drift import Drift
from tidegauge.reference import ReferenceBuilder

S = 10**9
NOW = 1_800_000_000 * S
ME = Identity("fraud", "2.1")
ALL = ("adwin", "page_hinkley", "ddm", "eddm", "hddm_a")


def records(columns, second=0):
    rows = pa.RecordBatch.from_pydict(columns)
    return Records("flight", ME, layout_of(rows.schema), rows, NOW + second * S, rows.nbytes)


def reference(columns):
    rows = pa.RecordBatch.from_pydict(columns)
    builder = ReferenceBuilder(bins=20, max_categories=10)
    builder.update(rows, layout_of(rows.schema))
    return builder.build("fraud", "2.1", "file")


def of(columns, *detectors):
    return Changes(reference(columns).profiles, Settings(detectors=detectors or ALL))


def told(changes):
    """Counts and times of changes, by what, output and detector."""
    points = {"prediction.changes": [], "prediction.change.time": []}
    changes.report(ME, points)

    def by_key(name):
        found = {}
        for point in points[name]:
            at = dict(point.attributes)
            found[at["of"], at["output"], at["detector"]] = point.value
        return found

    return by_key("prediction.changes"), by_key("prediction.change.time")


def scores(seed, rows, shift=0.0):
    return np.clip(np.random.default_rng(seed).beta(2, 5, rows) + shift, 0, 1)


SCORES = {"score": scores(0, 5_000), "x": np.arange(5_000.0)}


def test_an_output_that_shifts_is_told_with_the_time_of_the_row():
    changes = of(SCORES, "adwin", "page_hinkley")
    values = np.concatenate([scores(1, 20_000), scores(2, 5_000, 0.1)])
    times = NOW - 25_000 * S + np.arange(25_000) * S
    for begin in range(0, 25_000, 1_000):
        part = slice(begin, begin + 1_000)
        changes.update(
            records({"score": values[part], "timestamp": pa.array(times[part], pa.timestamp("ns"))})
        )
    counts, at = told(changes)
    assert counts == {("value", "score", "adwin"): 1, ("value", "score", "page_hinkley"): 1}
    shifted = (NOW - 5_000 * S) / S
    assert all(shifted < second < shifted + 700 for second in at.values())


def test_features_are_not_looked_at():
    changes = of(SCORES)
    changes.update(records({"score": scores(1, 100), "x": np.zeros(100)}))
    assert {output for _, output, _ in told(changes)[0]} == {"score"}


def test_adwin_is_fed_the_share_of_the_references_range():
    changes = of({"prediction": [10.0, 30.0]}, "adwin")
    values = np.concatenate(
        [np.random.default_rng(3).uniform(0, 40, 3_000), np.random.default_rng(4).uniform(20, 40, 500)]
    )
    changes.update(records({"prediction": values}))
    detector, found = river.ADWIN(), 0
    for value in np.clip((values - 10) / 20, 0, 1).tolist():
        detector.update(value)
        found += detector.drift_detected
    assert told(changes)[0] == {("value", "prediction", "adwin"): found}
    assert found


def test_page_hinkley_is_fed_standard_deviations():
    changes = of({"prediction": [-4.0, 4.0] * 500}, "page_hinkley")
    values = np.random.default_rng(5).normal(np.repeat([0, 3], 2_000), 4)
    changes.update(records({"prediction": values}))
    detector, found = river.PageHinkley(delta=0.1, threshold=90.0, alpha=1.0), 0
    for value in (values / 4).tolist():
        detector.update(value)
        found += detector.drift_detected
    assert told(changes)[0] == {("value", "prediction", "page_hinkley"): found}
    assert found


def test_one_outlier_is_no_change_and_what_is_no_number_is_left_out():
    changes = of(SCORES, "adwin", "page_hinkley")
    rows = [*scores(1, 2_000), 1e308, -1e308, np.inf, -np.inf, np.nan, None, *scores(2, 2_000)]
    changes.update(records({"score": pa.array(rows, pa.float64())}))
    other = of(SCORES, "adwin", "page_hinkley")
    finite = [row for row in rows if row is not None and np.isfinite(row)]
    other.update(records({"score": finite}))
    assert told(changes) == told(other)
    assert not any(told(changes)[0].values())


@pytest.mark.parametrize(
    ("predictions", "labels"),
    [
        (pa.array, pa.array),
        (lambda bits: pa.array(bits, pa.int64()), lambda bits: pa.array(bits, pa.uint8())),
        (lambda bits: pa.array(bits, pa.int64()), pa.array),
        (
            lambda bits: pa.array(np.where(bits, "yes", "no")),
            lambda bits: pa.array(np.where(bits, "yes", "no")),
        ),
        (
            lambda bits: pa.array(np.where(bits, "yes", "no")).dictionary_encode(),
            lambda bits: pa.array(np.where(bits, "yes", "no"), pa.large_string()),
        ),
    ],
    ids=["booleans", "integers", "integer and boolean", "texts", "dictionary and text"],
)
def test_errors_of_a_classifier_are_fed_to_four_detectors(predictions, labels):
    random = np.random.default_rng(6)
    truth = random.random(6_000) < 0.5
    wrong = random.random(6_000) < np.repeat([0.05, 0.4], [4_000, 2_000])
    columns = {"prediction": predictions(truth ^ wrong), "label": labels(truth)}
    changes = of(columns)
    changes.update(records(columns))
    counts = {key: count for key, count in told(changes)[0].items() if key[0] == "error"}
    for name, theirs in {
        "adwin": river.ADWIN(),
        "ddm": river.binary.DDM(),
        "eddm": river.binary.EDDM(),
        "hddm_a": river.binary.HDDMA(),
    }.items():
        found = 0
        for value in wrong.tolist():
            theirs.update(int(value))
            found += theirs.drift_detected
        assert counts.pop(("error", "prediction", name)) == found
        assert found
    assert not counts


def test_errors_of_a_regression_are_distances_in_shares_of_the_range():
    random = np.random.default_rng(7)
    truth = random.uniform(100, 200, 6_000)
    columns = {
        "prediction": truth + random.normal(0, np.repeat([2, 12], [4_000, 2_000])),
        "label": truth.astype(np.float32),
    }
    changes = of(columns)
    changes.update(records(columns))
    counts, _ = told(changes)
    assert counts["error", "prediction", "adwin"] >= 1
    assert ("error", "prediction", "hddm_a") in counts
    assert ("error", "prediction", "ddm") not in counts


def test_a_score_is_held_against_its_label_where_there_is_no_prediction():
    truth = np.random.default_rng(8).random(4_000) < 0.3
    columns = {"score": np.where(truth, 0.9, 0.1), "label": pa.array(truth)}
    changes = of(columns, "adwin")
    changes.update(records(columns))
    assert told(changes)[0] == {("value", "score", "adwin"): 0, ("error", "score", "adwin"): 0}
    changes.update(records({"score": np.where(truth, 0.1, 0.9), "label": pa.array(truth)}))
    assert told(changes)[0]["error", "score", "adwin"] == 1


@pytest.mark.parametrize(
    "columns",
    [
        {"prediction": [1.0, 2.0], "label": ["a", "b"]},
        {"prediction": ["a", "b"], "label": [1, 2]},
        {"prediction": [7.0, 7.0], "label": [7.0, 8.0]},
        {
            "prediction": pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0]), 1),
            "label": [7.0, 8.0],
            "x": [1, 2],
        },
        {"prediction": [1.0, 2.0], "label": pa.array([None, None])},
        {"score": [0.1, 0.2]},
    ],
)
def test_what_cannot_be_compared_has_no_error(columns):
    changes = of(columns)
    changes.update(records(columns))
    assert not [key for key in told(changes)[0] if key[0] == "error"]


def test_no_row_and_no_detector_tell_nothing():
    changes = of(SCORES)
    changes.update(records({"score": pa.array([], pa.float64())}))
    changes.update(records({"score": pa.array([None], pa.float64())}))
    assert told(changes) == ({}, {})
    changes = Changes(reference(SCORES).profiles, Settings(detectors=()))
    changes.update(records({"score": scores(1, 10)}))
    assert told(changes) == ({}, {})


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(0, 3_000), shift=st.sampled_from([0.0, 0.3]))
def test_a_restart_leaves_no_trace_in_what_they_know(cut, shift):
    truth = np.random.default_rng(9).random(3_000) < 0.5
    values = np.concatenate([scores(1, 1_500), scores(2, 1_500, shift)])
    columns = {"score": values, "label": truth, "prediction": truth}
    whole, before, after = of(columns), of(columns), of(columns)
    whole.update(records(columns))
    before.update(records({name: column[:cut] for name, column in columns.items()}))
    after.restore(before.capture())
    after.update(records({name: column[cut:] for name, column in columns.items()}))
    ours, theirs = after.capture(), whole.capture()
    assert ours.keys() == theirs.keys()
    for key, found in ours.items():
        assert np.array_equal(found.state, theirs[key].state)
        assert found.time_ns == theirs[key].time_ns


def test_what_was_captured_does_not_change():
    changes = of(SCORES, "adwin")
    changes.update(records({"score": scores(1, 100)}))
    [kept] = changes.capture().values()
    state = kept.state.copy()
    changes.update(records({"score": scores(2, 100)}))
    assert np.array_equal(kept.state, state)


def test_a_detector_that_is_no_longer_chosen_is_not_restored():
    both, one = of(SCORES, "adwin", "page_hinkley"), of(SCORES, "page_hinkley")
    both.update(records({"score": scores(1, 100)}))
    one.restore(both.capture())
    assert [key.detector for key in one.capture()] == ["page_hinkley"]


def test_the_processor_tells_them_and_its_state_keeps_them():
    known = reference(SCORES)
    first, second = Drift(Settings(), [known]), Drift(Settings(), [known])
    first.update(records(SCORES))
    first.update(records({"score": scores(2, 2_000, 0.5), "x": np.zeros(2_000)}, second=7))
    assert second.restore(first.capture().frames(), complete=True) == []
    for drift, count in ((first, 1.0), (second, 0.0)):
        metrics = {metric.name: metric for metric in drift.collect(NOW + 8 * S)}
        [changes] = metrics["prediction.changes"].points
        [time] = metrics["prediction.change.time"].points
        assert dict(changes.attributes)["detector"] == "adwin"
        assert changes.value == count
        assert time.value == NOW / S + 7

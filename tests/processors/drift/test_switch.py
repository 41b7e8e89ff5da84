"""A model gets another reference while rows come."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from tidegauge.batch import Records
from tidegauge.config import Baseline
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.drift import Drift
from tidegauge.reference import ReferenceBuilder
from tidegauge.units import Duration

S = 10**9
NOW = 1_800_000_000 * S
SETTINGS = Settings(
    window=Duration("60s"),
    other_windows=(Duration("300s"),),
    panes=6,
    allowed_lateness=Duration("20s"),
    min_rows=20,
    reference_overlap=Duration("100s"),
)
PRODUCTION, CANARY = Identity("m", "1", "production"), Identity("m", "1", "canary")


def table(seed, rows, mean=0.0):
    random = np.random.default_rng(seed)
    return {"x": random.normal(mean, 1, rows), "score": random.random(rows)}


def reference(mean=0.0, model="m"):
    builder = ReferenceBuilder(bins=5, max_categories=10)
    rows = pa.RecordBatch.from_pydict(table(99, 2_000, mean))
    builder.update(rows, layout_of(rows.schema))
    return builder.build(model, "1", "file")


OLD, NEW = reference(), reference(3.0)
SAME_BINS = replace(
    OLD, profiles=tuple(replace(one, counts=one.counts + 90 * np.arange(5)) for one in OLD.profiles)
)


def send(drift, second, rows=50, mean=0.0, identity=PRODUCTION, event_s=None):
    columns = table(second, rows, mean)
    if event_s is not None:
        columns["timestamp"] = pa.array([NOW + event_s * S] * rows, pa.timestamp("ns"))
    batch = pa.RecordBatch.from_pydict(columns)
    return drift.update(
        Records("test", identity, layout_of(batch.schema), batch, NOW + second * S, batch.nbytes)
    )


def switch(drift, wanted, second):
    prepared = drift.prepare(wanted)
    assert prepared is not None
    drift.switch(prepared, NOW + second * S)


def told(drift, second, name, reference=""):
    """The values of a metric's points of that reference, by their other attributes."""
    found = {}
    for metric in drift.collect(NOW + second * S):
        for point in metric.points if metric.name == name else ():
            attributes = dict(point.attributes)
            if attributes.pop("reference", "") == reference:
                found[tuple(attributes.items())] = getattr(point, "value", point)
    return found


def by_feature(found, **wanted):
    return {
        dict(at).get("feature", ""): value
        for at, value in found.items()
        if wanted.items() <= dict(at).items()
    }


def ids(drift, second):
    """The references that a model is compared with, by state."""
    found = {}
    for metric in drift.collect(NOW + second * S):
        for point in metric.points if metric.name == "model.reference.info" else ():
            attributes = dict(point.attributes)
            found[attributes["state"]] = attributes["reference"]
    return found


def test_both_references_are_told_for_the_overlap_and_then_the_new_one_alone():
    drift = Drift(SETTINGS, [OLD])
    send(drift, 0)
    before = ids(drift, 0)
    assert list(before) == ["current"]
    switch(drift, NEW, 10)
    assert ids(drift, 10)["outgoing"] == before["current"]
    assert by_feature(told(drift, 10, "feature.drift.unjudged")) == {"x": 1}  # no row yet on the new bins
    send(drift, 11)
    old = before["current"]
    assert by_feature(told(drift, 12, "feature.drifted"), stage="production") == {"x": 1}
    assert by_feature(told(drift, 12, "feature.drifted", old), stage="production") == {"x": 0}
    assert set(told(drift, 12, "feature.window.rows", old)) == set()
    send(drift, 105)
    assert ids(drift, 109)["outgoing"] == old
    assert list(ids(drift, 110)) == ["current"]
    assert ids(drift, 110)["current"] != old
    assert told(drift, 110, "feature.drifted", old) == {}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.sampled_from([0.0, 3.0])), min_size=1, max_size=12),
    st.integers(0, 11),
)
def test_what_the_old_one_tells_is_what_it_would_have_told_had_nothing_changed(steps, when):
    drift, control, second = Drift(SETTINGS, [OLD]), Drift(SETTINGS, [OLD]), 0
    for number, (passed, mean) in enumerate(steps):
        second += passed
        for one in (drift, control):
            send(one, second, mean=mean)
        if number == when % len(steps):
            switch(drift, NEW, second)
    old = ids(drift, second)["outgoing"]
    for name in (
        "feature.drift.score",
        "feature.drift.p_value",
        "feature.drift.null_quantile",
        "feature.drift.statistic",
        "prediction.drift.statistic",
        "feature.drifted",
        "feature.drift.alarm",
        "feature.drift.evidence",
        "model.drift.alarm",
    ):
        assert told(drift, second, name, old) == told(control, second, name)


def test_on_the_same_bins_the_windows_go_on():
    drift, control = Drift(SETTINGS, [OLD]), Drift(SETTINGS, [OLD])
    for second in range(0, 200, 10):
        send(drift, second)
        send(control, second)
        if second == 100:
            switch(drift, SAME_BINS, second)
    for name in ("feature.window.rows", "feature.window.count", "prediction.mean", "prediction.histogram"):
        assert told(drift, 200, name) == told(control, 200, name)
    scores = told(drift, 200, "feature.drift.score")
    assert scores != told(control, 200, "feature.drift.score")  # against other counts


def test_on_other_bins_they_begin_with_no_rows_and_so_does_the_histogram():
    drift = Drift(SETTINGS, [OLD])
    for second in range(0, 60, 10):
        send(drift, second)
    switch(drift, NEW, 60)
    assert set(told(drift, 60, "feature.window.rows").values()) == {0}
    send(drift, 61)
    assert set(told(drift, 61, "feature.window.rows").values()) == {50}
    [histogram] = told(drift, 61, "prediction.histogram").values()
    assert sum(histogram.counts) == 50
    assert histogram.start_ns == NOW + 60 * S


def test_rows_that_were_late_are_late_after_a_switch():
    drift = Drift(SETTINGS, [OLD])
    send(drift, 100, event_s=100)
    switch(drift, NEW, 100)
    assert send(drift, 101, event_s=70) == {"late": 50}
    assert send(drift, 101, event_s=85) == {}


def test_all_identities_of_the_model_go_over_at_once_and_no_other():
    drift = Drift(SETTINGS, [OLD, reference(model="n")])
    for identity in (PRODUCTION, CANARY, Identity("n", "1")):
        send(drift, 0, identity=identity)
    old = ids(drift, 0)["current"]
    switch(drift, NEW, 0)
    send(drift, 1, identity=CANARY)
    stages = {dict(at).get("stage") for at in told(drift, 1, "feature.drifted", old)}
    assert stages == {"production", "canary"}
    found = told(drift, 1, "feature.window.rows")
    assert {(dict(at)["model"], dict(at).get("stage")): value for at, value in found.items()} == {
        ("m", "production"): 0,
        ("m", "canary"): 50,
        ("n", None): 50,
    }


def test_of_two_changes_in_a_row_the_first_reference_is_let_go():
    drift = Drift(SETTINGS, [OLD])
    send(drift, 0)
    first = ids(drift, 0)["current"]
    switch(drift, NEW, 1)
    second = ids(drift, 1)["current"]
    switch(drift, reference(9.0), 2)
    assert ids(drift, 2)["outgoing"] == second != first
    assert told(drift, 2, "feature.drift.unjudged", first) == {}


def test_an_alarm_goes_on_under_the_old_label_and_the_new_one_learns_first():
    drift = Drift(structs.replace(SETTINGS, reference_overlap=Duration("10m")), [OLD])
    for second in range(0, 300, 5):
        send(drift, second, mean=2.0 if second >= 100 else 0.0)
    assert set(told(drift, 300, "model.drift.alarm").values()) == {1}
    old = ids(drift, 300)["current"]
    switch(drift, reference(2.0), 300)
    assert told(drift, 300, "model.drift.alarm") == {}
    for second in range(300, 500, 5):
        send(drift, second, mean=2.0)
    assert set(told(drift, 500, "model.drift.alarm", old).values()) == {1}
    assert set(told(drift, 500, "model.drift.alarm").values()) == {0}


def test_the_stream_is_one_and_the_same():
    """What is counted of it does not begin anew, for it has nothing to do with a reference."""
    drift = Drift(SETTINGS, [OLD])
    send(drift, 100, event_s=100)
    send(drift, 100, event_s=0)
    switch(drift, NEW, 100)
    send(drift, 101, event_s=0)
    found = {dict(at)["reason"]: value for at, value in told(drift, 101, "records.left_out").items()}
    assert found == {"late": 100, "future": 0}


def test_after_a_switch_the_state_is_written_and_belongs_to_the_new_reference():
    drift = Drift(SETTINGS, [OLD])
    send(drift, 0)
    stamp = drift.capture().stamp
    switch(drift, SAME_BINS, 1)
    assert drift.capture().stamp != stamp
    again = Drift(SETTINGS, [SAME_BINS])
    assert again.restore(list(drift.capture().frames()), complete=True) == []
    assert told(again, 1, "feature.window.rows") == told(drift, 1, "feature.window.rows")
    assert Drift(SETTINGS, [OLD]).restore(list(drift.capture().frames()), complete=True)


def test_other_thresholds_are_those_of_both():
    drift = Drift(SETTINGS, [OLD])
    send(drift, 0, mean=1.0)
    old = ids(drift, 0)["current"]
    switch(drift, SAME_BINS, 1)
    assert set(told(drift, 1, "feature.drifted", old).values()) == {1}
    drift.retune(structs.replace(SETTINGS, threshold=50.0))
    for reference in (old, ""):
        assert set(told(drift, 1, "feature.drifted", reference).values()) == {0}


def test_the_very_same_reference_is_no_change():
    drift = Drift(SETTINGS, [OLD])
    assert drift.prepare(reference()) is None
    assert drift.prepare(NEW) is not None


@pytest.mark.parametrize(("wanted", "kept"), [(SAME_BINS, True), (NEW, False)])
def test_the_past_goes_on_where_the_bins_are_the_same(wanted, kept):
    its = structs.replace(SETTINGS, other_baselines=(Baseline.ROLLING,), rolling_period=Duration("1d"))
    drift = Drift(its, [OLD])
    for second in range(0, 5 * 3600, 600):
        send(drift, second)
    hours = len(drift.capture().identities[0].past.hours)
    assert hours >= 4
    switch(drift, wanted, 5 * 3600)
    assert len(drift.capture().identities[0].past.hours) == (hours if kept else 0)


def test_a_season_of_psi_is_that_of_the_new_reference():
    """Told by the old one in the weeks before, the first hours would be 10 deviations away and more."""
    its = structs.replace(
        SETTINGS, window=Duration("1h"), other_windows=(), other_baselines=(Baseline.SEASONAL,), panes=2
    )
    drift, weeks = Drift(its, [OLD]), 2 * 168 * 3600
    for second in range(0, weeks + 4 * 3600, 1800):
        send(drift, second, rows=400)
        if second == weeks:
            switch(drift, SAME_BINS, second)
    found = told(drift, weeks + 4 * 3600, "feature.seasonal.deviation")
    [psi] = [value for at, value in found.items() if dict(at)["summary"] == "psi" and "feature" in dict(at)]
    assert abs(psi) < 4

"""The drift state: what is captured, written as Arrow and restored is what was there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from tidegauge.batch import Records
from tidegauge.config import Adaptive, Baseline, Multivariate
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.metric import Histogram
from tidegauge.processors.drift.counts import Counts
from tidegauge.processors.drift.drift import Drift
from tidegauge.reference import ReferenceBuilder
from tidegauge.units import Duration

S = 10**9
NOW = 1_800_000_000 * S
SETTINGS = Settings(
    window=Duration("60s"),
    other_windows=(Duration("12s"), Duration("300s")),
    panes=6,
    allowed_lateness=Duration("20s"),
    reference_rows=200,
    min_rows=20,
    bins=5,
    multivariate=Multivariate(sample_rows=0),
)
ALL = structs.replace(
    SETTINGS,
    window=Duration("1s"),
    other_windows=(Duration("6s"),),
    allowed_lateness=Duration("1s"),
    min_rows=1,
    other_baselines=(Baseline.FIXED, Baseline.ROLLING, Baseline.SEASONAL),
    fixed_period="2027-01-15T08:00:00Z/2027-01-15T08:00:30Z",
    adaptive=Adaptive(use="show"),
)
"""Windows so short that a column has scores of its own to go by."""

PRODUCTION, CANARY = Identity("m", "1", "production"), Identity("m", "1", "canary")


def table(seed, rows, shift=0.0):
    random = np.random.default_rng(seed)
    return {
        "x": random.normal(shift, 1, rows),
        "c": pa.array(random.choice(["a", "b", None], rows), pa.string()),
        "score": random.random(rows) / 3,
    }


def reference(seed=1, model="m", version="1"):
    builder = ReferenceBuilder(bins=5, max_categories=10)
    rows = pa.RecordBatch.from_pydict(table(seed, 500))
    builder.update(rows, layout_of(rows.schema))
    return builder.build(model, version, "file")


REFERENCE = reference()


def send(drift, second, columns, identity=PRODUCTION):
    rows = pa.RecordBatch.from_pydict(columns)
    return drift.update(
        Records("flight", identity, layout_of(rows.schema), rows, NOW + second * S, rows.nbytes)
    )


def frames(drift):
    return list(drift.capture().frames())


def restored(old, *references, complete=True, its=SETTINGS):
    """A new processor that goes on from where `old` is, and what it could not use."""
    drift = Drift(its, references or (REFERENCE,))
    return drift, drift.restore(frames(old), complete=complete)


SINCE_THE_START = ("records.left_out", "model.schema.changes")
"""Counters that begin at 0 with the process, as Prometheus takes for granted of them."""


def shown(drift, second, without=()):
    """All that is published, but for the start of what counts since one."""
    points = {}
    for metric in drift.collect(NOW + second * S):
        if metric.name not in (*without, *SINCE_THE_START):
            points[metric.name] = [
                structs.replace(point, start_ns=0) if isinstance(point, Histogram) else point
                for point in metric.points
            ]
    return points


steps = st.lists(
    st.tuples(
        st.integers(0, 40),  # seconds since the step before
        st.integers(1, 60),  # rows
        st.sampled_from([PRODUCTION, CANARY]),
        st.sampled_from([0.0, 3.0]),
    ),
    max_size=12,
)


@pytest.mark.parametrize("its", [SETTINGS, ALL])
@settings(max_examples=40)
@given(steps, steps, st.integers(0, 400))
def test_an_agent_that_was_restarted_goes_on_as_one_that_was_not(its, before, after, pause):
    old, second = Drift(its, [REFERENCE]), 0
    for number, (passed, rows, identity, shift) in enumerate(before):
        second += passed
        send(old, second, table(number, rows, shift), identity)
    new, problems = restored(old, its=its)
    assert problems == []
    assert shown(new, second) == shown(old, second)
    second += pause
    assert shown(new, second) == shown(old, second)
    for number, (passed, rows, identity, shift) in enumerate(after):
        second += passed
        columns = table(100 + number, rows, shift)
        assert send(new, second, columns, identity) == send(old, second, columns, identity)
        assert shown(new, second) == shown(old, second)


@given(steps, steps)
@settings(max_examples=40)
def test_what_was_captured_does_not_change_with_the_rows_that_follow(before, after):
    drift, second = Drift(SETTINGS, [REFERENCE]), 0
    for number, (passed, rows, identity, shift) in enumerate(before):
        second += passed
        send(drift, second, table(number, rows, shift), identity)
    state = drift.capture()
    at_once = list(state.frames())
    for number, (passed, rows, identity, shift) in enumerate(after):
        second += passed
        send(drift, second, table(number, rows, shift), identity)
    assert list(state.frames()) == at_once
    assert (drift.capture().stamp == state.stamp) == (not after)


def test_scores_and_the_fixed_period_go_on_where_they_were():
    old = Drift(ALL, [REFERENCE])
    for second in range(40):
        send(old, second, table(second, 30))
        shown(old, second)  # thresholds adapt to what is told
    new, problems = restored(old, its=ALL)
    assert problems == []
    for second in range(40, 45):
        for drift in (old, new):
            send(drift, second, table(second, 30))
        assert shown(new, second) == shown(old, second)
    found = shown(new, 44)
    assert found["feature.drift.own_quantile"]
    [score, *_] = [
        point for point in found["feature.drift.score"] if ("baseline", "fixed") in point.attributes
    ]
    assert score.value < 0.5


def histogram(drift, second):
    [metric] = [one for one in drift.collect(NOW + second * S) if one.name == "prediction.histogram"]
    [point] = metric.points
    return point, point.start_ns or metric.start_ns


def test_a_complete_state_keeps_the_histogram_and_its_start():
    old = Drift(SETTINGS, [REFERENCE])
    for second in range(0, 900, 30):
        send(old, second, table(second, 50))
    before, start_ns = histogram(old, 900)
    new, _ = restored(old)
    assert histogram(new, 900) == (structs.replace(before, start_ns=start_ns), start_ns)
    again, _ = restored(new)
    assert histogram(again, 900)[1] == start_ns


def test_a_state_that_lags_keeps_the_windows_and_begins_the_histogram_anew():
    old = Drift(SETTINGS, [REFERENCE])
    for second in range(0, 900, 30):
        send(old, second, table(second, 50))
    new, problems = restored(old, complete=False)
    assert problems == []
    assert shown(new, 870, ["prediction.histogram"]) == shown(old, 870, ["prediction.histogram"])
    before, old_start_ns = histogram(old, 870)
    after, start_ns = histogram(new, 870)
    assert sum(before.counts) == 1500
    assert sum(after.counts) == 0
    assert after.sum == pytest.approx(0, abs=1e-9)
    assert start_ns > old_start_ns
    for second in range(900, 1500, 30):  # by and by the panes leave the windows; none comes out negative
        send(new, second, table(second, 10))
        fresh, _ = histogram(new, second)
        assert min(fresh.counts) >= 0
        assert fresh.sum >= after.sum
        after = fresh
    assert sum(after.counts) == 200


def test_a_sum_never_falls_by_a_rounding():
    """Panes of values that do not add up exactly move from level to level while hardly anything is added."""
    drift = Drift(SETTINGS, [REFERENCE])
    shown_sums = []
    for second in range(0, 3_000, 7):
        columns = table(second, 3) | {"score": [1e-17, 0.1 + second * 1e-5, None]}
        send(drift, second, columns if second < 600 else columns | {"score": [0.0, 0.0, None]})
        shown_sums.append(histogram(drift, second)[0].sum)
    assert shown_sums == sorted(shown_sums)


def test_first_rows_are_held_over_a_restart():
    old = Drift(SETTINGS)
    send(old, 0, table(1, 60))
    send(old, 1, {"x": np.arange(50.0), "other": pa.array(["p", "q"] * 25).dictionary_encode()})
    send(old, 2, table(2, 40))
    new = Drift(SETTINGS)
    assert new.restore(frames(old), complete=False) == []
    assert shown(new, 2) == shown(old, 2)
    for drift in (old, new):
        send(drift, 3, table(3, 80))
    assert shown(new, 3) == shown(old, 3)
    assert shown(new, 3)["feature.window.rows"]


def test_first_rows_are_few_enough_after_the_setting_has_shrunk():
    old = Drift(SETTINGS)
    send(old, 0, table(1, 150))
    new = Drift(structs.replace(SETTINGS, reference_rows=100))
    assert new.restore(frames(old), complete=False) == []
    send(new, 1, table(2, 30))
    assert shown(new, 1)["reference.rows"][0].value == 100
    assert shown(new, 1)["feature.window.rows"][0].value == 30


def test_first_rows_take_several_frames(monkeypatch):
    monkeypatch.setattr("tidegauge.processors.drift.checkpoint._FRAME_BYTES", 1_000)
    old = Drift(SETTINGS)
    for number in range(20):
        send(old, number, table(number, 9))
    assert len(frames(old)) > 3
    new = Drift(SETTINGS)
    assert new.restore(frames(old), complete=False) == []
    for drift in (old, new):
        send(drift, 30, table(3, 60))
    assert shown(new, 30) == shown(old, 30)


def test_first_rows_of_a_model_that_has_a_reference_now_are_dropped():
    old = Drift(SETTINGS)
    send(old, 0, table(1, 60))
    new, problems = restored(old)
    assert problems == []
    assert "reference.ready" in shown(new, 0)
    assert frames(new) == []


def changed(**what):
    first, *rest = REFERENCE.profiles
    return replace(REFERENCE, profiles=(replace(first, **what), *rest))


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (reference(seed=2), "m 1 production has another reference now"),
        (reference(version="2"), "m 1 production has no reference now"),
        (changed(center=0.5), "m 1 production has another reference now"),
        (changed(highest=99.0), "m 1 production has another reference now"),
        (changed(name="y"), "m 1 production has another reference now"),
        (changed(counts=REFERENCE.profiles[0].counts + 1), "m 1 production has another reference now"),
    ],
)
def test_a_state_of_another_reference_is_not_used(other, why):
    old = Drift(SETTINGS, [REFERENCE])
    send(old, 0, table(1, 50))
    new, problems = restored(old, other)
    assert problems == [why]
    assert "feature.window.rows" not in shown(new, 0)


def test_what_belongs_to_other_references_is_used_all_the_same():
    two = reference(seed=5, model="n")
    old = Drift(SETTINGS, [REFERENCE, two])
    send(old, 0, table(1, 50))
    send(old, 0, table(2, 70), Identity("n", "1"))
    new, problems = restored(old, reference(seed=2), two)
    assert problems == ["m 1 production has another reference now"]
    [x, *_] = shown(new, 0)["feature.window.rows"]
    assert (x.value, dict(x.attributes)["model"]) == (70, "n")


def test_a_state_of_other_windows_is_not_used():
    old = Drift(SETTINGS, [REFERENCE])
    send(old, 0, table(1, 50))
    new, problems = restored(old, its=structs.replace(SETTINGS, panes=12))
    assert problems == ["its panes are of other lengths (drift.window, other_windows, panes)"]
    assert "feature.window.rows" not in shown(new, 0)


def test_more_than_the_limits_allow_is_not_used():
    old = Drift(SETTINGS, [REFERENCE])
    send(old, 0, table(1, 50), PRODUCTION)
    send(old, 0, table(1, 50), CANARY)
    _, problems = restored(old, its=structs.replace(SETTINGS, max_identities=1))
    assert problems == ["it has more identities than drift.max_identities"]


@given(st.data())
@settings(max_examples=60)
def test_frames_that_are_not_what_they_should_be_are_told_and_harm_nothing(data):
    """The checksum keeps damage out; this is about what another version might have written."""
    old = Drift(SETTINGS, [REFERENCE])
    send(old, 0, table(1, 50))
    [frame] = frames(old)
    with pa.ipc.open_stream(frame) as stream:
        batch = stream.read_next_batch()
    if data.draw(st.booleans()):
        # Without hashes of schemas it is one of a version that had none, and is read.
        name = data.draw(st.sampled_from([name for name in batch.schema.names if name != "schemas"]))
        batch = batch.drop_columns([name])
    else:
        metadata = data.draw(
            st.sampled_from([{}, {b"tidegauge.state": b"other"}, {b"tidegauge.state": b"first_rows"}])
        )
        batch = batch.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    new = Drift(SETTINGS, [REFERENCE])
    assert len(new.restore([sink.getvalue().to_pybytes(), b"nonsense"], complete=True)) == 2
    assert "feature.window.rows" not in shown(new, 0)
    assert send(new, 0, table(1, 50)) == {}


EMPTY = ("tallies", "vectors")
"""What this reference's panes hold nothing of; test_embeddings.py restores vectors."""


def test_all_that_a_pane_holds_is_written():
    """A part that is added to Counts is in the state without a word here, if `arrays` has it."""
    old = Drift(SETTINGS, [REFERENCE])
    send(old, 0, table(1, 50))
    new, _ = restored(old)
    for drift in (old, new):
        [(_, pane), *_] = drift.capture().identities[0].window.panes.held.items()
        assert set(vars(pane)) == set(pane.arrays())
        assert isinstance(pane, Counts)
        assert all(array.any() for name, array in pane.arrays().items() if name not in EMPTY)

"""The parts of the drift state that are written aside: the sample of rows, slices and unseen categories."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from msgspec import structs

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.config import Multivariate, Slices
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.columns import stream
from tidegauge.processors.drift.drift import Drift
from tidegauge.processors.drift.unseen import CAPACITY
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
    slices=Slices(max_values=3, max_columns=2),
    multivariate=Multivariate(sample_rows=30, interval=Duration("1s")),
)
PRODUCTION, CANARY = Identity("m", "1", "production"), Identity("m", "1", "canary")


def table(seed, rows, shift=0.0, regions=5, others=3):
    random = np.random.default_rng(seed)
    return {
        "x": random.normal(shift, 1, rows),
        "c": pa.array(random.choice(["a", "b", None, *map(str, range(others))], rows), pa.string()),
        "region": pa.array(random.choice([None, *map(str, range(regions))], rows), pa.string()),
        "tier": random.integers(0, 2, rows),
        "id": random.integers(0, 10_000, rows),
    }


def reference(seed=1):
    builder = ReferenceBuilder(bins=5, max_categories=10)
    rows = pa.RecordBatch.from_pydict(table(seed, 500, others=0)).select(["x", "c"])
    builder.update(rows, layout_of(rows.schema))
    return builder.build("m", "1", "file")


REFERENCE = reference()
ROLES = {"x": "feature", "c": "feature", "id": "prediction_id", "timestamp": "timestamp"}


def send(drift, second, columns, identity=PRODUCTION):
    rows = pa.RecordBatch.from_pydict(columns)
    fields = [field.with_metadata({"role": ROLES.get(field.name, "segment")}) for field in rows.schema]
    rows = pa.RecordBatch.from_arrays(rows.columns, schema=pa.schema(fields))
    batch = Records("flight", identity, layout_of(rows.schema), rows, NOW + second * S, rows.nbytes)
    return drift.update(batch)


def frames(drift):
    return list(drift.capture().frames())


def restored(old, its=SETTINGS, complete=True):
    """A new processor that goes on from where `old` is."""
    new = Drift(its, [REFERENCE])
    assert new.restore(frames(old), complete=complete) == []
    return new


SINCE_THE_START = (
    "records.left_out",
    "model.schema.changes",
    "model.slice.overflow",
    "prediction_id.duplicates",
)
"""Counters that begin at 0 with the process, as Prometheus takes for granted of them."""


def told(drift, second):
    """All that is published once every sample was judged, but for what counts since the start."""
    for _ in range(3):  # one at a time
        second += 2
        drift.collect(NOW + second * S)
        drift.turns.wait()
    metrics = drift.collect(NOW + second * S)
    return {metric.name: metric.points for metric in metrics if metric.name not in SINCE_THE_START}


def shown(drift, second):
    """The same as text, in which NaN is NaN."""
    return {name: [repr(point) for point in points] for name, points in told(drift, second).items()}


steps = st.lists(
    st.tuples(
        st.integers(0, 40),  # seconds since the step before
        st.integers(1, 60),  # rows
        st.sampled_from([PRODUCTION, CANARY]),
        st.sampled_from([0.0, 3.0]),
    ),
    max_size=8,
)


@hypothesis_settings(max_examples=50, deadline=None)
@given(steps, steps, st.booleans())
def test_an_agent_that_was_restarted_tells_all_that_one_tells_that_was_not(before, after, complete):
    old, second = Drift(SETTINGS, [REFERENCE]), 0
    for number, (passed, rows, identity, shift) in enumerate(before):
        second += passed
        send(old, second, table(number, rows, shift), identity)
    new = restored(old, complete=complete)
    assert shown(new, second) == shown(old, second)
    for number, (passed, rows, identity, shift) in enumerate(after):
        second += passed
        columns = table(100 + number, rows, shift)
        assert send(new, second, columns, identity) == send(old, second, columns, identity)
    assert shown(new, second) == shown(old, second)


def rows_of(drift, identity=PRODUCTION):
    return drift._watches[identity].joint._rows


@hypothesis_settings(max_examples=50, deadline=None)
@given(steps, steps)
def test_parts_that_were_captured_do_not_change_with_the_rows_that_follow(before, after):
    drift, second = Drift(SETTINGS, [REFERENCE]), 0
    for number, (passed, rows, identity, shift) in enumerate(before):
        second += passed
        send(drift, second, table(number, rows, shift), identity)
    state = drift.capture()
    at_once = list(state.frames())
    for number, (passed, rows, identity, shift) in enumerate(after):
        second += passed
        send(drift, second, table(number, rows, shift), identity)
        shown(drift, second)
    assert list(state.frames()) == at_once


def test_slices_unseen_categories_and_all_features_together_are_told_again_at_once():
    old = Drift(SETTINGS, [REFERENCE])
    for second in range(0, 60, 10):
        send(old, second, table(second, 200, shift=second / 20))
    found = told(restored(old, complete=False), 50)
    names = ("model.slice.rows", "model.slice.drifted", "model.slice.drift.statistic", "model.slice.columns")
    for name in (*names, "feature.unseen.category.rows", "model.drifted", "model.drift.statistic"):
        assert found[name], name
    assert found["model.drift.sample_rows"][0].value == 30
    slices = {dict(point.attributes)["slice"] for point in found["model.slice.rows"]}
    assert {"region=__missing__", "region=__other__", "tier=0", "tier=1"} < slices


def test_a_restored_sample_is_as_likely_to_hold_any_row_as_any_other():
    """Rows before restarts and after them, in five panes; chi-square over deciles, and the covariance of how
    many are of the first decile and of the first after a restart. It is -1 or so, and 9, their variance,
    where a generator begins anew and gives both the same priorities."""
    hits, products = np.zeros(10), []
    its = structs.replace(SETTINGS, multivariate=Multivariate(sample_rows=100))
    for seed in range(60):
        who = PRODUCTION._replace(data_source=f"{seed}")  # which draws another sequence
        drift = Drift(its, [REFERENCE])
        for part in range(10):
            send(drift, 5 * part, {"x": np.arange(500 * part, 500 * (part + 1), dtype=float)}, who)
            if part in (1, 4, 5):
                drift = restored(drift, its)
        sample = rows_of(drift, who).sample()[:, 0]
        assert len(np.unique(sample)) == len(sample)
        assert 50 < len(sample) <= 100
        mine = np.histogram(sample, np.linspace(0, 5_000, 11))[0]
        hits += mine
        first, after = (mine[[0, 2]] - len(sample) / 10).tolist()
        products.append(first * after)
    assert scipy.stats.chisquare(hits).pvalue > 0.001
    assert np.mean(products) < 4


def test_a_smaller_sample_than_before_keeps_the_rows_of_least_priority():
    old = Drift(SETTINGS, [REFERENCE])
    for second in range(0, 60, 10):
        send(old, second, table(second, 200))
    less = structs.replace(SETTINGS, multivariate=Multivariate(sample_rows=10))
    few = rows_of(restored(old, less)).sample()
    assert 5 <= len(few) <= 10
    assert np.array_equal(few, rows_of(old).sample()[: len(few)], equal_nan=True)


@hypothesis_settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 3 * CAPACITY), min_size=1, max_size=12), st.integers(0, 11))
def test_unseen_categories_are_counted_on_where_they_were(sizes, when):
    """Also of more texts than there is room for, whose counts depend on when they are merged."""
    old = Drift(SETTINGS, [REFERENCE])
    send(old, 0, table(1, 30))
    new = restored(old)
    for number, size in enumerate(sizes):
        columns = table(number, 3 * size, others=size)
        for drift in (old, new):
            send(drift, number, columns)
        if number == when:
            new = restored(new)
    one, other = (drift._watches[PRODUCTION].window for drift in (old, new))
    now_ns = NOW + len(sizes) * S
    mine, its = one.frequent_unseen(0, now_ns), other.frequent_unseen(0, now_ns)
    assert mine.texts == its.texts
    assert mine.counts.tolist() == its.counts.tolist()


@pytest.mark.parametrize(
    ("change", "lost", "why"),
    [
        (
            {"slices": Slices(max_values=3, panes=2)},
            "model.slice.rows",
            ["by region are of panes of other lengths", "by tier are of panes of other lengths"],
        ),
        (
            {"slices": Slices(max_values=2)},
            "",
            ["by region are more than drift.slices.max_values"],
        ),
        (
            {"slices": Slices(max_values=3, max_columns=1)},
            "",
            ["more columns of slices than drift.slices.max_columns"],
        ),
        ({"remembered_ids": 100}, "", ["prediction ids are of another number (drift.remembered_ids)"]),
    ],
)
def test_parts_of_other_settings_are_not_used_and_the_rest_is(change, lost, why):
    old = Drift(SETTINGS, [REFERENCE])
    for second in range(0, 60, 10):
        send(old, second, table(second, 200))
    new = Drift(structs.replace(SETTINGS, **change), [REFERENCE])
    problems = new.restore(frames(old), complete=True)
    assert len(problems) == len(why)
    for found, wanted in zip(problems, why, strict=True):
        assert wanted in found
    mine, its = shown(new, 50), shown(old, 50)
    for name in ("feature.window.rows", "feature.unseen.category.rows", "model.drift.statistic"):
        assert mine[name] == its[name], name
    assert lost not in mine


def counted(drift, second, name):
    [metric] = [metric for metric in drift.collect(NOW + second * S) if metric.name == name]
    [point] = metric.points
    return point.value


@pytest.mark.parametrize("complete", [True, False])
def test_prediction_ids_and_schemas_that_came_before_a_restart_are_known_after_it(complete):
    old = Drift(SETTINGS, [REFERENCE])
    send(old, 0, table(1, 100) | {"id": np.arange(100)})
    new = restored(old, complete=complete)
    for drift, changes in ((old, 0), (new, 0), (restored(new), 1)):
        columns = table(2, 100) | {"id": np.arange(50, 150)}
        if changes:
            columns["tier"] = columns["tier"].astype(str)
        send(drift, 1, columns)
        assert counted(drift, 1, "model.schema.changes") == changes
    assert counted(old, 1, "prediction_id.duplicates") == counted(new, 1, "prediction_id.duplicates") == 50


def test_what_nothing_asks_for_now_is_dropped_without_a_word():
    old = Drift(SETTINGS, [REFERENCE])
    for second in range(0, 60, 10):
        send(old, second, table(second, 200))
    new = Drift(
        structs.replace(
            SETTINGS, unseen_categories=0, remembered_ids=0, multivariate=Multivariate(sample_rows=0)
        ),
        [REFERENCE],
    )
    assert new.restore(frames(old), complete=True) == []
    found = shown(new, 50)
    assert "feature.unseen.category.rows" not in found
    assert "model.drift.statistic" not in found
    assert found["model.slice.rows"] == shown(old, 50)["model.slice.rows"]


def test_columns_that_come_no_more_make_room_for_others():
    old = Drift(SETTINGS, [REFERENCE])
    send(old, 0, table(1, 200))
    its = structs.replace(SETTINGS, slices=Slices(max_values=3, max_columns=2))
    new = restored(old, its)

    def segments(second):
        columns = table(second, 200) | {"device": ["phone"] * 200}
        del columns["region"]
        send(new, second, columns)
        slices = told(new, second)["model.slice.rows"]
        return {dict(point.attributes)["slice"].split("=")[0] for point in slices}

    assert segments(10) == {"region", "tier"}
    assert segments(70) == {"device", "tier"}


@pytest.mark.parametrize(("region", "held"), [("eu", [0]), (None, [])])
def test_a_column_whose_rows_are_all_too_late_for_slices_is_no_obstacle(region, held):
    its = structs.replace(SETTINGS, allowed_lateness=Duration("200s"))
    old = Drift(its, [REFERENCE])
    send(old, 0, {"x": np.arange(50.0)})
    times = pa.array(np.full(50, NOW - 100 * S), pa.timestamp("ns"))
    send(old, 1, {"x": np.arange(50.0), "timestamp": times, "region": pa.array([region] * 50, pa.string())})
    [segment] = old.capture().identities[0].segments
    assert [len(one.panes.held) for one in segment.slices] == held
    new = restored(old, its)
    for drift in (old, new):
        send(drift, 2, table(3, 50))
    assert shown(new, 2) == shown(old, 2)


def by_kind(drift):
    found = {}
    for frame in frames(drift):
        with pa.ipc.open_stream(frame) as opened:
            kind = opened.schema.metadata[b"tidegauge.state"].decode()
            found.setdefault(kind, []).append((frame, opened.read_next_batch()))
    return found


def test_a_state_of_a_version_without_these_parts_is_read():
    old = Drift(SETTINGS, [REFERENCE])
    for second in range(0, 60, 10):
        send(old, second, table(second, 200))
    [(_, batch)] = by_kind(old)["window"]
    new = Drift(SETTINGS, [REFERENCE])
    assert new.restore([stream([batch.drop_columns(["schemas"])])], complete=True) == []
    found = shown(new, 50)
    assert found["feature.window.rows"] == shown(old, 50)["feature.window.rows"]
    assert "model.slice.rows" not in found
    assert send(new, 51, table(2, 200)) == {}
    assert shown(new, 51)["model.slice.rows"]


def test_parts_without_their_window_are_not_used():
    old = Drift(SETTINGS, [REFERENCE])
    send(old, 0, table(1, 200))
    new = Drift(SETTINGS, [REFERENCE])
    assert new.restore(frames(old)[1:], complete=True) == []
    assert new._watches == {}


OLD = Drift(SETTINGS, [REFERENCE])
for at in range(0, 60, 10):
    send(OLD, at, table(at, 200))
FRAMES = by_kind(OLD)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind in ("rows", "unseen", "segment", "ids")
        for name in FRAMES[kind][0][1].schema.names
    ],
)
@pytest.mark.parametrize("how", ["missing", "of another type"])
def test_a_part_that_is_not_what_it_should_be_is_told_and_costs_no_other(kind, name, how):
    """The checksum keeps damage out; this is about what another version might have written."""
    altered = []
    for its, held in FRAMES.items():
        for frame, batch in held:
            if its != kind:
                altered.append(frame)
                continue
            place, without = batch.schema.get_field_index(name), batch.drop_columns([name])
            if how == "of another type":
                without = without.add_column(place, name, pa.array([[[1.5]]]))
            altered.append(stream([without.replace_schema_metadata(batch.schema.metadata)]))
    new = Drift(SETTINGS, [REFERENCE])
    problems = new.restore(altered, complete=True)
    assert len(problems) == 1
    mine, its = shown(new, 50), shown(OLD, 50)
    kept = {
        "rows": "model.drift.statistic",
        "unseen": "feature.unseen.category.rows",
        "segment": "model.slice.rows",
    }
    for one, series in kept.items():
        assert (series in mine) == (one != kind), series
        if one != kind:
            assert mine[series] == its[series], series
    assert mine["feature.window.rows"] == its["feature.window.rows"]
    assert send(new, 60, table(1, 200)) == {}

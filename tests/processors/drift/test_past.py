"""Windows beside the stream's own past: rolling, seasonal and fixed baselines."""

from __future__ import annotations

import hypothesis
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tidegauge.batch import Records
from tidegauge.config import Baseline
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.counts import Counts, Tables
from tidegauge.processors.drift.drift import Drift
from tidegauge.processors.drift.past import DAY, HOUR_NS, WEEK, Past
from tidegauge.processors.drift.window import Closed
from tidegauge.reference import ReferenceBuilder
from tidegauge.units import Duration

MONDAY = 20_836 * 24  # hours since 1970: 2027-01-18
ME = Identity("fraud", "2.1")
ROWS = 400
SETTINGS = Settings(
    panes=2, allowed_lateness=Duration("1m"), other_baselines=(Baseline.ROLLING, Baseline.SEASONAL)
)


def reference():
    random = np.random.default_rng(0)
    rows = pa.RecordBatch.from_pydict(
        {
            "x": random.normal(size=20_000),
            "c": random.choice(["a", "b"], 20_000),
            "score": random.random(20_000),
        }
    )
    builder = ReferenceBuilder(bins=10, max_categories=10)
    builder.update(rows, layout_of(rows.schema))
    return builder.build("fraud", "2.1", "file")


REFERENCE = reference()


def send(drift, hour, mean, rows=ROWS):
    """Rows at the beginning and in the middle of an hour."""
    for half in (0, 1):
        random = np.random.default_rng(2 * hour + half)
        now = hour * HOUR_NS + half * HOUR_NS // 2 + 1
        batch = pa.RecordBatch.from_pydict(
            {
                "x": random.normal(mean, 1, rows),
                "c": random.choice(["a", "b"], rows),
                "score": random.random(rows),
            }
        )
        drift.update(Records("test", ME, layout_of(batch.schema), batch, now, batch.nbytes))


def told(drift, hour, name, **wanted):
    """The values of a metric at the end of an hour, by the attributes that are not `wanted`."""
    found = {}
    for metric in drift.collect((hour + 1) * HOUR_NS - 1):
        for point in metric.points if metric.name == name else ():
            attributes = dict(point.attributes)
            if wanted.items() <= attributes.items():
                rest = [v for k, v in attributes.items() if k not in wanted and k not in ME._fields]
                found[" ".join(rest)] = point.value
    return found


def office(hour):
    """A mean that is high on weekdays from 8 to 18 o'clock."""
    return 2.0 if (hour - MONDAY) % WEEK < 5 * DAY and 8 <= (hour - MONDAY) % DAY < 18 else 0.0


@pytest.fixture(scope="module")
def five_weeks():
    """What was said at the end of each Monday's ninth hour, and the processor at the end."""
    drift, mondays = Drift(SETTINGS, [REFERENCE]), []
    for hour in range(MONDAY, MONDAY + 4 * WEEK + 10):
        send(drift, hour, office(hour))
        if (hour - MONDAY) % WEEK == 9:
            mondays.append(
                {
                    kind: (
                        told(drift, hour, "feature.drifted", baseline=kind),
                        told(drift, hour, "feature.drift.unjudged", baseline=kind),
                    )
                    for kind in ("rolling", "seasonal")
                }
            )
    return drift, mondays


def test_a_monday_morning_is_compared_with_monday_mornings(five_weeks):
    drift, mondays = five_weeks
    hour = MONDAY + 4 * WEEK + 9
    assert told(drift, hour, "feature.drifted", feature="x") == {"": 1, "rolling": 1, "seasonal": 0}
    assert [one["seasonal"][0] for one in mondays[1:]] == [{"x": 0, "c": 0}] * 4
    score = told(drift, hour, "feature.drift.score", feature="x")
    null = told(drift, hour, "feature.drift.null_quantile", feature="x", baseline="seasonal")
    assert score["seasonal"] < 2 * null["psi 0.95"]
    assert score["rolling"] > 0.5
    assert told(drift, hour, "prediction.drifted", baseline="seasonal") == {"score": 0}


def test_without_a_past_there_is_a_reason_and_no_verdict(five_weeks):
    _, mondays = five_weeks
    for kind in ("rolling", "seasonal"):
        assert mondays[0][kind] == ({}, {"x little_history": 1, "c little_history": 1})
        assert mondays[1][kind][1] == {}


def test_an_hour_as_every_week_deviates_no_more_than_chance(five_weeks):
    drift, _ = five_weeks
    hour = MONDAY + 4 * WEEK + 9
    found = told(drift, hour, "feature.seasonal.deviation", feature="x")
    assert set(found) == {"mean", "missing", "psi"}
    assert all(abs(value) < 4 for value in found.values())
    assert set(told(drift, hour, "feature.seasonal.deviation", feature="c")) == {"missing", "psi"}


def test_a_monday_morning_like_a_sunday_stands_out():
    """To the rolling week, a mixture of both, every hour does."""
    drift = Drift(SETTINGS, [REFERENCE])
    for hour in range(MONDAY, MONDAY + 2 * WEEK + 11):
        send(drift, hour, office(hour) if hour < MONDAY + 2 * WEEK else 0.0)
    assert told(drift, hour, "feature.drifted", feature="x") == {"": 0, "rolling": 1, "seasonal": 1}
    assert told(drift, hour, "feature.seasonal.deviation", feature="x")["mean"] < -8
    assert abs(told(drift, hour, "feature.seasonal.deviation", feature="x")["missing"]) < 4


def test_a_new_level_is_drift_from_the_rolling_week_until_it_is_that_week():
    settings = structs.replace(SETTINGS, other_baselines=(Baseline.ROLLING,), rolling_period=Duration("2d"))
    drift = Drift(settings, [REFERENCE])
    found = {}
    for hour in range(MONDAY, MONDAY + 5 * DAY):
        send(drift, hour, 1.0 if hour >= MONDAY + 2 * DAY else 0.0)
        found[hour - MONDAY] = told(drift, hour, "feature.drifted", feature="x")
    assert "rolling" not in found[DAY - 2]
    assert found[2 * DAY - 1] == {"": 0, "rolling": 0}
    assert found[2 * DAY + 1] == {"": 1, "rolling": 1}
    assert found[5 * DAY - 1] == {"": 1, "rolling": 0}


def test_a_fixed_period_is_judged_against_once_it_is_over():
    settings = structs.replace(
        SETTINGS, other_baselines=(Baseline.FIXED,), fixed_period="2027-01-18T03:00Z/2027-01-18T06:00Z"
    )
    drift = Drift(settings, [REFERENCE])
    found = {}
    for hour in range(12):
        send(drift, MONDAY + hour, 3.0 if 3 <= hour < 6 or hour == 11 else 0.0)
        found[hour] = told(drift, MONDAY + hour, "feature.drifted", feature="x")
    assert found[4] == {"": 1}
    assert found[7] == {"": 0, "fixed": 1}
    assert found[11] == {"": 1, "fixed": 0}


def test_by_default_nothing_carries_a_baseline():
    drift = Drift(Settings(), [REFERENCE])
    for hour in range(MONDAY, MONDAY + 30):
        send(drift, hour, 0.0)
    points = [p for metric in drift.collect((hour + 1) * HOUR_NS) for p in metric.points]
    assert points
    assert not any("baseline" in dict(point.attributes) for point in points)
    assert drift.capture().identities[0].past is None


panes = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 50)), max_size=60)


@hypothesis.settings(max_examples=40)
@given(panes, st.sampled_from([Baseline.ROLLING, Baseline.SEASONAL]))
def test_a_baseline_is_what_a_list_of_rows_in_those_hours_would_be(steps, kind):
    settings = structs.replace(
        SETTINGS,
        rolling_period=Duration("2d"),
        seasonal_weeks=2,
        other_baselines=(Baseline.ROLLING, Baseline.SEASONAL),
    )
    tables = Tables(REFERENCE)
    past, hour, rows = Past(tables, settings), MONDAY, {}
    for ahead, count in steps:
        hour += ahead
        pane = Counts(tables)
        pane.counts[0, 3] += count
        pane.tallies[0, 0] += 1
        past.add(Closed(hour * HOUR_NS, pane))
        rows[hour] = rows.get(hour, 0) + count
    begin, end = (hour + 1) * HOUR_NS, (hour + 2) * HOUR_NS - 1
    over = {h: count for h, count in rows.items() if h < hour}  # the last one is not over
    mine = (
        [h for h in over if hour + 1 - 48 <= h]
        if kind is Baseline.ROLLING
        else [h for h in over if h in (hour + 1 - WEEK, hour + 1 - 2 * WEEK)]
    )
    enough = bool(mine) if kind is Baseline.SEASONAL else bool(mine) and min(mine) <= hour - DAY
    found = past.before(kind, begin, end)
    assert (found is not None) == enough
    if found is not None:
        assert found.counts.sum() == found.counts[0, 3] == sum(over[h] for h in mine)


def test_the_past_is_bounded():
    settings = structs.replace(SETTINGS, other_baselines=(Baseline.ROLLING,), rolling_period=Duration("1d"))
    tables = Tables(REFERENCE)
    past = Past(tables, settings)
    for hour in range(1_000):
        pane = Counts(tables)
        pane.counts += 1
        past.add(Closed((MONDAY + hour) * HOUR_NS, pane))
        assert len(past.capture().hours) <= DAY + 3


def test_a_restart_forgets_nothing_of_the_past(five_weeks):
    old, _ = five_weeks
    new = Drift(SETTINGS, [REFERENCE])
    assert new.restore(list(old.capture().frames()), complete=True) == []
    hour = MONDAY + 4 * WEEK + 10
    for drift in (old, new):
        send(drift, hour, 5.0)
    for name in ("feature.drift.score", "feature.drift.unjudged", "feature.seasonal.deviation"):
        assert told(new, hour, name) == told(old, hour, name)


def test_fewer_hours_are_kept_after_the_setting_has_shrunk(five_weeks):
    old, _ = five_weeks
    settings = structs.replace(SETTINGS, other_baselines=(Baseline.ROLLING,), rolling_period=Duration("1d"))
    new = Drift(settings, [REFERENCE])
    assert new.restore(list(old.capture().frames()), complete=True) == []
    assert len(new.capture().identities[0].past.hours) <= DAY + 3

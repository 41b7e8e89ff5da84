"""How often the alarm is false, how soon it is true, and what it is fed with."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy.signal import lfilter
from scipy.stats import norm

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.alarms import Alarms, turn
from tidegauge.processors.drift.counts import Counts, Tables
from tidegauge.processors.drift.drift import Drift
from tidegauge.reference import ReferenceBuilder
from tidegauge.units import Duration

S = 10**9
NOW = 1_800_000_000 * S
ME = Identity("fraud", "2.1")


def reference(columns, rows=5_000, seed=0):
    random = np.random.default_rng(seed)
    batch = pa.RecordBatch.from_pydict({f"f{column}": random.normal(size=rows) for column in range(columns)})
    builder = ReferenceBuilder(bins=20, max_categories=10)
    builder.update(batch, layout_of(batch.schema))
    return builder.build("fraud", "2.1", "file")


def shares(tables, shift=0.0):
    """The probability of each bin for normal values moved by `shift`: float64[columns, bins]."""
    edges = [np.array([-np.inf, *profile.edges, np.inf]) for profile in tables.numeric]
    return np.array([np.diff(norm.cdf(one - shift)) for one in edges])


def watched(columns, panes, rows, *, run=1, shift=0.0, begin=0, rows_known=5_000, seed=0, **settings):
    """(alarms before `begin`, panes from `begin` to the first alarm or None) of a model whose first column
    shifts at `begin`. Rows come in runs of `run` equal ones."""
    tables = Tables(reference(columns, rows_known, seed))
    alarms = Alarms(tables, Settings(**settings))
    random = np.random.default_rng(seed + 1)
    before = shares(tables)
    after = before.copy()
    after[0] = shares(tables, shift)[0]
    false, was, delay = 0, False, None
    for number in range(panes):
        pane = Counts(tables)
        pane.counts[:] = run * random.multinomial(rows // run, after if number >= begin else before)
        alarms.look(pane)
        now = bool(alarms.alarming.any())
        false += now and not was and number < begin
        delay = number - begin if now and number >= begin and delay is None else delay
        was = now
    return false, delay


@pytest.mark.parametrize(
    ("columns", "panes"),
    [(5, 4_000), (50, 2_000), (500, 300)],
)
@pytest.mark.parametrize(("rows", "run"), [(60, 1), (600, 1), (600, 20)])
def test_without_drift_pages_are_rarer_than_one_in_the_stated_while(columns, panes, rows, run):
    """One alarm in 100 panes is allowed on average; also where 20 rows come alike."""
    false, _ = watched(columns, panes, rows, run=run, begin=panes, false_alarm_interval=Duration("500m"))
    assert false <= panes / 100


def test_autocorrelated_rows_do_not_page():
    """AR(1) at 0.9: of 300 rows some 16 are independent. A reference of the same process, 3000 panes."""
    random = np.random.default_rng(3)
    tables = Tables(reference(5, 20_000))
    alarms = Alarms(tables, Settings(false_alarm_interval=Duration("1d")))
    edges = [profile.edges for profile in tables.numeric]
    value, false, was = np.zeros(5), 0, False
    for _ in range(1_000):
        noise = random.normal(size=(300, 5)) * np.sqrt(1 - 0.81)
        rows = np.empty((300, 5))
        for place in range(300):
            value = rows[place] = 0.9 * value + noise[place]
        pane = Counts(tables)
        for column in range(5):
            pane.counts[column] = np.bincount(np.searchsorted(edges[column], rows[:, column]), minlength=20)
        alarms.look(pane)
        now = bool(alarms.alarming.any())
        false += now and not was
        was = now
    assert false <= 1_000 / 288 + 3  # a day has 288 panes; three standard errors or so of a few


def wandering(random, columns, rows, coefficient, begin):
    """AR(1) rows of variance 1, and where they end: float64[rows, columns], float64[1, columns]."""
    noise = random.normal(size=(rows, columns)) * np.sqrt(1 - coefficient**2)
    return lfilter([1.0], [1.0, -coefficient], noise, axis=0, zi=begin)


def alarms_begun(columns, panes, rows, coefficient, known, source, seed):
    """Alarms of columns that begin in `panes` panes of AR(1) rows, whose reference of `known` ones came
    before (`first_rows`), or is of independent rows (`file`); one in 100 panes is allowed."""
    random = np.random.default_rng(seed)
    first, end = wandering(random, columns, 2_000 + known, coefficient, np.zeros((1, columns)))
    values = first[2_000:] if source == "first_rows" else random.normal(size=(known, columns))
    batch = pa.RecordBatch.from_pydict({f"f{column}": values[:, column] for column in range(columns)})
    builder = ReferenceBuilder(bins=20, max_categories=10)
    builder.update(batch, layout_of(batch.schema))
    tables = Tables(builder.build("fraud", "2.1", source))
    alarms = Alarms(tables, Settings(false_alarm_interval=Duration("500m")))
    edges = [profile.edges for profile in tables.numeric]
    begun, was = 0, alarms.alarming
    for _ in range(panes):
        values, end = wandering(random, columns, rows, coefficient, end)
        pane = Counts(tables)
        for column in range(columns):
            found = np.searchsorted(edges[column], values[:, column])
            pane.counts[column] = np.bincount(found, minlength=pane.counts.shape[1])
        alarms.look(pane)
        begun, was = begun + int((alarms.alarming & ~was).sum()), alarms.alarming
    return begun


def test_the_first_panes_of_500_columns_that_wander_do_not_page():
    """Two pairs of panes told how much 500 columns vary: 9 alarms began within the first 12."""
    assert sum(alarms_begun(500, 12, 300, 0.97, 5_000, "file", seed) for seed in range(2)) <= 1


@pytest.mark.parametrize(("known", "rows"), [(500, 600), (5_000, 100)])
def test_first_rows_that_wander_are_a_reference_of_few_rows(known, rows):
    """500 rows of AR(1) at 0.9 are worth 26. Taken for 500 they had most of 50 columns in alarm for ever."""
    assert alarms_begun(50, 200, rows, 0.9, known, "first_rows", 1) <= 200 / 100


@pytest.mark.parametrize(
    ("rows", "threshold", "shift", "most"),
    [(500, 0.1, 1.0, 0), (500, 0.1, 0.5, 6), (500, 0.02, 0.25, 20), (5_000, 0.005, 0.1, 40)],
)
def test_one_column_of_fifty_that_drifts_is_seen_within_panes(rows, threshold, shift, most):
    false, delay = watched(50, 21 + most, rows, shift=shift, begin=20, rows_known=50_000, threshold=threshold)
    assert false == 0
    assert delay is not None
    assert delay <= most


def test_what_is_not_material_never_pages_and_what_ends_stops_paging():
    assert watched(5, 1_500, 2_000, shift=0.1, rows_known=50_000) == (0, None)  # PSI 0.01
    tables = Tables(reference(2, 50_000))
    alarms = Alarms(tables, Settings())
    random = np.random.default_rng(5)
    states = []
    for shift in [0.0] * 5 + [1.0] * 50 + [0.0] * 15:
        pane = Counts(tables)
        pane.counts[:] = random.multinomial(1_000, shares(tables, shift))
        alarms.look(pane)
        states.append(bool(alarms.alarming.any()))
    assert states[:5] == [False] * 5
    assert all(states[6:55])
    assert not any(states[-5:])


@pytest.mark.parametrize(("rows", "shift", "least"), [(500, 0.33, 2), (500, 0.35, 4), (5_000, 0.33, 4)])
def test_an_alarm_near_its_threshold_does_not_flap(rows, shift, least):
    """At these shifts a pane's evidence is 0 on average, give or take 1 to 2. Beside it the same rule without
    an end of its own: in alarm is what is above the level."""
    tables = Tables(reference(1, 50_000))
    alarms, simple = (Alarms(tables, Settings(false_alarm_interval=Duration("1500d"))) for _ in range(2))
    random, begun, held, ended = np.random.default_rng(0), 0, 0, 0
    was_simple, begun_simple = False, 0
    for _ in range(3_000):
        pane = Counts(tables)
        pane.counts[:] = random.multinomial(rows, shares(tables, shift))
        was = bool(alarms.alarming[0])
        alarms.look(pane)
        now, share = bool(alarms.alarming[0]), float(alarms.shares[0])
        begun += now and not was
        held += now and share < 1
        ended += was and not now
        if was and not now:
            assert share == 0
        simple.alarming = np.zeros(1, bool)  # so nothing ends, and R goes on
        simple.look(pane)
        begun_simple += bool(simple.alarming[0]) and not was_simple
        was_simple = bool(simple.alarming[0])
    assert 0 < begun * least <= begun_simple
    assert held > 0  # below its level, and still in alarm
    assert begun - ended in (0, 1)


@pytest.mark.parametrize("spread", [0.5, 1.5])
def test_alarms_that_follow_each_other_are_as_rare_as_the_first_one(spread):
    """R begins anew after an alarm, so every wait is one of the guarantee: 20 panes on average. Of 400
    columns, with e-values of expectation 1, and so at the very edge of what is no drift."""
    random, begun, panes, columns = np.random.default_rng(1), 0, 1_000, 400
    log_r, alarming = np.full(columns, -np.inf), np.zeros(columns, bool)
    for log_e in random.normal(-(spread**2) / 2, spread, (panes, columns)):
        log_r = np.minimum(np.logaddexp(log_r, 0) + log_e, np.log(20) + 3)
        now = turn(alarming, log_r, np.log(20))
        begun += int((now & ~alarming).sum())
        alarming = now
    assert panes * columns / 100 < begun <= panes * columns / 20


def test_silence_is_no_evidence_and_the_first_panes_only_teach():
    tables = Tables(reference(2))
    alarms = Alarms(tables, Settings())
    for _ in range(100):
        alarms.look(Counts(tables))
    assert not alarms.ready
    shifted = Counts(tables)
    shifted.counts[:] = np.random.default_rng(1).multinomial(500, shares(tables, 2.0))
    for _ in range(Alarms.LEAST):
        alarms.look(shifted)
    assert alarms.ready
    assert not alarms.alarming.any()
    alarms.look(shifted)
    assert alarms.alarming.all()


def test_the_processor_feeds_panes_that_are_over_and_publishes():
    drift = Drift(Settings(allowed_lateness=Duration("1m")), [reference(2)])
    random = np.random.default_rng(2)
    seen = []
    for minute in range(0, 60):
        moved = 2.0 if minute >= 30 else 0.0
        now = NOW + minute * 60 * S
        rows = pa.RecordBatch.from_pydict(
            {"f0": random.normal(size=200) + moved, "f1": random.normal(size=200)}
        )
        drift.update(Records("test", ME, layout_of(rows.schema), rows, now, rows.nbytes))
        found = {metric.name: metric.points for metric in drift.collect(now)}
        alarms = {dict(p.attributes)["feature"]: p.value for p in found.get("feature.drift.alarm", ())}
        seen.append((alarms.get("f0"), alarms.get("f1")))
        whole = [point.value for point in found.get("model.drift.alarm", ())]
        assert whole == ([max(alarms.values())] if alarms else [])
    assert seen[0] == (None, None)  # warming up
    assert (0.0, 0.0) in seen
    assert seen[29][0] in (0.0, None)
    first = next(minute for minute, state in enumerate(seen) if state[0] == 1.0)
    assert 30 <= first <= 42
    assert all(state[1] in (0.0, None) for state in seen)

"""Other thresholds under a running processor: verdicts follow, rows and evidence stay."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from msgspec.structs import replace

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.config import Multivariate
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.alarms import Alarms
from tidegauge.processors.drift.counts import Counts, Tables
from tidegauge.processors.drift.drift import Drift
from tidegauge.reference import ReferenceBuilder
from tidegauge.units import Duration

S = 10**9
NOW = 1_800_000_000 * S
ME = Identity("fraud", "2.1")


def rows(n, shift, seed):
    return pa.RecordBatch.from_pydict({"age": np.random.default_rng(seed).normal(shift, 1, n)})


def reference(seed=1):
    builder = ReferenceBuilder(bins=20, max_categories=10)
    batch = rows(20_000, 0.0, seed)
    builder.update(batch, layout_of(batch.schema))
    return builder.build("fraud", "2.1", "file")


def value(drift, name):
    found = [point.value for metric in drift.collect(NOW) if metric.name == name for point in metric.points]
    return found[0] if found else None


def test_verdicts_follow_the_thresholds_and_the_rows_stay():
    settings = Settings(threshold=5.0)
    drift = Drift(settings, [reference()])
    batch = rows(5_000, 1.0, 2)
    drift.update(Records("flight", ME, layout_of(batch.schema), batch, NOW, batch.nbytes))
    score = value(drift, "feature.drift.score")
    assert value(drift, "feature.drifted") == 0
    drift.retune(replace(settings, threshold=0.1))
    assert value(drift, "feature.drifted") == 1
    assert value(drift, "feature.drift.score") == score
    assert value(drift, "feature.window.rows") == 5_000
    drift.retune(replace(settings, threshold=0.1, min_rows=6_000))
    assert value(drift, "feature.drifted") is None


def test_the_evidence_of_an_alarm_stays_and_its_level_moves():
    tables = Tables(reference())
    settings = Settings()
    alarms = Alarms(tables, settings)
    random = np.random.default_rng(3)
    share = tables.baselines[0].counts[0] / tables.baselines[0].counts[0].sum()
    for _ in range(6):
        pane = Counts(tables)
        pane.counts[0] = random.multinomial(500, share)
        alarms.look(pane)
    log_r, level = alarms.log_r.copy(), alarms.level
    alarms.retune(replace(settings, threshold=0.3, false_alarm_interval=Duration("300d")))
    np.testing.assert_array_equal(alarms.log_r, log_r)
    assert alarms.level == pytest.approx(level + np.log(10))
    alarms.look(pane)
    assert np.isfinite(alarms.log_r).all()


def test_what_is_told_together_and_of_the_outgoing_reference_follows_too():
    settings = Settings(threshold=5.0, multivariate=Multivariate(auc_threshold=0.5))
    drift = Drift(settings, [reference()])
    batch = rows(5_000, 1.0, 2)
    drift.update(Records("flight", ME, layout_of(batch.schema), batch, NOW, batch.nbytes))
    prepared = drift.prepare(reference(seed=4))
    assert prepared is not None
    drift.switch(prepared, NOW)
    drift.update(Records("flight", ME, layout_of(batch.schema), batch, NOW, batch.nbytes))
    for later in (NOW, NOW + 61 * S, NOW + 61 * S):
        drift.collect(later)
        drift.turns.wait()
    assert verdicts(drift) == {"feature.drifted": [0, 0], "model.drifted": [1]}
    drift.retune(replace(settings, threshold=0.1, significance=1e-300))  # PSI's are 0
    assert verdicts(drift) == {"feature.drifted": [1, 1], "model.drifted": [0]}


def verdicts(drift):
    names = ("feature.drifted", "model.drifted")
    found = {metric.name: metric for metric in drift.collect(NOW + 61 * S) if metric.name in names}
    return {name: [point.value for point in metric.points] for name, metric in found.items()}

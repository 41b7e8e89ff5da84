"""How rows come: stale streams, schemas, rows left out, repeated ids."""

from __future__ import annotations

from collections import defaultdict

import pyarrow as pa

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.stream import Stream
from tidegauge.units import Duration

S = 10**9
NOW = 1_800_000_000 * S
ME = Identity("m", "1")
ROWS = pa.RecordBatch.from_pydict({"x": [1.0]})


def batch(second=0.0, rows=ROWS):
    return Records("flight", ME, layout_of(rows.schema), rows, NOW + int(second * S), rows.nbytes)


def fed(*seconds, **settings):
    stream = Stream(Settings(**settings))
    for second in seconds:
        stream.update(batch(second), {})
    return stream


def told(stream, second=0.0):
    points = defaultdict(list)
    stream.report(ME, NOW + int(second * S), points)
    return {
        (name, *(value for key, value in point.attributes if key == "reason")): point.value
        for name, some in points.items()
        for point in some
    }


def test_a_steady_stream_is_stale_a_minute_after_its_last_batch():
    stream = fed(*[step / 10 for step in range(6_001)])
    assert stream.stale(NOW + 659 * S) is False
    assert stream.stale(NOW + 661 * S) is True
    assert told(stream, 661)["records.age",] == 61
    stream.update(batch(700), {})
    assert stream.stale(NOW + 701 * S) is False


def test_a_slow_stream_is_stale_after_three_of_its_pauses():
    stream = fed(*range(0, 36_000, 600))
    last = 35_400
    assert stream.stale(NOW + (last + 1_799) * S) is False
    assert stream.stale(NOW + (last + 1_801) * S) is True


def test_one_outage_does_not_make_a_stream_slow():
    stream = fed(*range(0, 1_000, 5), *range(87_000, 88_000, 5))
    assert stream.stale(NOW + (87_995 + 61) * S) is True


def test_nobody_knows_what_is_usual_of_a_stream_that_has_just_begun():
    stream = fed(*[step / 10 for step in range(100)])
    assert stream.stale(NOW + 3_600 * S) is None
    assert ("records.stale",) not in told(stream, 3_600)


def test_a_clock_that_goes_back_is_no_pause():
    stream = fed(*range(0, 700), 0, 699, stale_after=Duration("30s"))
    assert stream.stale(NOW + 728 * S) is False
    assert told(stream, 0)["records.age",] == 0


def test_a_schema_counts_as_changed_once():
    stream = fed(0, 1)
    assert told(stream)["model.schema.changes",] == 0
    wider = pa.RecordBatch.from_pydict({"x": [1.0], "y": ["a"]})
    turned = pa.RecordBatch.from_pydict({"y": ["a"], "x": [1.0]})
    for rows in (wider, ROWS, wider, turned):
        stream.update(batch(2, rows), {})
    assert told(stream)["model.schema.changes",] == 1
    stream.update(batch(3, pa.RecordBatch.from_pydict({"x": [1]})), {})
    assert told(stream)["model.schema.changes",] == 2


def test_rows_left_out_for_their_time_are_counted_by_reason():
    stream = fed(0)
    stream.update(batch(1), {"late": 3})
    stream.update(batch(2), {"late": 2, "future": 1})
    found = told(stream)
    assert found["records.left_out", "late"] == 5
    assert found["records.left_out", "future"] == 1


def test_ids_that_come_again_are_counted():
    def sent(*ids):
        return pa.RecordBatch.from_pydict({"x": [1.0] * len(ids), "prediction_id": list(ids)})

    stream = fed(0)
    assert ("prediction_id.duplicates",) not in told(stream)
    stream.update(batch(1, sent("a", "b", None)), {})
    stream.update(batch(2, sent("b", "c", None)), {})
    assert told(stream)["prediction_id.duplicates",] == 1
    silent = fed(0, remembered_ids=0)
    silent.update(batch(1, sent("a", "a")), {})
    assert ("prediction_id.duplicates",) not in told(silent)

"""Batches that are folded together give what they give one by one, to the bit."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.drift import Drift
from tidegauge.reference import ReferenceBuilder
from tidegauge.stats import bins
from tidegauge.units import Duration

S = 10**9
NOW = 1_800_000_000 * S
SETTINGS = Settings(
    window=Duration("60s"),
    other_windows=(Duration("12s"), Duration("300s")),
    panes=6,
    allowed_lateness=Duration("20s"),
    max_future=Duration("5s"),
    min_rows=1,
)
SCHEMAS = (
    pa.schema({"x": pa.float64(), "y": pa.float32(), "c": pa.string()}),
    pa.schema({"y": pa.int16(), "x": pa.float64(), "timestamp": pa.timestamp("ms")}),
    pa.schema({"c": pa.string(), "x": pa.float64(), "timestamp": pa.float64()}),
)
LAYOUTS = tuple(map(layout_of, SCHEMAS))
REFERENCE = pa.record_batch(
    {"x": np.arange(100.0), "y": np.arange(100.0) % 7, "c": ["a", "b"] * 50},
)


def drift():
    builder = ReferenceBuilder(bins=4, max_categories=10)
    builder.update(REFERENCE, layout_of(REFERENCE.schema))
    return Drift(SETTINGS, [builder.build("m", "1", "file")])


@st.composite
def traffic(draw):
    """Batches of three schemas and two stages, the clock moving on between them, and how to group them."""
    batches, clock = [], 0
    for _ in range(draw(st.integers(1, 12))):
        clock += draw(st.sampled_from([0, 0, 0, 1, 7, 60, 400]))
        ages = draw(
            st.lists(st.sampled_from([0, 0, 0, 1, 15, 19, 25, 100, 400, -4, -6]), min_size=1, max_size=4)
        )
        which = draw(st.integers(0, 2))
        random = np.random.default_rng(draw(st.integers(0, 99)))
        columns = {
            "x": random.normal(50, 60, len(ages)),
            "y": random.integers(-2, 9, len(ages)),
            "c": random.choice(["a", "b", "z"], len(ages)),
            "timestamp": [(NOW // S + clock - age) * (1000 if which == 1 else 1) for age in ages],
        }
        schema = SCHEMAS[which]
        arrays = [pa.array(columns[one.name]).cast(one.type, safe=False) for one in schema]
        rows = pa.RecordBatch.from_arrays(arrays, schema=schema)
        who = Identity("m", "1", draw(st.sampled_from(["canary", "production"])))
        batches.append(Records("flight", who, LAYOUTS[which], rows, NOW + clock * S, rows.nbytes))
    cuts = draw(st.sets(st.integers(1, 11)))
    return batches, [0, *sorted(cut for cut in cuts if cut < len(batches)), len(batches)]


def state(one):
    """All numbers that the processor holds, by identity."""
    found = {}
    for identity, watch in one._watches.items():
        panes = watch.window._panes
        held = {
            (level, number): pane for level, some in enumerate(panes._levels) for number, pane in some.items()
        }
        held["retired"] = panes._retired
        numbers = {
            place: {name: part.tobytes() for name, part in vars(pane).items()} for place, pane in held.items()
        }
        found[identity] = numbers, watch.alarms.log_r.tobytes(), len(watch.alarms._recent)
    return found


@settings(deadline=None)
@given(traffic())
def test_grouped_batches_give_what_single_ones_do(sent):
    batches, cuts = sent
    single, grouped = drift(), drift()
    left_out, left_out_together = Counter(), Counter()
    for batch in batches:
        left_out.update(single.update(batch))
    for begin, end in itertools.pairwise(cuts):
        left_out_together.update(grouped.update(*batches[begin:end]))
    assert left_out_together == left_out
    assert state(grouped) == state(single)


def test_batches_of_one_stream_are_folded_in_one_call(monkeypatch):
    calls, fold = [], bins.fold
    monkeypatch.setattr(
        bins, "fold", lambda batches, *rest: calls.append(len(batches)) or fold(batches, *rest)
    )
    rows = pa.RecordBatch.from_pydict({"x": [1.0], "y": [2.0], "c": ["a"]})
    layout = layout_of(rows.schema)
    stream = [Records("flight", Identity("m", "1"), layout, rows, NOW + i, 1) for i in range(21)]
    one = drift()
    one.update(stream[0])
    one.update(*stream[1:])
    assert calls == [1, 20]

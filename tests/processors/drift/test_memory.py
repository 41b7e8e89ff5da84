"""What a window takes is what docs/architecture.md says, by the sizes of its arrays."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.config import Slices
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.alarms import Alarms
from tidegauge.processors.drift.drift import Drift
from tidegauge.reference import ReferenceBuilder
from tidegauge.units import Duration

DOCUMENT = Path(__file__).parents[3] / "docs" / "architecture.md"
NUMBERS, BINS, CATEGORIES = 7, 20, 3
WHO = Identity("m", "1")


def rows(count, seed=0):
    random = np.random.default_rng(seed)
    columns = {f"f{number}": random.normal(size=count) for number in range(NUMBERS)}
    return pa.RecordBatch.from_pydict(
        columns | {name: random.choice(["a", "b", "c"][:CATEGORIES], count) for name in "pq"}
    )


def reference():
    builder = ReferenceBuilder(bins=BINS, max_categories=10)
    batch = rows(2_000)
    builder.update(batch, layout_of(batch.schema))
    return builder.build("m", "1", "file")


def full(settings):
    """A processor with rows in each pane that there is: a day, at its end as often as panes change."""
    drift = Drift(settings, [reference()])
    begin, batch = 1_800_000_000 * 10**9, rows(3, 1)
    times = [begin + minute * 60 * 10**9 for minute in range(0, 26 * 60, 5)]
    times += [times[-1] + 25 * step * 10**9 for step in range(1, 13)]
    for now_ns in times:
        drift.update(Records("test", WHO, layout_of(batch.schema), batch, now_ns, batch.nbytes))
    return drift.capture().identities[0]


def stated(of, **known):
    """The formula of a row of the table of memory bounds, with its names replaced."""
    [formula] = re.findall(rf"^\| {of} \| ([^|:]*)", DOCUMENT.read_text(), re.M)
    for name, value in known.items():
        formula = formula.replace(name.replace("_", " "), str(value))
    return eval(formula.replace("\u00d7", "*").strip())


@pytest.mark.parametrize(
    "settings",
    [Settings(), Settings(other_windows=(Duration("5m"), Duration("24h")))],
    ids=["one window", "three"],
)
def test_an_identity_takes_what_the_document_says(settings):
    state = full(settings)
    held, recent = list(state.window.panes.held.values()), state.alarms.recent
    pane = stated(
        "a pane", numbers=NUMBERS, most_bins=BINS, categorical_columns=2, most_categories=CATEGORIES
    )
    sizes = [sum(array.nbytes for array in one.arrays().values()) for one in held]
    # The one that rows go to and the sum of what has left; the others' counts take a byte each.
    assert max(sizes) == pane
    assert sorted(sizes)[-3] < 0.7 * pane
    for one in held:
        one.widen()
    assert {sum(array.nbytes for array in one.arrays().values()) for one in held} == {pane}
    # Alarms keep the two largest arrays of a pane.
    assert max(sum(array.nbytes for array in one) for one in recent) < pane
    windows = 1 + len(settings.other_windows)
    panes = stated(
        "an identity's windows and alarms",
        **{"`drift.panes`": settings.panes, ") panes": ")", "windows": windows},
    )
    assert panes == windows * settings.panes + 1 + Alarms.RECENT
    # A level has a pane less while the one that its window ends in is in the finer ones alone.
    assert panes - windows <= len(held) + len(recent) <= panes


def test_slices_take_what_the_document_says():
    settings = Settings(slices=Slices(columns=("p", "q"), max_columns=2, max_values=3, panes=4))
    drift = Drift(settings, [reference()])
    random, begin = np.random.default_rng(1), 1_800_000_000 * 10**9
    for minute in range(0, 26 * 60, 5):
        columns = rows(40, minute).to_pydict()
        columns |= {name: [None, *random.integers(0, 50, 39).astype(str)] for name in "pq"}
        batch = pa.RecordBatch.from_pydict(columns)
        now_ns = begin + minute * 60 * 10**9
        drift.update(Records("test", WHO, layout_of(batch.schema), batch, now_ns, batch.nbytes))
    segments = drift._watches[WHO].window.slices.segments.values()
    panes = sum(len(its.capture().held) for one in segments for its in one.slices.values())
    row = r"^\| an identity's slices \| (.*?) for each slice, .* up to (.*?) \|"
    [found] = re.findall(row, DOCUMENT.read_text(), re.M)
    each, slices = found
    known = {"`drift.slices.panes`": 4, "`max_columns`": 2, "`max_values`": 3, " panes": "", "\u00d7": "*"}
    for name, value in known.items():
        each, slices = each.replace(name, str(value)), slices.replace(name, str(value))
    assert eval(each) == settings.slices.panes + 1
    assert sum(len(one.slices) for one in segments) == eval(slices) == 2 * (3 + 2)
    # A value without rows for a while has fewer panes, until it makes room.
    assert 0.8 * eval(each) * eval(slices) <= panes <= eval(each) * eval(slices)

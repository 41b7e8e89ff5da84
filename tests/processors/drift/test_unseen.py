"""The categories that a reference lacks: which are named, for how long, and at what price."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from tidegauge.batch import Records
from tidegauge.config import Drift as Settings
from tidegauge.identity import Identity
from tidegauge.layout import layout_of
from tidegauge.processors.drift.drift import Drift
from tidegauge.processors.drift.unseen import CAPACITY, LONGEST, PARTS, Unknown, Unseen
from tidegauge.reference import ReferenceBuilder

S = 10**9
NOW = 1_800_000_000 * S
ME = Identity("fraud", "2.1")
HOUR = 3_600 * S


def records(columns, second=0):
    rows = pa.RecordBatch.from_pydict(columns)
    return Records("flight", ME, layout_of(rows.schema), rows, NOW + second * S, rows.nbytes)


def drift(**settings):
    rows = pa.RecordBatch.from_pydict(
        {"c": ["a", "b"] * 500, "n": np.arange(1_000.0), "prediction": ["yes", "no"] * 500}
    )
    builder = ReferenceBuilder(bins=10, max_categories=10)
    builder.update(rows, layout_of(rows.schema))
    return Drift(Settings(**settings), [builder.build("fraud", "2.1", "file")])


def named(one, second=0, name="feature.unseen.category.rows"):
    for metric in one.collect(NOW + second * S):
        if metric.name == name:
            return {dict(point.attributes)["category"]: point.value for point in metric.points}
    return {}


def test_the_most_frequent_are_named_with_their_rows():
    one = drift()
    one.update(records({"c": ["a"] * 500 + ["x"] * 60 + ["y"] * 30 + ["z"], "prediction": ["maybe"] * 591}))
    assert named(one) == {"x": 60, "y": 30}  # and not z, which has less than a hundredth of the rows
    assert named(one, name="prediction.unseen.category.rows") == {"maybe": 591}


def test_no_more_are_named_than_is_set_and_none_where_none_shall_be():
    texts = [letter for letter in "cdefghijk" for _ in range(20)]
    for most in (0, 2, 5):
        one = drift(unseen_categories=most)
        one.update(records({"c": texts}))
        assert list(named(one)) == list("cdefg")[:most]


def test_texts_that_never_come_twice_are_not_named_and_hide_nothing():
    one = drift()
    for second in range(40):
        ids = [f"id-{second}-{row}" for row in range(1_000)]
        one.update(records({"c": ids + ["x"] * 100}, second))
    found = named(one, 40)
    assert list(found) == ["x"]
    assert 4_000 - 44_000 / (CAPACITY + 1) <= found["x"] <= 4_000


def test_what_came_before_the_window_is_forgotten():
    one = drift()
    one.update(records({"c": ["x"] * 300}))
    one.update(records({"c": ["y"] * 300}, 3_000))
    assert named(one, 3_000) == {"x": 300, "y": 300}
    assert named(one, 3_600 + 1_800) == {"y": 300}
    one.update(records({"c": ["a"] * 300}, 3 * 3_600))
    assert named(one, 3 * 3_600) == {}


def test_a_long_text_is_cut_and_an_empty_one_is_quoted():
    one = drift()
    one.update(records({"c": ["ä" * 1_000] * 300 + [""] * 200}))
    assert named(one) == {"ä" * LONGEST: 300, "''": 200}


def test_rows_of_dictionaries_count_and_their_unused_values_do_not():
    column = pa.DictionaryArray.from_arrays(pa.array([0, 0, 2]), pa.array(["x", "unused", "a"]))
    one = drift()
    one.update(records({"c": column}))
    assert named(one) == {"x": 2}


batches = st.lists(
    st.tuples(st.integers(0, 20), st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9), min_size=1))
)


@given(batches=batches, quarter=st.integers(0, 25))
def test_a_window_is_its_quarters_and_the_one_that_begins(batches, quarter):
    unseen, window = Unseen(PARTS * S), Counter()
    for number, texts in sorted(batches, key=lambda batch: batch[0]):
        counts = np.array(list(texts.values()))
        unseen.update(3, Unknown(pa.array(list(texts)), counts, int(counts.sum()), 0), number * S)
    newest = max((number for number, _ in batches), default=0)
    for number, texts in batches:
        if max(quarter, newest) - PARTS <= number:
            window.update(texts)
    found = unseen.frequent(3, max(quarter, newest) * S)
    assert dict(zip(found.texts, found.counts.tolist(), strict=True)) == window
    assert unseen.frequent(0, quarter * S).texts == ()

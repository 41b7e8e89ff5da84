"""Counts of categories against Python's Counter."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegauge.categories import distinct, numbered

words = st.text("abäß\0 ", max_size=14)
texts = st.lists(st.none() | words, max_size=60)
TYPES = [pa.string(), pa.large_string(), pa.string_view()]


def told(column: Any) -> tuple[Counter[str], int]:
    """What `distinct` says of a column, values that occur nowhere left out."""
    found, counts, missing = distinct(column)
    assert found.type == pa.string()
    assert found.null_count == 0
    assert counts.sum() + missing == len(column)
    totals: Counter[str] = Counter()
    for text, times in zip(found.to_pylist(), counts.tolist(), strict=True):
        totals[text] += times
    return +totals, missing


def expected(values: list[Any]) -> tuple[Counter[str], int]:
    return Counter(str(value) for value in values if value is not None), values.count(None)


@given(values=texts, kind=st.sampled_from(TYPES), start=st.integers(0, 5), stop=st.integers(5, 60))
def test_texts_of_every_type_sliced_and_with_nulls(
    values: list[str | None], kind: pa.DataType, start: int, stop: int
) -> None:
    assert told(pa.array(values, kind)[start:stop]) == expected(values[start:stop])


@given(
    dictionary=st.lists(st.none() | words, min_size=1, max_size=8),
    picks=st.lists(st.none() | st.integers(0, 7), max_size=60),
    kind=st.sampled_from(TYPES),
    index=st.sampled_from([pa.int8(), pa.uint8(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()]),
    start=st.integers(0, 5),
)
def test_dictionaries_may_hold_nulls_repeats_and_values_of_no_row(
    dictionary: list[str | None], picks: list[int | None], kind: pa.DataType, index: pa.DataType, start: int
) -> None:
    picks = [None if pick is None else pick % len(dictionary) for pick in picks]
    column = pa.DictionaryArray.from_arrays(pa.array(picks, index), pa.array(dictionary, kind))
    values = [None if pick is None else dictionary[pick] for pick in picks]
    assert told(column[start:]) == expected(values[start:])


@given(st.lists(st.none() | st.booleans(), max_size=40))
def test_booleans_are_true_and_false(values: list[bool | None]) -> None:
    spelled = [None if value is None else str(value).lower() for value in values]
    assert told(pa.array(values, pa.bool_())) == expected(spelled)


@given(values=st.lists(st.none() | st.integers(0, 200), max_size=40), coded=st.booleans())
@pytest.mark.parametrize("kind", [pa.uint8(), pa.int64(), pa.uint64()])
def test_integers_are_their_digits(kind: pa.DataType, values: list[int | None], coded: bool) -> None:
    column: Any = pa.array(values, kind)
    assert told(column.dictionary_encode() if coded else column) == expected(values)


def test_an_empty_dictionary_and_no_rows() -> None:
    nothing = pa.DictionaryArray.from_arrays(pa.array([None, None], pa.int8()), pa.array([], pa.string()))
    assert told(nothing) == (Counter(), 2)
    assert told(nothing[:0]) == (Counter(), 0)
    assert told(pa.array([], pa.string())) == (Counter(), 0)


@given(texts, st.lists(words, unique=True, max_size=6))
def test_a_number_is_the_place_among_the_known_ones(values, known):
    found = numbered(pa.array(values, pa.string()), pa.array(known, pa.string()))
    assert found.dtype == np.float32
    places = {text: place for place, text in enumerate(known)}
    expected = [np.nan if text is None else places.get(text, len(known)) for text in values]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))

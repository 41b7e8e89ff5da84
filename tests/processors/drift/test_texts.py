"""Columns of text looked up among known texts, beside Python's dict and Counter."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegauge.processors.drift.texts import Texts
from tidegauge.processors.drift.unseen import CAPACITY
from tidegauge.wire import known as tables
from tidegauge.wire.known import Known
from tidegauge.wire.met import LONGEST, MOST_MET
from tidegauge.wire.texts import tally

# On both sides of 8 and 16 bytes, and such that differ in one byte at the beginning, in the middle or end.
short = st.text("abäß\0 ", max_size=20)
alike = st.builds(
    lambda length, place, letter: ("x" * length)[:place] + letter + "x" * (length - place),
    st.integers(0, 40),
    st.integers(0, 40),
    st.sampled_from(["", "y", "\0", "é"]),
)
words = short | alike
values = st.lists(st.none() | words, max_size=60)
known_words = st.lists(words, unique=True, max_size=8)
TYPES = [pa.string(), pa.large_string(), pa.string_view()]


def read(column: Any, known: list[str]) -> tuple[Any, list[Any], Counter[str], int]:
    """Totals and the place of each row, others with their rows, and how many less those are at most."""
    rows = pa.record_batch({"n": np.zeros(len(column)), "c": column})
    its = Texts([(1, 1)], rows.schema)
    laid_out = Known.of([["other", "column"], known])
    found = its.count(rows, laid_out, others=True, places=True)
    others: Counter[str] = Counter()
    taken = 0
    for number, other in its.others(laid_out, found):
        assert number == 1
        assert other.rows == found.totals[0, len(known)]
        others.update(dict(zip(other.texts.to_pylist(), other.counts.tolist(), strict=True)))
        taken = other.taken
    picked = np.full((len(column), 4), -7, np.float32)
    its.pick(rows, laid_out, np.arange(len(column)), 1, picked)
    assert (picked[:, [0, 1, 3]] == -7).all()
    places = found.places[0]
    np.testing.assert_array_equal(picked[:, 2], np.where(places < 0, np.nan, places))
    alone = its.count(rows, laid_out)
    assert alone.places.shape == (1, 0)
    np.testing.assert_array_equal(alone.totals, found.totals)
    np.testing.assert_array_equal(alone.missing, found.missing)
    return found, places.tolist(), others, taken


def check(column: Any, wanted: list[str | None], known: list[str]) -> None:
    """What is read of a column whose values are `wanted` as texts."""
    found, places, others, taken = read(column, known)
    numbers = {text: place for place, text in enumerate(known)}
    assert places == [-1 if text is None else numbers.get(text, len(known)) for text in wanted]
    assert found.totals[0, : len(known) + 1].tolist() == [places.count(n) for n in range(len(known) + 1)]
    assert found.missing.tolist() == [wanted.count(None)]
    assert others == Counter(text for text in wanted if text is not None and text not in numbers)
    assert taken == 0


@given(values, known_words, st.sampled_from(TYPES), st.integers(0, 5), st.integers(5, 60))
def test_texts_of_every_type_sliced_and_with_nulls(values, known, kind, start, stop):
    check(pa.array(values, kind)[start:stop], values[start:stop], known)


@given(values, st.sampled_from(TYPES), st.booleans())
def test_among_many_known_ones_that_are_alike(values, kind, coded):
    known = ["x" * length + "y" * (length % 3) for length in range(200)]
    column: Any = pa.array(values, kind)
    check(column.dictionary_encode() if coded and kind != pa.string_view() else column, values, known)


@given(
    dictionary=st.lists(st.none() | words, min_size=1, max_size=8),
    picks=st.lists(st.none() | st.integers(0, 7), max_size=60),
    known=known_words,
    kind=st.sampled_from(TYPES),
    index=st.sampled_from([pa.int8(), pa.uint8(), pa.int16(), pa.uint32(), pa.int64(), pa.uint64()]),
    start=st.integers(0, 5),
    skipped=st.integers(0, 3),
)
def test_dictionaries_may_be_sliced_and_hold_nulls_repeats_and_values_of_no_row(
    dictionary, picks, known, kind, index, start, skipped
):
    picks = [None if pick is None else pick % len(dictionary) for pick in picks]
    whole = pa.array(["before"] * skipped + dictionary, kind)[skipped:]
    column = pa.DictionaryArray.from_arrays(pa.array(picks, index), whole)
    wanted = [None if pick is None else dictionary[pick] for pick in picks]
    check(column[start:], wanted[start:], known)


@given(st.lists(st.none() | st.booleans(), max_size=40), st.integers(0, 9), st.sampled_from([0, 1, 2]))
def test_booleans_are_true_and_false(values, start, count):
    wanted = [None if value is None else str(value).lower() for value in values]
    check(pa.array(values, pa.bool_())[start:], wanted[start:], ["true", "false"][:count])


@given(st.lists(st.none() | st.integers(0, 120), max_size=40), st.booleans(), st.integers(0, 9))
@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64()])
def test_integers_are_their_digits(kind, values, coded, start):
    column: Any = pa.array(values, kind)
    column = column.dictionary_encode() if coded else column
    wanted = [None if value is None else str(value) for value in values]
    check(column[start:], wanted[start:], ["7", "100", "x"])


@pytest.mark.parametrize("kind", TYPES)
def test_no_rows_and_nothing_but_nulls_or_empty_texts(kind):
    for values in ([], [None, None], ["", ""], [None, ""]):
        check(pa.array(values, kind), values, ["", "a"])
        check(pa.array(values, kind), values, [])
    check(pa.nulls(3, pa.dictionary(pa.int8(), kind)), [None] * 3, ["a"])


def test_a_text_at_the_end_of_its_memory_is_read_without_what_follows():
    octets = pa.py_buffer(b"abcabcdefgabc")
    offsets = pa.py_buffer(np.array([0, 3, 10, 13], np.int32))
    column = pa.StringArray.from_buffers(3, offsets, octets)
    check(column, ["abc", "abcdefg", "abc"], ["abc"])
    check(column[2:], ["abc"], ["abc"])
    check(column[:1], ["abc"], ["abc"])


def test_a_long_dictionary_is_mapped_where_rows_use_it():
    dictionary = [f"category {number}" for number in range(5_000)]
    picks = [0, 4_999, 17, 4_999]
    column = pa.DictionaryArray.from_arrays(pa.array(picks), pa.array(dictionary))
    check(column, [dictionary[pick] for pick in picks], dictionary[4_990:])


@given(st.lists(st.tuples(st.integers(0, 3_000), st.integers(1, 90)), max_size=80), st.integers(0, 2**31))
@pytest.mark.parametrize("coded", [False, True])
def test_of_many_others_the_frequent_ones_are_told_as_a_summary_promises(coded, groups, seed):
    rows = [f"name {number}" for number, times in groups for _ in range(times)]
    rows += [f"once {number}" for number in range(seed % (2 * MOST_MET))]
    rows = np.random.default_rng(seed).permutation(np.array(rows, object)).tolist()
    column: Any = pa.array(rows, pa.string())
    _, _, others, taken = read(column.dictionary_encode() if coded else column, ["name 0"])
    exact = Counter(text for text in rows if text != "name 0")
    assert len(others) <= CAPACITY
    assert taken <= exact.total() / (CAPACITY + 1)
    for text, times in exact.items():
        assert times - taken <= others[text] <= times
    if len(exact) <= CAPACITY:
        assert others == exact


def test_others_are_told_apart_by_their_first_characters():
    long = "ä" * LONGEST
    values = [long + "one", long + "two", long, "ä" * (LONGEST - 1), "known" + long]
    _, places, others, _ = read(pa.array(values), ["known" + long])
    assert places == [1, 1, 1, 1, 0]
    assert sorted(others.values()) == [1, 3]


def test_what_is_no_utf8_is_cut_off_too():
    """A file that nobody has validated may hold it."""
    octets = b"\x80" * 100_000
    offsets = pa.py_buffer(np.array([0, len(octets)], np.int32))
    column = pa.StringArray.from_buffers(1, offsets, pa.py_buffer(octets))
    rows = pa.record_batch({"c": column})
    its, known = Texts([(0, 0)], rows.schema), Known.of([["a"]])
    [(_, unknown)] = its.others(known, its.count(rows, known, others=True))
    assert unknown.counts.tolist() == [1]
    assert len(unknown.texts.buffers()[2]) == 4 * LONGEST


@pytest.mark.parametrize("kind", [pa.string(), pa.bool_(), pa.dictionary(pa.int8(), pa.string())])
def test_a_batch_of_other_types_is_not_read(kind):
    its, known = Texts([(0, 0)], pa.schema([("c", kind)])), Known.of([["a"]])
    for other in (pa.nulls(3), pa.array([1.0]), pa.array(["a"]), pa.array(["a"]).dictionary_encode()):
        rows = pa.record_batch({"c": other})
        if pa.types.is_dictionary(kind) != pa.types.is_dictionary(other.type) or pa.types.is_null(other.type):
            with pytest.raises(TypeError):
                its.count(rows, known)
            with pytest.raises(TypeError):
                its.pick(rows, known, np.arange(1), 0, np.zeros((1, 1), np.float32))


def test_several_columns_of_a_batch_are_told_in_one_call():
    rows = pa.record_batch(
        {
            "a": ["x", "y", None],
            "flag": [True, None, False],
            "b": pa.array(["p", "q", "p"]).dictionary_encode(),
            "n": pa.array([1, 2, 2], pa.int16()),
        }
    )
    its = Texts([(3, 0), (0, 3), (2, 1), (1, 2)], rows.schema)
    known = Known.of([["2"], ["q", "p"], ["false"], ["y", "z"]])
    found = its.count(rows, known, places=True)
    assert its.columns.tolist() == [0, 3, 1, 2]
    assert found.places.tolist() == [[1, 0, 0], [2, 0, -1], [1, 0, 1], [1, -1, 0]]
    assert found.missing.tolist() == [0, 1, 0, 1]
    assert found.totals.tolist() == [[2, 1, 0], [1, 0, 1], [1, 2, 0], [1, 1, 0]]


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=40), st.integers(0, 2**31))
def test_runs_of_rows_are_counted_from_places(places, seed):
    rows = np.random.default_rng(seed).permutation(len(places))[: seed % (len(places) + 1)]
    totals, missing = np.ones((3, 6), np.int64), np.zeros(3, np.int64)
    whole = np.array([places, places[::-1]], np.int32)
    tally(whole, rows, np.array([2, 0]), totals, missing)
    for its, column in zip(whole, (2, 0), strict=True):
        assert (totals[column] - 1).tolist() == [(its[rows] == place).sum() for place in range(6)]
        assert missing[column] == (its[rows] == -1).sum()
    assert totals[1].tolist() == [1] * 6


def test_texts_that_meet_in_the_table_are_told_apart(monkeypatch):
    """With a secret of 8 the hash of all texts of eight bytes is 0."""
    monkeypatch.setattr(tables, "_SEED", (5, 8))
    known = [f"{number:08}" for number in range(50)] + ["", "a" * 17]
    values = ["", None, "a" * 17, "b" * 17, "a" * 16 + "b", *known, "00000050", "00000051", "00000050"]
    check(pa.array(values), values, known)

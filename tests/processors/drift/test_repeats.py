"""Repeated ids, against a set of all that came."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegauge.processors.drift.repeats import Repeats, is_hashable

COLUMNS = {
    "text": lambda ids: pa.array([f"prediction-{i}" for i in ids]),
    "large text": lambda ids: pa.array([f"prediction-{i}" for i in ids], pa.large_string()),
    "view": lambda ids: pa.array([f"prediction-{i}" for i in ids], pa.string_view()),
    "uuid": lambda ids: pa.array([int(i).to_bytes(16, "big") for i in ids], pa.binary(16)),
    "dictionary": lambda ids: pa.array([str(i) for i in ids]).dictionary_encode(),
    "number": lambda ids: pa.array(ids, pa.int64()),
    "small number": lambda ids: pa.array(ids, pa.uint16()),
    "time": lambda ids: pa.array(ids, pa.timestamp("ms")),
}


@pytest.mark.parametrize("make", COLUMNS.values(), ids=COLUMNS)
def test_ids_of_every_type_are_found_again(make):
    repeats = Repeats(1_000)
    assert is_hashable(make([1]).type)
    assert repeats.update(make([1, 2, 3, 2])) == 1
    assert repeats.update(make([3, 4, 5]).slice(0, 2)) == 1
    assert repeats.update(make([5, 6]).slice(1)) == 0
    assert repeats.update(make([])) == 0


@given(st.lists(st.lists(st.none() | st.integers(0, 50), max_size=20), max_size=10))
def test_repeats_are_those_of_a_set(batches):
    repeats, known = Repeats(100), set()
    for batch in batches:
        wanted = 0
        for one in batch:
            wanted += one is not None and one in known
            known.add(one)
        assert repeats.update(pa.array(batch, pa.int32())) == wanted


def test_the_last_ids_are_remembered_and_new_ones_are_new():
    """The docstring's sentence: of those within the last `ids` 99.9 % are found, new ones are not."""
    ids = 4_096
    repeats = Repeats(ids)
    assert repeats._tags.nbytes == 8 * ids
    found = 0
    for begin in range(0, 60 * ids, ids):
        assert repeats.update(pa.array(np.arange(begin, begin + ids))) == 0
        found += repeats.update(pa.array(np.arange(begin, begin + ids)))
    assert found / (60 * ids) > 0.999
    # What is older than twice as many is forgotten.
    assert repeats.update(pa.array(np.arange(ids))) < 0.01 * ids


def test_no_two_agents_forget_the_same():
    one, other = Repeats(16)._seed, Repeats(16)._seed
    assert one != other

"""The summary of frequent texts against collections.Counter."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegauge.heavy_hitters import HeavyHitters

counts = st.dictionaries(
    st.sampled_from([chr(97 + n) * 2 for n in range(26)]), st.integers(0, 30), max_size=26
)
parts = st.lists(st.lists(counts, max_size=6), min_size=1, max_size=4)
"""What each of some summaries counts, batch by batch; all are merged then."""


def fed(summary: HeavyHitters, batch: dict[str, int]) -> None:
    summary.update(pa.array(list(batch), pa.string()), np.array(list(batch.values()), np.int64))


def summed(batches: list[list[dict[str, int]]], capacity: int, *, eager: bool = False) -> HeavyHitters:
    whole = HeavyHitters(capacity)
    for part in batches:
        summary = HeavyHitters(capacity)
        for batch in part:
            fed(summary, batch)
            if eager:
                summary.ranked()  # which merges what waits
        whole.merge(summary)
    return whole


@pytest.mark.parametrize("eager", [False, True])
@settings(max_examples=200)
@given(batches=parts, capacity=st.integers(1, 30))
def test_counts_are_within_the_bound(eager, batches, capacity):
    summary = summed(batches, capacity, eager=eager)
    truth = sum((Counter(batch) for part in batches for batch in part), Counter())
    ranked = summary.ranked()
    assert summary.rows == truth.total()
    assert summary.error * (capacity + 1) <= truth.total()
    assert len(ranked.texts) <= capacity
    found = dict(zip(ranked.texts, ranked.counts.tolist(), strict=True))
    for text, count in truth.items():
        assert count - summary.error <= found.get(text, 0) <= count
    assert found.keys() <= truth.keys()
    if len(+truth) <= capacity:
        assert found == +truth
        assert summary.error == 0


@given(batches=parts, seed=st.randoms())
def test_up_to_the_capacity_order_and_splits_leave_no_trace(batches, seed):
    one = summed(batches, 26).ranked()
    mixed = [batch for part in batches for batch in part]
    seed.shuffle(mixed)
    other = summed([mixed], 26, eager=True).ranked()
    assert one.texts == other.texts
    assert one.counts.tolist() == other.counts.tolist()


def test_what_is_frequent_is_found_late_and_among_a_million_others():
    summary = HeavyHitters(1_000)
    for start in range(0, 10**6, 50_000):
        fed(summary, {f"id-{n}": 1 for n in range(start, start + 50_000)})
        if start >= 500_000:
            fed(summary, {"late": 2_000})
    ranked = summary.ranked()
    assert ranked.texts[0] == "late"
    assert 20_000 - summary.error <= ranked.counts[0] <= 20_000
    assert summary.error <= summary.rows / 1_001


def test_one_place_is_enough_for_a_majority():
    summary = HeavyHitters(1)
    for text in "abacaada":
        fed(summary, {text: 1})
        summary.ranked()
    assert summary.ranked().texts == ("a",)


def test_no_place_is_refused():
    with pytest.raises(ValueError, match="0 texts"):
        HeavyHitters(0)

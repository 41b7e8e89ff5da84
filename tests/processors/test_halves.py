"""Joining Triton's spans against a dictionary."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegauge.processors.halves import COMPUTE, FREE, MAX_AGE_NS, MODEL, SETS, TIMES, WAYS, Halves, join

SECOND = 10**9


class Half(NamedTuple):
    kind: int
    trace: int
    span: int


def offer(halves: Halves, half: Half, series: int = 0, times: tuple[int, ...] = (0,) * TIMES) -> bool:
    given_ = halves.given[0]
    given_["kind"], given_["series"], given_["span_id"] = half.kind, series, half.span
    given_["trace_high"], given_["trace_low"] = half.trace >> 64, half.trace & 2**64 - 1
    given_["times"] = times
    return bool(join(halves.rows, given_, halves.lost))


def waiting(halves: Halves) -> int:
    return int((halves.rows["kind"] != FREE).sum())


# So few ids that sets fill up, and more than one trace or span alone tells apart.
some_half = st.builds(
    Half,
    st.sampled_from([MODEL, COMPUTE]),
    st.sampled_from([1, 2, 1 << 64, 2 << 64, (1 << 64) + 1]),
    st.integers(1, 4),
)


@settings(deadline=None)
@given(st.lists(some_half, max_size=60))
def test_halves_join_as_in_a_dictionary(offered: list[Half]) -> None:
    halves, held, replaced = Halves(0), dict[tuple[int, int], int](), 0
    for half in offered:
        ids = half.trace, half.span
        complete = ids in held and held[ids] != half.kind
        assert offer(halves, half) is complete
        replaced += held.get(ids) == half.kind
        if complete:
            del held[ids]
        else:
            held[ids] = half.kind
    assert waiting(halves) == len(held)
    assert halves.lost.sum() == replaced


def test_a_joined_half_has_the_series_and_all_times() -> None:
    model, compute = Half(MODEL, 7, 8), Half(COMPUTE, 7, 8)
    for first, second in ((model, compute), (compute, model)):
        halves = Halves(0)
        told = {model: (5, (1, 0, 0, 0, 0)), compute: (0, (0, 2, 3, 4, 5))}
        assert not offer(halves, first, *told[first])
        assert offer(halves, second, *told[second])
        assert (halves.given[0]["series"], halves.given[0]["times"].tolist()) == (5, [1, 2, 3, 4, 5])
        assert waiting(halves) == 0
        assert halves.lost.tolist() == [0, 0, 0]


def test_one_without_valid_ids_is_given_up() -> None:
    halves = Halves(0)
    for half in (Half(MODEL, 0, 1), Half(MODEL, 1, 0), Half(COMPUTE, 0, 1)):
        assert not offer(halves, half)
    assert halves.lost.tolist() == [0, 2, 1]
    assert waiting(halves) == 0


def test_the_table_is_bounded_and_a_full_set_gives_up_its_oldest() -> None:
    halves = Halves(0)
    offered = [Half(MODEL, 1 << 64, number) for number in range(1, 2 * SETS * WAYS + 1)]
    for half in offered:
        offer(halves, half)
    # Twice as many as there are places: hardly a set of 8 is left with less than 8 of 16.
    assert 0.99 * SETS * WAYS < waiting(halves) <= SETS * WAYS
    assert halves.lost.tolist() == [0, len(offered) - waiting(halves), 0]
    kept = set(halves.rows["span_id"][halves.rows["kind"] != FREE].tolist())
    assert {half.span for half in offered[-100:]} <= kept
    assert all(offer(halves, Half(COMPUTE, 1 << 64, span)) for span in kept)
    assert waiting(halves) == 0


@pytest.fixture(scope="module")
def one_set() -> list[int]:
    """Two span ids more than a set has places, all of one set of trace 1, found by trying."""
    found: defaultdict[int, list[int]] = defaultdict(list)
    for span in range(1, 50_000):
        probe = Halves(0)
        offer(probe, Half(MODEL, 1, span))
        [ways] = np.flatnonzero(probe.rows["kind"].any(axis=1))
        found[ways].append(span)
        if len(found[ways]) == WAYS + 2:
            return found[ways]
    raise AssertionError("the sets are not even")


def test_a_full_set_gives_up_its_oldest_first(one_set: list[int]) -> None:
    halves = Halves(0)
    for span in one_set:
        offer(halves, Half(MODEL, 1, span))
    assert halves.lost.tolist() == [0, 2, 0]
    assert sorted(halves.rows["span_id"][halves.rows["kind"] != FREE].tolist()) == one_set[2:]


def test_a_place_that_became_free_is_taken_before_any_is_given_up(one_set: list[int]) -> None:
    """Also the place of the youngest."""
    halves = Halves(0)
    for span in one_set[:WAYS]:
        offer(halves, Half(MODEL, 1, span))
    assert offer(halves, Half(COMPUTE, 1, one_set[WAYS - 1]))
    offer(halves, Half(MODEL, 1, one_set[WAYS]))
    assert halves.lost.sum() == 0
    assert waiting(halves) == WAYS


def test_what_waits_too_long_is_given_up() -> None:
    halves = Halves(100 * SECOND)
    offer(halves, Half(MODEL, 1, 1))
    halves.expire(110 * SECOND)
    offer(halves, Half(COMPUTE, 1, 2))
    halves.expire(100 * SECOND + MAX_AGE_NS)
    assert waiting(halves) == 2
    halves.expire(105 * SECOND + MAX_AGE_NS)
    assert halves.lost.tolist() == [0, 1, 0]
    assert not offer(halves, Half(COMPUTE, 1, 1))
    assert offer(halves, Half(MODEL, 1, 2))
    halves.expire(200 * SECOND)
    assert halves.lost.tolist() == [0, 1, 1]
    assert waiting(halves) == 0

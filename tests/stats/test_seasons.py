"""The decomposition against series whose trend, season and noise are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tidegauge.stats.seasons import expect, median

HOURS = np.arange(168)
SEASON = 5 * np.sin(2 * np.pi * HOURS / 24) + np.where(HOURS > 120, 7.0, 0.0)


def series(weeks, count, seed, *, noise=1.0, drift=0.0):
    """(history, next values): float64[weeks, 168, count] and float64[count]; a trend of `drift` a week."""
    random = np.random.default_rng(seed)
    whole = np.concatenate([np.tile(SEASON, weeks), SEASON[:1]])[:, None]
    whole = whole + drift * (np.arange(len(whole)) // 168)[:, None]
    whole = whole + noise * random.normal(size=(len(whole), count))
    return whole[:-1].reshape(weeks, 168, count), whole[-1]


@pytest.mark.parametrize("weeks", [2, 3, 4, 8])
def test_of_a_season_without_change_one_in_twenty_lies_beyond_two_deviations(weeks):
    past, following = series(weeks, 2_000, weeks)
    expected = expect(past)
    beyond = np.abs(following - expected.value) / expected.spread > 1.96
    assert beyond.mean() == pytest.approx(0.05, abs=0.025)


def test_outliers_in_a_tenth_of_all_hours_bend_nothing():
    past, following = series(4, 2_000, 1)
    random = np.random.default_rng(2)
    spoilt = np.where(random.random(past.shape) < 0.1, 1_000.0, past)
    expected = expect(spoilt)
    deviation = (following - expected.value) / expected.spread
    # Two spoilt values of an hour's four leave no median: that is one in twenty.
    assert np.median(np.abs(deviation)) == pytest.approx(0.67, abs=0.15)
    assert (np.abs(deviation) > 1.96).mean() < 0.12


def test_the_trend_is_followed_by_the_week_and_the_season_is_no_surprise():
    past, _ = series(4, 50, 3, drift=2.0)
    assert expect(past).value == pytest.approx(SEASON[0] + 3 * 2.0, abs=2.5)
    mean, deviation = past.mean(axis=(0, 1)), past.std(axis=(0, 1))
    peak = SEASON[6] + 6.0
    assert np.all((peak - mean) / deviation > 0.8)  # without the season every noon would stand out
    turned = np.concatenate([past[:, 6:], np.roll(past[:, :6], -1, axis=0)], axis=1)
    assert np.median(expect(turned).spread) < 1.5


def test_a_step_of_five_deviations_is_seen():
    past, following = series(4, 500, 4)
    expected = expect(past)
    assert np.mean((following + 5.0 - expected.value) / expected.spread > 3) > 0.8


def test_too_little_past_expects_nothing():
    past, _ = series(4, 3, 5)
    past[:3, 0, 0] = np.nan  # one week of that hour is left
    past[:, :, 1] = np.nan
    expected = expect(past)
    assert np.isnan(expected.value).tolist() == [True, True, False]
    assert np.isnan(expected.spread).tolist() == [True, True, False]


def test_gaps_are_no_zeros():
    past, following = series(4, 1_000, 6, noise=0.5)
    past[np.random.default_rng(1).random(past.shape) < 0.3] = np.nan
    expected = expect(past)
    known = np.isfinite(expected.value)
    assert known.mean() > 0.8
    assert np.median(np.abs(following - expected.value)[known]) < 1.0


@given(
    arrays.arrays(
        np.float64, (5, 4, 3), elements=st.one_of(st.floats(-1e6, 1e6), st.just(np.nan)), fill=st.nothing()
    ),
    st.integers(0, 2),
)
def test_the_median_is_numpys(values, axis):
    wanted = np.apply_along_axis(
        lambda one: np.median(one[~np.isnan(one)]) if (~np.isnan(one)).any() else np.nan, axis, values
    )
    np.testing.assert_array_equal(median(values, axis), wanted)

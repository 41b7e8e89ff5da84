"""Rank correlation against scipy, and how often series without a relation seem to have one."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tidegauge.stats.correlation import LEAST, correlate, independent, lagged, ranks

values = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.0, 1.0, -1.0]))


@given(arrays(np.float64, st.integers(1, 50), elements=values))
def test_ranks_are_scipy_s(x):
    assert ranks(x).tolist() == scipy.stats.rankdata(x).tolist()


@settings(max_examples=200)
@given(st.data())
def test_a_correlation_is_scipy_s_of_the_pairs_without_a_nan(data):
    n = data.draw(st.integers(0, 80))
    x, y = (data.draw(arrays(np.float64, n, elements=st.one_of(values, st.just(np.nan)))) for _ in range(2))
    both = ~(np.isnan(x) | np.isnan(y))
    found = correlate(x, y)
    if both.sum() < LEAST or len(set(x[both])) == 1 or len(set(y[both])) == 1:
        assert found is None
        return
    assert found.r == pytest.approx(scipy.stats.spearmanr(x[both], y[both]).statistic, abs=1e-12)
    assert (found.lag, found.pairs) == (0, both.sum())
    assert 0.0 <= found.p_value <= 1.0


def test_without_autocorrelation_the_p_value_is_about_scipy_s():
    random = np.random.default_rng(1)
    for strength in (0.0, 0.1, 0.2, 0.3):
        x = random.normal(size=2000)
        y = strength * x + random.normal(size=2000)
        expected = scipy.stats.spearmanr(x, y).pvalue
        assert correlate(x, y).p_value == pytest.approx(expected, rel=0.5, abs=1e-9)


def walks(phi, size, n, seed):
    noise = np.random.default_rng(seed).normal(size=(size, n + 200))
    return scipy.signal.lfilter([1.0], [1.0, -phi], noise)[:, 200:]


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, 0.97, 1.0])
@pytest.mark.parametrize("n", [30, 240])
def test_unrelated_series_are_called_related_as_rarely_as_said(phi, n):
    """Also random walks, of which scipy's p-value calls most pairs related."""
    pairs = list(zip(walks(phi, 600, n, 1), walks(phi, 600, n, 2), strict=True))
    p_values = np.array([correlate(x, y).p_value for x, y in pairs])
    # 600 draws at 5 %: 30, and 49 is 3.6 standard deviations more.
    assert (p_values < 0.05).sum() <= 49
    best = np.array([lagged(x, y, 20).p_value for x, y in pairs[:300] if lagged(x, y, 20)])
    assert (best < 0.05).mean() <= 0.09
    if phi == 1.0 and n == 240:
        naive = sum(scipy.stats.spearmanr(x, y).pvalue < 0.05 for x, y in pairs)
        assert naive > 400


def test_a_relation_is_found_at_its_lag():
    random = np.random.default_rng(3)
    cause = walks(0.8, 1, 240, 4)[0]
    for lag in (0, 3, 12):
        effect = np.roll(cause, lag) ** 3 + random.normal(0, 0.1, 240)
        effect[:lag] = np.nan
        found = lagged(effect, cause, 20)
        assert found.lag == lag
        assert found.r > 0.95
        assert found.p_value < 1e-6


def test_too_few_pairs_or_none_that_vary_have_no_correlation():
    x = np.arange(LEAST, dtype=float)
    assert correlate(x, x).r == 1.0
    assert correlate(x[1:], x[1:]) is None
    assert correlate(x, np.ones(LEAST)) is None
    assert lagged(x[1:], x[1:], 5) is None
    assert lagged(x, np.full(LEAST, np.nan), 5) is None
    assert lagged(x, -x, 5).r == -1.0


def test_independent_pairs_are_all_pairs_of_noise_and_few_of_a_walk():
    noise, walk = (
        walks(phi, 2, 1000, 5) - walks(phi, 2, 1000, 5).mean(1, keepdims=True) for phi in (0.0, 0.99)
    )
    assert independent(*noise) == pytest.approx(1000, rel=0.1)
    assert independent(*walk) < 100


def test_a_step_in_each_of_two_series_is_called_a_relation_as_often_as_documented():
    """One pair in nine instead of one in twenty: the caveat of docs/metrics.md."""
    random, steps = np.random.default_rng(3), np.arange(240)
    pairs = [
        [random.normal(size=240) + 5.0 * (steps >= random.integers(24, 216)) for _ in range(2)]
        for _ in range(1000)
    ]
    assert 0.08 < np.mean([correlate(x, y).p_value < 0.05 for x, y in pairs]) < 0.14

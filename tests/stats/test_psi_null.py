"""PSI where bins hold few rows: moments by enumeration, and false alarms by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import binom

from tidegauge.stats import psi_null
from tidegauge.stats.comparison import psi_rows
from tidegauge.stats.distances import SMOOTHING, chi_square_quantile, psi
from tidegauge.stats.nulls import TAIL

LIMITS = np.array([chi_square_quantile(TAIL, float(degrees)) for degrees in range(100)])


def false_alarms(shares, n, m, draws=1_000, seed=0):
    """Share of p-values below 0.05 and 0.01, and of values above the quantile, without drift."""
    random, bins = np.random.default_rng(seed), len(shares)
    shares = np.asarray(shares) / np.sum(shares)
    before, window = random.multinomial(n, shares, draws), random.multinomial(m, shares, draws)
    value, p_value, quantile = psi_rows(np.full(draws, bins), before, window, LIMITS).T
    return (p_value < 0.05).mean(), (p_value < 0.01).mean(), (value > quantile).mean()


RARE = [0.1] * 10 + [1e-5] * 90
LONG = 1.0 / np.arange(1, 101) ** 2
FEW = np.full(100, 0.01)


@pytest.mark.parametrize(("n", "m"), [(1_000_000, 1_000), (50_000, 500), (5_000, 200), (200, 5_000)])
@pytest.mark.parametrize("shares", [RARE, LONG, FEW, np.full(20, 0.05)], ids=["rare", "long", "few", "even"])
def test_small_counts_are_called_drift_as_rarely_as_said(shares, n, m):
    """By chi-square every window of the rare ones was drifted, at a PSI up to 1, and none of the few ever."""
    below, far_below, above = false_alarms(shares, n, m)
    assert 0.01 < below < 0.09
    assert far_below < 0.025
    assert above == pytest.approx(below, abs=0.005)


@pytest.mark.parametrize("shares", [[0.999, 0.001], [0.99] + [0.001] * 9, [1.0] + [0.001] * 99])
@pytest.mark.parametrize(("n", "m"), [(200, 200), (1_000_000, 200), (5_000, 300)])
def test_one_category_that_is_nearly_all_is_seldom_called_drift(shares, n, m):
    assert false_alarms(shares, n, m)[1] <= 0.03


def test_drift_in_small_counts_is_seen():
    random = np.random.default_rng(1)
    before = random.multinomial(5_000, FEW, 100)
    window = random.multinomial(200, np.repeat([0.015, 0.005], 50), 100)
    assert (psi_rows(np.full(100, 100), before, window, LIMITS)[:, 1] < 0.01).mean() > 0.7


def test_moments_are_those_of_all_ways_to_share_out_the_rows():
    both, n, m = [30, 40, 50], 82, 38
    bins, rate = len(both), m / (n + m)
    of_bins = []
    for rows in both:
        parts = np.array(
            [
                (q - p) * np.log(q / p)
                for p, q in (
                    (
                        (rows - mine + SMOOTHING) / (n + SMOOTHING * bins),
                        (mine + SMOOTHING) / (m + SMOOTHING * bins),
                    )
                    for mine in range(rows + 1)
                )
            ]
        )
        chances = binom.pmf(np.arange(rows + 1), rows, rate)
        mean, middle = chances @ parts, (rows * (1 - rate) + SMOOTHING) / (n + SMOOTHING * bins)
        gap = (rows * rate + SMOOTHING) / (m + SMOOTHING * bins) - middle
        middle = gap * np.log1p(gap / middle)
        rest = 1 - rows / (n + m)
        spread = chances @ (parts - mean) ** 2, chances @ (parts - mean) ** 3
        of_bins.append([middle + rest * (mean - middle), rest * spread[0], rest * spread[1]])
    mean, variance, third = np.sum(of_bins, axis=0)
    reference, window = np.array([20, 30, 32]), np.array([10, 10, 18])
    free = 8 * variance**3 / third**2
    found = psi_null.null(reference, window, bins - 1)
    assert found == pytest.approx((mean, np.sqrt(2 * free / variance), free), rel=1e-5)


def test_which_side_is_the_reference_does_not_matter():
    random = np.random.default_rng(2)
    for n, m in itertools.product((50, 3_000), repeat=2):
        a, b = random.multinomial(n, RARE / np.sum(RARE)), random.multinomial(m, RARE / np.sum(RARE))
        degrees = int(((a + b) > 0).sum()) - 1
        assert psi_null.judged(psi(a, b), a, b, degrees, 1.0) == pytest.approx(
            psi_null.judged(psi(b, a), b, a, degrees, 1.0), rel=1e-9
        )


def test_many_rows_in_each_bin_make_chi_square():
    """And at the border, where one bin of twenty holds a few less, nearly so."""
    mean, slope, free = psi_null.null(np.full(20, 250), np.full(20, 25), 19)
    noise = 1 / 5_000 + 1 / 500
    assert (mean, slope, free) == (pytest.approx(19 * noise), pytest.approx(1 / noise), 19)
    window = np.array([21] + [25] * 19)
    noise = 1 / 4_940 + 1 / window.sum()
    for tail in (0.5, 0.05, 0.01):
        value = noise * chi_square_quantile(tail, 19.0)
        found, _ = psi_null.judged(value, np.array([190] + [250] * 19), window, 19, 1.0)
        assert found == pytest.approx(tail, rel=0.6)


def test_bins_without_a_choice_are_no_drift():
    assert psi_null.judged(0.0, np.array([50]), np.array([3]), 0, 0.0) == (1.0, 0.0)
    one = np.array([199, 1]), np.array([200, 0])
    assert psi_null.judged(psi(*one), *one, 1, 3.84)[0] > 0.1

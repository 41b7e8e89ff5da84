"""Distances and p-values against scipy and exact arithmetic."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tidegauge.stats import distances

counts = st.lists(st.integers(0, 10**12), min_size=1, max_size=40)


@st.composite
def pairs(draw):
    """Two histograms on the same bins, both with rows."""
    bins = draw(st.integers(1, 40))
    sizes = st.one_of(st.integers(0, 30), st.integers(0, 10**9))
    one = draw(st.lists(sizes, min_size=bins, max_size=bins))
    two = draw(st.lists(sizes, min_size=bins, max_size=bins))
    assume(sum(one) and sum(two))
    return np.array(one, np.int64), np.array(two, np.int64)


@given(pairs())
def test_psi_is_the_sum_over_smoothed_shares(pair):
    reference, window = pair
    a, b = reference[reference + window > 0], window[reference + window > 0]
    p = (a + 0.5) / (a.sum() + 0.5 * len(a))
    q = (b + 0.5) / (b.sum() + 0.5 * len(b))
    wanted = scipy.special.rel_entr(p, q).sum() + scipy.special.rel_entr(q, p).sum()
    assert distances.psi(reference, window) == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert distances.psi(reference, window) == pytest.approx(distances.psi(window, reference), rel=1e-9)
    assert distances.psi(reference, reference) == 0


@given(pairs())
def test_hellinger_total_variation_and_the_largest_gap_are_their_definitions(pair):
    reference, window = pair
    p, q = reference / reference.sum(), window / window.sum()
    assert distances.hellinger(reference, window) ** 2 == pytest.approx(1 - np.sqrt(p * q).sum(), abs=1e-12)
    gaps = [
        abs(Fraction(int(a), int(reference.sum())) - Fraction(int(b), int(window.sum())))
        for a, b in zip(reference, window, strict=True)
    ]
    assert distances.total_variation(reference, window) == pytest.approx(float(sum(gaps) / 2), abs=1e-14)
    assert distances.l_infinity(reference, window) == pytest.approx(float(max(gaps)), abs=1e-15)
    for distance in (distances.hellinger, distances.total_variation, distances.l_infinity):
        assert 0 <= distance(reference, window) <= 1 + 1e-12
        assert distance(reference, reference) == 0


@given(pairs())
def test_g_is_scipys_on_the_columns_that_hold_something(pair):
    reference, window = pair
    table = np.array([reference, window])[:, (reference + window) > 0].astype(float)
    found = distances.g_test(reference, window)
    if table.shape[1] > 1:
        wanted = scipy.stats.chi2_contingency(table, correction=False, lambda_="log-likelihood").statistic
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-9 * table.sum())
    else:
        assert found == pytest.approx(0, abs=1e-9 * table.sum())


@st.composite
def small_pairs(draw):
    """Few enough rows that both sides can be written out one by one."""
    bins = draw(st.integers(2, 12))
    one, two = (draw(st.lists(st.integers(0, 15), min_size=bins, max_size=bins)) for _ in range(2))
    assume(sum(one) > 1 and sum(two) > 1 and np.count_nonzero(np.add(one, two)) > 1)
    return np.array(one, np.int64), np.array(two, np.int64)


@given(small_pairs())
def test_anderson_darling_is_scipys_midrank_statistic(pair):
    reference, window = pair
    x, y = (np.repeat(np.arange(len(counts)), counts) for counts in pair)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its p-value is clipped, and it says so
        wanted = scipy.stats.anderson_ksamp([x, y], midrank=True).statistic
    assert _standardised(distances.anderson_darling(reference, window), len(x), len(y)) == pytest.approx(
        wanted, rel=1e-9, abs=1e-9
    )


def _standardised(statistic, n, m):
    """Scholz & Stephens 1987, eq. 4: mean k - 1 and variance for k = 2 taken off."""
    size = n + m
    harmonic = sum(1 / i for i in range(1, size))
    big = 1 / n + 1 / m
    g = sum(1 / ((size - i) * j) for i in range(1, size - 1) for j in range(i + 1, size))
    a = (4 * g - 6) + (10 - 6 * g) * big
    b = (2 * g - 4) * 4 + 8 * harmonic * 2 + (2 * g - 14 * harmonic - 4) * big - 8 * harmonic + 4 * g - 6
    c = (6 * harmonic + 2 * g - 2) * 4 + (4 * harmonic - 4 * g + 6) * 2 + (2 * harmonic - 6) * big
    c += 4 * harmonic
    d = (2 * harmonic + 6) * 4 - 4 * harmonic * 2
    variance = (a * size**3 + b * size**2 + c * size + d) / ((size - 1) * (size - 2) * (size - 3))
    return (statistic - 1) / math.sqrt(variance)


@given(st.lists(st.booleans(), min_size=4, max_size=60))
def test_cramer_von_mises_is_scipys_where_no_two_values_are_alike(sides):
    assume(sum(sides) > 1 and len(sides) - sum(sides) > 1)
    reference = np.array(sides, np.int64)
    window = 1 - reference
    x, y = np.flatnonzero(reference), np.flatnonzero(window)
    wanted = scipy.stats.cramervonmises_2samp(x, y).statistic
    assert distances.cramer_von_mises(reference, window) == pytest.approx(wanted, abs=1e-9)


@given(pairs())
def test_js_is_scipys(pair):
    reference, window = pair
    found = distances.js(reference, window)
    wanted = scipy.spatial.distance.jensenshannon(reference / reference.sum(), window / window.sum())
    # scipy loses a root's worth of digits near zero, and may return NaN there.
    assert found == pytest.approx(np.nan_to_num(wanted), abs=2e-8)
    assert 0 <= found <= math.sqrt(math.log(2)) + 1e-12


@given(pairs())
@example((np.array([1, 0]), np.array([0, 1])))
def test_chi_square_is_scipys_on_the_columns_that_hold_something(pair):
    reference, window = pair
    statistic, degrees = distances.chi_square(reference, window)
    table = np.array([reference, window])[:, (reference + window) > 0]
    assert degrees == table.shape[1] - 1
    if degrees:
        wanted = scipy.stats.chi2_contingency(table.astype(float), correction=False)
        assert statistic == pytest.approx(wanted.statistic, rel=1e-9, abs=1e-9)
        assert distances.chi_square_p_value(statistic, degrees) == pytest.approx(wanted.pvalue, rel=1e-6)
    else:
        assert statistic == 0


@given(pairs())
def test_ks_is_exact_on_the_bins(pair):
    reference, window = pair
    n, m = int(reference.sum()), int(window.sum())
    gaps = [
        abs(Fraction(int(a), n) - Fraction(int(b), m))
        for a, b in zip(reference.cumsum(), window.cumsum(), strict=True)
    ]
    assert distances.ks(reference, window) == pytest.approx(float(max(gaps)), abs=1e-15)


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=80),
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=80),
    st.lists(st.floats(-1e3, 1e3), max_size=12, unique=True).map(sorted),
)
def test_binned_ks_is_below_the_real_one_by_at_most_the_heaviest_bin(one, two, edges):
    binned_one, binned_two = (
        np.bincount(np.searchsorted(edges, side, side="left"), minlength=len(edges) + 1)
        for side in (one, two)
    )
    real = max(abs(np.mean(np.array(one) <= x) - np.mean(np.array(two) <= x)) for x in [*one, *two])
    found = distances.ks(binned_one, binned_two)
    heaviest = max((binned_one / len(one)).max(), (binned_two / len(two)).max())
    assert found <= real + 1e-12
    assert found >= real - heaviest - 1e-12


def sums(values, edges, center):
    place = np.searchsorted(edges, values, side="left")
    total = np.zeros(len(edges) + 1)
    np.add.at(total, place, np.asarray(values) - center)
    return np.bincount(place, minlength=len(edges) + 1), total


values = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60)


@given(values, values, st.lists(st.floats(-1e3, 1e3), max_size=12, unique=True).map(sorted))
def test_binned_wasserstein_is_off_by_at_most_the_bound_it_promises(one, two, edges):
    center = float(np.mean(one))
    found = distances.wasserstein(*sums(one, edges, center), *sums(two, edges, center))
    real = scipy.stats.wasserstein_distance(one, two)
    everything = np.array([*one, *two])
    bounds = [everything.min(), *edges, everything.max()]
    a, b = sums(one, edges, 0.0)[0] / len(one), sums(two, edges, 0.0)[0] / len(two)
    widths = [max(high - low, 0.0) for low, high in pairwise(bounds)]
    bound = sum(width / 2 * (p + q) for width, p, q in zip(widths, a, b, strict=True))
    assert abs(found - real) <= bound + 1e-9
    # The difference of the means is never lost: it is a lower bound of the distance.
    assert found >= abs(np.mean(one) - np.mean(two)) - 1e-9


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=200),
    st.lists(st.integers(0, 6), min_size=1, max_size=200),
)
def test_wasserstein_is_exact_where_each_bin_holds_one_value(one, two):
    edges = np.arange(6.0)
    found = distances.wasserstein(*sums(one, edges, 3.0), *sums(two, edges, 3.0))
    assert found == pytest.approx(scipy.stats.wasserstein_distance(one, two), abs=1e-12)


def test_wasserstein_sees_outliers_beyond_the_last_edge():
    edges = np.array([0.0])
    one, two = [-1.0] * 50 + [1.0] * 50, [-1.0] * 50 + [1e6] * 50
    found = distances.wasserstein(*sums(one, edges, 0.0), *sums(two, edges, 0.0))
    assert found == pytest.approx(scipy.stats.wasserstein_distance(one, two), rel=1e-12)


@given(st.floats(0, 5000), st.integers(1, 400))
@example(0.0, 1)
@example(1300.0, 3)
def test_chi_square_p_value_is_scipys(statistic, degrees):
    wanted = scipy.stats.chi2.sf(statistic, degrees)
    if wanted > 1e-280:
        assert distances.chi_square_p_value(statistic, degrees) == pytest.approx(wanted, rel=1e-9)
    else:
        assert distances.chi_square_p_value(statistic, degrees) < 1e-279


def test_chi_square_p_value_without_degrees_is_one():
    assert distances.chi_square_p_value(5.0, 0.0) == 1.0


@given(st.floats(1e-9, 1), st.integers(1, 10**7), st.integers(1, 10**7))
def test_ks_p_value_is_kolmogorovs_series(distance, n, m):
    root = math.sqrt(n * m / (n + m))
    wanted = scipy.special.kolmogorov((root + 0.12 + 0.11 / root) * distance)
    assert distances.ks_p_value(distance, n, m) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("bins", [5, 20])
@pytest.mark.parametrize("m", [500, 5000])
def test_p_values_without_drift_are_uniform_enough(bins, m):
    """At 5 % each test rejects 5 % of 2000 driftless windows; four standard errors are 2 points."""
    rng = np.random.default_rng(11)
    n, trials = 5000, 2000
    rejected = {"psi": 0, "js": 0, "chi2": 0, "ks": 0}
    share = np.full(bins, 1 / bins)
    for _ in range(trials):
        reference, window = rng.multinomial(n, share), rng.multinomial(m, share)
        chi2, degrees = distances.chi_square(reference, window)
        psi, js = distances.psi(reference, window), distances.js(reference, window)
        rejected["chi2"] += distances.chi_square_p_value(chi2, degrees) < 0.05
        rejected["psi"] += distances.divergence_p_value(psi, 1.0, n, m, bins - 1) < 0.05
        rejected["js"] += distances.divergence_p_value(js * js, 0.125, n, m, bins - 1) < 0.05
        rejected["ks"] += distances.ks_p_value(distances.ks(reference, window), n, m) < 0.05
    for name in ("psi", "js", "chi2"):
        assert rejected[name] / trials == pytest.approx(0.05, abs=0.02), name
    assert rejected["ks"] / trials <= 0.07  # conservative: bins hide a part of the distance


@given(st.lists(st.floats(0, 1), max_size=60), st.floats(0.001, 0.5))
def test_false_discoveries_are_those_of_scipy(p_values, rate):
    found = distances.false_discoveries(np.array(p_values), rate)
    adjusted = scipy.stats.false_discovery_control(p_values) if p_values else np.empty(0)
    clear = abs(adjusted - rate) > 1e-9
    assert found[clear].tolist() == (adjusted <= rate)[clear].tolist()


def test_empty_bins_change_nothing():
    reference, window = np.array([50_000, 30_000]), np.array([120, 80])
    wide = [np.concatenate([side, [0, 0, 0]]) for side in (reference, window)]
    for distance in (distances.psi, distances.js, distances.ks, distances.chi_square):
        assert distance(*wide) == distance(reference, window)

"""Every statistic and its null, against its definition and against windows that do not drift."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegauge.stats import distances, nulls
from tidegauge.stats.comparison import ORDERED, STATISTICS, Baseline, Baselines, compare

PLACE = {name: place for place, name in enumerate(STATISTICS)}


def binned(values, edges, center):
    """Counts, sums and squares of values about a centre."""
    place = np.searchsorted(edges, values, side="left")
    gaps, bins = values - center, len(edges) + 1
    return (
        np.bincount(place, minlength=bins),
        np.bincount(place, gaps, minlength=bins),
        np.bincount(place, gaps * gaps, minlength=bins),
    )


def baseline(values, edges):
    center = values.mean()
    counts, sums, squares = binned(values, edges, center)
    return Baseline(counts, sums, squares, float(((values - center) ** 4).sum()), 0), center


def judged(reference, windows, edges):
    """`compare` of each window with the reference, as one table of columns."""
    column, center = baseline(reference, edges)
    parts = [binned(window, edges, center) for window in windows]
    baselines = Baselines.of([column])
    baselines = Baselines(
        *(np.repeat(part, len(windows), axis=0) for part in baselines[:-1]), baselines.limits
    )
    return compare(
        baselines,
        np.array([part[0] for part in parts]),
        np.array([part[1] for part in parts]),
        np.array([part[2].sum() for part in parts]),
        np.zeros(len(windows), np.int64),
        ordered=True,
    )


@pytest.mark.parametrize(("kind", "bins", "rows"), [("norm", 10, 300), ("lognorm", 20, 1000)])
def test_without_drift_p_values_are_uniform_and_null_quantiles_are_exceeded_once_in_twenty(kind, bins, rows):
    """Fresh reference and window each time, so that the reference's own sampling error is in it.

    1000 pairs: the standard error of a share of 5 % is 0.7 %, and four of them are allowed.
    """
    rng = np.random.default_rng(5)
    law = scipy.stats.norm() if kind == "norm" else scipy.stats.lognorm(1)
    edges = law.ppf(np.arange(1, bins) / bins)
    below, above = [], []
    for _ in range(100):
        reference = law.rvs(5000, random_state=rng)
        found = judged(reference, [law.rvs(rows, random_state=rng) for _ in range(10)], edges)
        below.append(found.p_values <= 0.05)
        above.append(np.abs(found.values) > found.null_quantiles)
    rejected, exceeded = (np.concatenate(part).mean(axis=0) for part in (below, above))
    for name, place in PLACE.items():
        # A log-normal's kurtosis is 111, and a sample's far from it: its variance has no usable null.
        if name != "variance_shift" or kind == "norm":
            assert 0.02 < rejected[place] < 0.08, name
            assert 0.02 < exceeded[place] < 0.08, name


def test_statistics_are_those_of_distances_and_of_numpy():
    rng = np.random.default_rng(6)
    reference, window = rng.normal(3, 2, 4000), rng.normal(3.5, 3, 500)
    edges = np.quantile(reference, np.arange(1, 20) / 20)
    found = judged(reference, [window], edges)
    values = dict(zip(STATISTICS, found.values[0], strict=True))
    counts = [binned(side, edges, reference.mean())[0] for side in (reference, window)]
    for name in ("psi", "js", "hellinger", "total_variation", "l_infinity", "ks", "cramer_von_mises"):
        assert values[name] == getattr(distances, name)(*counts)
    assert values["anderson_darling"] == distances.anderson_darling(*counts)
    assert (values["chi2"], values["g"]) == (distances.chi_square(*counts)[0], distances.g_test(*counts))
    exact = scipy.stats.wasserstein_distance(reference, window)
    assert values["wasserstein"] == pytest.approx(exact, rel=0.03)  # values moved to their bins' means
    assert values["wasserstein_normed"] == pytest.approx(values["wasserstein"] / reference.std())
    shift = (window.mean() - reference.mean()) / reference.std()
    assert values["mean_shift"] == pytest.approx(shift)
    assert values["variance_shift"] == pytest.approx(math.log(window.std() / reference.std()))
    p_values = dict(zip(STATISTICS, found.p_values[0], strict=True))
    assert p_values["mean_shift"] == pytest.approx(
        2 * scipy.stats.norm.sf(abs(shift) / math.sqrt(1 / 4000 + 1 / 500)), rel=1e-9
    )
    assert max(p_values.values()) < 0.001


def test_the_gamma_nulls_are_those_of_scipys_tests_for_many_bins():
    """With fine bins of equal mass the two are the distributions of Anderson and Darling's tables."""
    shares = np.full(400, 1 / 400)
    cvm, ad = nulls.cramer_von_mises_null(shares), nulls.anderson_darling_null(shares)
    for tail, cvm_value, ad_value in ((0.10, 0.347, 1.933), (0.05, 0.461, 2.492), (0.01, 0.743, 3.857)):
        assert nulls.squared_p_value(cvm_value, *cvm[:3]) == pytest.approx(tail, rel=0.04)
        assert nulls.squared_p_value(ad_value, *ad[:3]) == pytest.approx(tail, rel=0.06)
    assert cvm.limit == pytest.approx(0.461, rel=0.02)
    assert ad.limit == pytest.approx(2.492, rel=0.03)


def test_the_simulated_nulls_have_kolmogorovs_quantiles_for_many_bins():
    table = nulls.simulated(np.full(400, 1 / 400), np.ones(399), np.zeros(400))
    for tail, wanted in ((0.10, 1.224), (0.05, 1.358), (0.01, 1.628)):
        # On 400 bins the largest gap is a little less than on a line; 4096 draws know it to 1 or 2 %.
        found = nulls.simulated_quantile(tail, table[nulls.KS], nulls.TAILS)
        assert found == pytest.approx(wanted, rel=0.04)
        assert nulls.simulated_p_value(found, table[nulls.KS], nulls.TAILS) == pytest.approx(tail, rel=1e-6)
    assert nulls.simulated_p_value(1e9, table[nulls.KS], nulls.TAILS) == 1 / nulls.DRAWS
    assert nulls.simulated_p_value(0.0, table[nulls.KS], nulls.TAILS) == 1.0


sides = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=1, max_size=12)


@settings(max_examples=60)
@given(st.lists(sides, min_size=1, max_size=4))
def test_categories_have_what_needs_no_order_and_columns_without_rows_have_nothing(columns):
    most = max(map(len, columns))
    counts = np.zeros((len(columns), most), np.int64)
    none = np.empty(0)
    for row, column in enumerate(columns):
        counts[row, : len(column)] = [pair[1] for pair in column]
    reference = [np.array([pair[0] for pair in column], np.int64) for column in columns]
    baselines = Baselines.of([Baseline(one, none, none, 0.0, 0) for one in reference])
    rows = len(columns)
    found = compare(
        baselines,
        counts,
        np.zeros_like(counts, float),
        np.zeros(rows),
        np.zeros(rows, np.int64),
        ordered=False,
    )
    for row, one in enumerate(reference):
        window = counts[row, : len(one)]
        assert np.isnan(found.values[row, ORDERED:]).all()
        if one.sum() == 0 or window.sum() == 0:
            assert np.isnan(found.values[row]).all()
            continue
        assert found.values[row, PLACE["psi"]] == distances.psi(one, window)
        p_values = found.p_values[row, :ORDERED]
        assert ((p_values >= 0) & (p_values <= 1) | np.isnan(p_values)).all()


def test_infinite_values_have_no_mean_and_a_constant_has_no_deviation():
    edges = np.array([0.0, 1.0])
    column, center = baseline(np.tile([-1.0, 0.5, 2.0], 100), edges)
    window = binned(np.tile([-1.0, 0.5, 2.0], 30), edges, center)
    infinite = np.ones(1, np.int64)
    found = compare(
        Baselines.of([column]), window[0][None], window[1][None], np.ones(1), infinite, ordered=True
    )
    known = dict(zip(STATISTICS, found.values[0], strict=True))
    assert known["ks"] == 0
    assert all(map(math.isnan, (known["wasserstein"], known["mean_shift"], known["variance_shift"])))

    constant, center = baseline(np.full(300, 0.5), edges)
    window = binned(np.full(50, 0.5), edges, center)
    found = compare(
        Baselines.of([constant]), window[0][None], window[1][None], np.zeros(1), 0 * infinite, ordered=True
    )
    known = dict(zip(STATISTICS, found.values[0], strict=True))
    assert known["psi"] == known["wasserstein"] == 0
    assert math.isnan(known["mean_shift"])

"""Embeddings: exact kernels and numpy as oracles, and nulls by simulation."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import scipy.stats

from tidegauge.stats.embedding import (
    DRIFTED_COMPONENTS,
    MEAN_COSINE,
    MEAN_EUCLIDEAN,
    MMD,
    compare,
    frequencies,
    summarise,
)
from tidegauge.stats.fourier import FREQUENCIES

CENTRES = np.random.default_rng(7).normal(size=(10, 64))


def clusters(rows, width, random):
    return (
        CENTRES[random.integers(0, 10, rows), :width] + 0.5 * random.normal(size=(rows, width)) + 1
    ).astype(np.float32)


def heavy(rows, width, random):
    return (random.standard_t(5, size=(rows, width)) / np.arange(1, width + 1) + 3).astype(np.float32)


def judged(reference, window, significance=0.01, threshold=0.1):
    width = window.shape[1]
    moments, waves = np.zeros((2, width)), np.zeros((2, FREQUENCIES))
    center = reference.mean.astype(np.float32)
    rows = frequencies(width).fold(np.ascontiguousarray(window), center, reference.bandwidth, moments, waves)
    return compare(reference, rows, moments, waves, significance, threshold)


def exact_mmd(a, b, bandwidth):
    """The unbiased MMD^2 with the Gaussian kernel itself (Gretton et al. 2012, lemma 6)."""

    def mean(x, y, same):
        squared = ((x[:, None] - y[None]) ** 2).sum(axis=2)
        k = np.exp(-squared / (2 * bandwidth**2))
        return (k.sum() - len(x)) / (len(x) * (len(x) - 1)) if same else k.mean()

    return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)


@pytest.mark.parametrize("shift", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("width", [3, 16, 64])
def test_mmd_is_the_exact_one_within_the_error_of_the_features(shift, width):
    random = np.random.default_rng(width)
    a, b = clusters(600, width, random), clusters(500, width, random) + np.float32(shift)
    reference = summarise(a)
    found = judged(reference, b).values[MMD]
    exact = math.sqrt(exact_mmd(a.astype(float), b.astype(float), reference.bandwidth))
    assert found == pytest.approx(exact, rel=0.12, abs=0.01)


def test_the_bandwidth_is_the_median_heuristics():
    sample = clusters(800, 16, np.random.default_rng(1))
    gaps = scipy.spatial.distance.pdist(sample.astype(float), "sqeuclidean")
    assert summarise(sample).bandwidth == pytest.approx(math.sqrt(np.median(gaps) / 2), rel=1e-6)


def test_distances_of_means_are_numpys():
    random = np.random.default_rng(2)
    a, b = clusters(700, 20, random), heavy(400, 20, random)
    found = judged(summarise(a), b).values
    x, y = a.mean(axis=0, dtype=float), b.mean(axis=0, dtype=float)
    assert found[MEAN_EUCLIDEAN] == pytest.approx(np.linalg.norm(x - y), rel=1e-6)
    assert found[MEAN_COSINE] == pytest.approx(scipy.spatial.distance.cosine(x, y), rel=1e-5)


@pytest.mark.parametrize(
    ("draw", "width", "rows"), [(clusters, 8, 200), (clusters, 64, 500), (heavy, 32, 300)]
)
def test_p_values_are_uniform_without_drift(draw, width, rows):
    random = np.random.default_rng(width)
    found = []
    for _ in range(15):  # references as well as windows: a reference's own error is part of the null
        reference = summarise(draw(600, width, random))
        found += [judged(reference, draw(rows, width, random)) for _ in range(40)]
    for statistic in (MMD, MEAN_EUCLIDEAN, MEAN_COSINE):
        p_values = np.array([one.p_values[statistic] for one in found])
        above = np.array([one.values[statistic] > one.null_quantiles[statistic] for one in found])
        # 40 windows share a reference, so the shares vary more than binomially: 0.05 +- 0.03 is 2 errors.
        assert abs(np.mean(p_values < 0.05) - 0.05) < 0.03
        assert abs(np.mean(p_values < 0.5) - 0.5) < 0.12
        assert np.mean(above) == pytest.approx(np.mean(p_values < 0.05), abs=0.005)
    assert np.mean([one.values[DRIFTED_COMPONENTS] for one in found]) < 0.001


def test_a_small_shift_of_all_components_is_found():
    random = np.random.default_rng(3)
    reference = summarise(clusters(1_000, 64, random))
    found = judged(reference, clusters(1_000, 64, random) + np.float32(0.15))
    assert found.p_values[MMD] < 1e-3
    assert found.values[MMD] > found.null_quantiles[MMD]


def test_a_change_of_shape_is_found_though_no_mean_moves():
    random = np.random.default_rng(4)
    reference = summarise(random.normal(size=(1_000, 16)).astype(np.float32))
    found = judged(reference, (1.3 * random.normal(size=(1_000, 16))).astype(np.float32))
    assert found.p_values[MMD] < 1e-6
    assert found.p_values[MEAN_EUCLIDEAN] > 1e-3


def test_a_mean_without_a_direction_has_no_cosine():
    random = np.random.default_rng(5)
    reference = summarise(random.normal(size=(600, 16)).astype(np.float32))
    found = judged(reference, random.normal(size=(300, 16)).astype(np.float32))
    assert math.isnan(found.values[MEAN_COSINE])
    assert math.isnan(found.p_values[MEAN_COSINE])


def test_a_constant_that_stays_is_no_drift_and_one_that_changes_is():
    reference = summarise(np.ones((300, 4), np.float32))
    same = judged(reference, np.ones((300, 4), np.float32))
    other = judged(reference, np.full((300, 4), 2, np.float32))
    assert same.values[MMD] == 0
    assert same.p_values[MMD] == 1
    assert other.values[MMD] > 0.5
    assert other.p_values[MMD] == 0
    assert other.values[DRIFTED_COMPONENTS] == 1
    assert same.values[DRIFTED_COMPONENTS] == 0


def test_wide_vectors_are_summarised_in_bounded_memory():
    sample = np.random.default_rng(7).normal(size=(2_048, 8_192)).astype(np.float32)
    tracemalloc.start()
    try:
        reference = summarise(sample)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reference.rows == 512
    assert most < 256 * 2**20


def test_powers_of_a_spectrum_are_told_without_bias():
    """A sample of 150 rows in 100 dimensions: its own tr C^2 would be three times too large."""
    random = np.random.default_rng(6)
    spread = np.linspace(0.5, 1.5, 100)
    wanted = [(spread ** (2 * power)).sum() for power in (1, 2, 3)]
    found = np.mean(
        [
            summarise((random.normal(size=(150, 100)) * spread).astype(np.float32)).powers[MEAN_EUCLIDEAN]
            for _ in range(12)
        ],
        axis=0,
    )
    assert found == pytest.approx(wanted, rel=0.1)

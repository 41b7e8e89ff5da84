"""Random Fourier features against the kernel that they stand for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegauge.stats.fourier import FREQUENCIES, LANES, Frequencies


def kernel(a, b, bandwidth):
    return np.exp(-((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2) / (2 * bandwidth**2))


def rows_of(count, width, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def mapped(frequencies, rows, bandwidth):
    return frequencies.map(rows, np.zeros(rows.shape[1], np.float32), bandwidth)


@pytest.mark.parametrize("width", [1, 2, 7, 64, 100, 300])
def test_inner_products_are_the_kernel_within_the_stated_error(width):
    rows = rows_of(120, width)
    bandwidth = math.sqrt(width)
    exact = kernel(rows, rows, bandwidth)
    gaps = []
    for seed in range(4):
        z = mapped(Frequencies(width, seed=seed), rows, bandwidth)
        assert (z * z).sum(axis=1) == pytest.approx(np.ones(120), abs=1e-5)
        gaps.append(z @ z.T - exact)
    assert np.sqrt(np.mean(np.square(gaps))) < 1 / math.sqrt(2 * FREQUENCIES)
    # No bias: over many frequencies the error goes on to shrink.
    many = mapped(Frequencies(width, 64 * FREQUENCIES), rows, bandwidth)
    assert np.abs(many @ many.T - exact).mean() < 0.01


def test_frequencies_are_normal_with_the_variance_of_the_kernel():
    scipy_stats = pytest.importorskip("scipy.stats")
    # A phase of a unit vector is a frequency: read off small phases, where the sine is the angle.
    width, step = 96, 1e-3
    z = mapped(Frequencies(width, 512), (np.eye(width) * step).astype(np.float32), 2.0)
    sines = z[:, 512:] * math.sqrt(512) / step
    assert scipy_stats.kstest(sines.ravel() * 2.0, "norm").statistic < 0.02


def naive(frequencies, rows, center, bandwidth):
    """The sums by matrices: the transform of the unit vectors gives the frequencies."""
    size = frequencies.padded
    hadamard = np.array([[(-1) ** (i & j).bit_count() for j in range(size)] for i in range(size)]) * 1.0
    whole = []
    for signs in frequencies.signs.astype(float):
        matrix = np.eye(size)
        for one in signs:
            matrix = hadamard @ (one[:, None] * matrix)
        whole.append(matrix / size)
    matrix = np.concatenate(whole)[: frequencies.count, : rows.shape[1]]
    good = rows[np.isfinite(rows).all(axis=1)].astype(float)
    gaps = good - center
    phases = gaps @ matrix.T / bandwidth
    return (
        len(good),
        np.array([gaps.sum(0), (gaps**2).sum(0)]),
        np.array([np.cos(phases), np.sin(phases)]).sum(1),
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 3 * LANES),
    st.integers(1, 70),
    st.integers(1, 150),
    st.sets(st.integers(0, 3 * LANES)),
    st.sampled_from([np.nan, np.inf, -np.inf]),
)
def test_sums_are_those_of_matrices_and_rows_that_are_not_finite_are_left_out(count, width, many, bad, value):
    frequencies = Frequencies(width, many, seed=3)
    rows = rows_of(count, width, seed=count + width)
    for place in bad:
        if place < count:
            rows[place, place % width] = value
    center = np.full(width, 0.25, np.float32)
    moments, waves = np.zeros((2, width)), np.zeros((2, many))
    folded = frequencies.fold(rows, center, 1.5, moments, waves)
    wanted = naive(frequencies, rows, center, 1.5)
    assert folded == wanted[0]
    assert moments == pytest.approx(wanted[1], rel=1e-9, abs=1e-9)
    assert waves == pytest.approx(wanted[2], abs=2e-4)


def test_huge_values_leave_sums_finite():
    rows = np.full((20, 5), 3e38, np.float32)
    moments, waves = np.zeros((2, 5)), np.zeros((2, FREQUENCIES))
    assert Frequencies(5).fold(rows, np.zeros(5, np.float32), 1e-3, moments, waves) == 20
    assert np.isfinite(moments).all()
    assert np.abs(waves).max() <= 20.01


def test_signs_never_change():
    """References made by one version are read by the next: the frequencies are part of the format."""
    signs = Frequencies(5, 64, seed=5).signs
    assert signs.shape == (1, 3, 64)
    packed = np.packbits(signs.ravel() > 0)[:8].tobytes().hex()
    assert packed == "ebad496f429827c8"

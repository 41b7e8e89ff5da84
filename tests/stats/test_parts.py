"""The parts of the PSI add up to it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegauge.stats.distances import psi
from tidegauge.stats.parts import psi_parts

counts = st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1, max_size=40)


@given(counts)
def test_parts_are_not_negative_and_add_up_to_the_psi(pairs):
    reference, window = (np.array(side, np.int64) for side in zip(*pairs, strict=True))
    if not reference.sum() or not window.sum():
        return
    parts = psi_parts(reference.astype(np.float64), window.astype(np.float64))
    assert (parts >= 0).all()
    assert parts.sum() == pytest.approx(psi(reference, window), rel=1e-9, abs=1e-12)
    assert (parts[(reference == 0) & (window == 0)] == 0).all()


def test_the_bin_that_moved_has_the_largest_part():
    parts = psi_parts(np.array([100.0, 100.0, 100.0, 0.0]), np.array([100.0, 100.0, 300.0, 0.0]))
    assert parts.argmax() == 2
    assert parts[3] == 0

"""PSI of many windows at once, beside that of one after the other."""

from __future__ import annotations

import numpy as np

from tidegauge.stats.comparison import PSI, Baseline, Baselines, compare
from tidegauge.stats.screen import screen


def test_it_is_what_compare_says_of_each_window():
    random = np.random.default_rng(3)
    sizes = (20, 3, 1, 7)
    columns = [Baseline(random.integers(0, 400, size), np.empty(0), np.empty(0), 0.0, 0) for size in sizes]
    columns.append(Baseline(np.zeros(4, np.int64), np.empty(0), np.empty(0), 0.0, 0))
    baselines = Baselines.of(columns)
    windows = random.integers(0, 30, (6, len(columns), 20))
    for column, size in enumerate((*sizes, 4)):
        windows[:, column, size:] = 0
    windows[2, 0, 5:] = 0
    windows[3, 1] = 0
    found = screen(baselines, windows)
    none = np.zeros(len(columns))
    for place, window in enumerate(windows):
        sums = np.zeros(window.shape)
        wanted = compare(baselines, window, sums, none, none.astype(np.int64), ordered=False)
        for mine, its in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(mine[place], its[:, PSI])
    np.testing.assert_array_equal(np.argwhere(np.isnan(found.scores[:, :4])), [[3, 1]])
    assert np.isnan(found.scores[:, 4]).all()

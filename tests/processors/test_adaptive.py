"""Thresholds made of a column's own scores."""

from __future__ import annotations

import numpy as np
import pytest

from tidegauge.config import Adaptive
from tidegauge.config import Drift as Settings
from tidegauge.processors.adaptive import Scores
from tidegauge.units import Duration

WINDOW_NS = 3_600 * 10**9
SETTINGS = Settings(adaptive=Adaptive(use="show", quantile=0.9, period=Duration("4d")))


def fed(scores, count, seed=0, columns=3):
    """What `count` windows add: float64[count, columns]."""
    values = np.random.default_rng(seed).random((count, columns))
    for number, row in enumerate(values):
        for minute in (0, 5, 30):  # several looks at a window are one score
            scores.look(number * WINDOW_NS + minute * 60 * 10**9, row, np.ones(columns, bool))
    return values


def test_a_tenth_of_the_earlier_scores_lie_above_the_threshold():
    scores = Scores(3, SETTINGS)
    values = fed(scores, 90)
    earlier = values[:-1]
    assert np.array_equal(
        scores.usual, np.quantile(earlier.astype(np.float32), 0.9, axis=0, method="inverted_cdf")
    )
    assert (earlier > scores.usual).mean(axis=0) == pytest.approx(0.1, abs=0.02)


def test_it_is_of_the_latest_period_alone():
    scores = Scores(3, SETTINGS)
    values = fed(scores, 300)
    assert np.array_equal(
        scores.usual, np.quantile(values[-97:-1].astype(np.float32), 0.9, axis=0, method="inverted_cdf")
    )


def test_too_few_scores_give_none():
    scores = Scores(3, SETTINGS)
    fed(scores, Scores.LEAST)
    assert np.isnan(scores.usual).all()  # the last one waits
    fed_later = Scores(2, SETTINGS)
    judged = np.array([True, False])
    for number in range(60):
        fed_later.look(number * WINDOW_NS, np.array([0.5, 0.5]), judged)
    assert np.isnan(fed_later.usual).tolist() == [False, True]


@pytest.mark.parametrize("count", [0, 1, 30, 200])
def test_it_goes_on_after_a_restart(count):
    old, new = Scores(3, SETTINGS), Scores(3, SETTINGS)
    fed(old, count)
    new.restore(old.capture())
    assert np.array_equal(new.usual, old.usual, equal_nan=True)
    for one in (old, new):
        one.look(500 * WINDOW_NS, np.full(3, 2.0), np.ones(3, bool))
        one.look(501 * WINDOW_NS, np.full(3, 3.0), np.ones(3, bool))
    assert np.array_equal(new.usual, old.usual, equal_nan=True)

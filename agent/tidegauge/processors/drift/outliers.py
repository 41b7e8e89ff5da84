"""Outlying rows, by an isolation forest: the extra `outliers`."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

EXPECTED = 0.05
"""Share of the reference's rows that count as outlying: what a window shows without drift."""

_TREES = 100
_SEED = 0


class MissingExtraError(Exception):
    """scikit-learn is not installed."""


class Outlying(NamedTuple):
    """Share of a window's rows that lie apart, and the probability of so large a one without drift."""

    ratio: float
    p_value: float


class Forest:
    """An isolation forest (Liu, Ting & Zhou 2008) of half of a reference's rows.

    The other half sets the score beyond which EXPECTED of rows that the forest has not seen lie.

    Args:
        reference: float32[rows, columns], NaN where a value is missing.

    Raises:
        MissingExtraError: without scikit-learn.
    """

    def __init__(self, reference: npt.NDArray[np.float32]) -> None:
        try:
            # Takes a second and tens of MB: only for who asked for it, and on the thread that trains.
            from sklearn.ensemble import IsolationForest
        except ImportError as error:
            raise MissingExtraError(
                "drift.multivariate.outliers needs scikit-learn: pip install 'tidegauge[outliers]'"
            ) from error
        finite = np.where(np.isfinite(reference), reference, np.nan)
        present = np.isfinite(finite).any(axis=0)
        self._middle = np.zeros(reference.shape[1], np.float32)
        self._middle[present] = np.nanmedian(finite[:, present], axis=0)
        self._forest: Any = IsolationForest(n_estimators=_TREES, random_state=_SEED, n_jobs=1)
        self._forest.fit(self._filled(reference[::2]))
        judged = np.sort(self._scores(reference[1::2]))
        self._judged = len(judged)
        self._outside = max(round(EXPECTED * self._judged), 1)
        self._limit = float(judged[self._outside - 1])

    def judge(self, window: npt.NDArray[np.float32]) -> Outlying:
        """The share of a window's rows, and by the normal law for two shares how unusual it is."""
        outside = int((self._scores(window) <= self._limit).sum())
        share = (outside + self._outside) / (len(window) + self._judged)
        error = math.sqrt(share * (1 - share) * (1 / len(window) + 1 / self._judged))
        z = (outside / len(window) - self._outside / self._judged) / error if error else 0.0
        return Outlying(outside / len(window), math.erfc(z / math.sqrt(2)) / 2)

    def _scores(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        return np.asarray(self._forest.score_samples(self._filled(rows)))

    def _filled(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        # Infinities become the largest float32: as far apart as can be, and yet a number.
        largest = np.finfo(np.float32).max
        clipped = np.clip(rows, -largest, largest)
        return np.asarray(np.where(np.isnan(clipped), self._middle, clipped))

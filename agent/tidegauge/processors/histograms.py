"""Histograms of many series, and the points made of them, anew only where something changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tidegauge.metric import Attributes, Exemplar, ExponentialHistogram
from tidegauge.stats.exponential import empty

CHANGED = np.uint64(2**63)
"""The bit of `changed` that says so; the others are for exemplars."""


def no_exemplars(series: int) -> tuple[Exemplar, ...]:
    """Of a series without exemplars."""
    return ()


class Histograms:
    """`rows`, an array of HISTOGRAM, and `changed`, uint64: what a kernel did to each since `refresh`."""

    def __init__(self) -> None:
        self.rows = empty(0)
        self.changed: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._points: list[ExponentialHistogram | None] = []

    def reserve(self, series: int) -> None:
        """Make room for so many series."""
        more = series - len(self.rows)
        self.rows = np.concatenate([self.rows, empty(more)])
        self.changed = np.concatenate([self.changed, np.zeros(more, np.uint64)])
        self._points += [None] * more

    def refresh(
        self,
        attributes: Callable[[int], Attributes],
        exemplars: Callable[[int], tuple[Exemplar, ...]] = no_exemplars,
    ) -> bool:
        """Make anew the points of series that changed since the last call; whether any did.

        `attributes` tells a series' attributes, which must be the same object every time: exporters
        keep by it what they made of it.
        """
        changed = np.flatnonzero(self.changed)
        for series, row in zip(changed.tolist(), self.rows[changed].tolist(), strict=True):
            point = self._points[series]
            same = attributes(series) if point is None else point.attributes
            self._points[series] = _point(same, row, exemplars(series))
        self.changed[:] = 0
        return len(changed) > 0

    def points(self, places: slice = slice(None)) -> tuple[ExponentialHistogram, ...]:
        """The points of these series that have any, as of the last `refresh`."""
        return tuple(point for point in self._points[places] if point is not None)


def _point(
    attributes: Attributes, row: tuple[Any, ...], exemplars: tuple[Exemplar, ...]
) -> ExponentialHistogram:
    counts, offset, buckets, scale, zero_count, total, least, greatest = row  # as in HISTOGRAM
    inside = tuple(counts[:buckets].tolist())
    return ExponentialHistogram(
        attributes, scale, offset, inside, zero_count, total, least, greatest, exemplars=exemplars
    )

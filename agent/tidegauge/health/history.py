"""The last steps of a model's signals."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tidegauge.health.model import Values


class History:
    """Rings of `steps` values, one for each signal that ever came; NaN where it did not."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._rings: dict[str, npt.NDArray[np.float64]] = {}
        self._next = 0

    def append(self, values: Values) -> None:
        """Take in a step. What is not finite counts as not told."""
        for name in values.keys() - self._rings.keys():
            self._rings[name] = np.full(self._steps, math.nan)
        for name, ring in self._rings.items():
            value = values.get(name, math.nan)
            ring[self._next] = value if math.isfinite(value) else math.nan
        self._next = (self._next + 1) % self._steps

    def series(self, name: str) -> npt.NDArray[np.float64]:
        """All steps, the oldest first: float64[steps]."""
        ring = self._rings.get(name)
        return np.full(self._steps, math.nan) if ring is None else np.roll(ring, -self._next)

    def names(self) -> frozenset[str]:
        """The signals that have come."""
        return frozenset(self._rings)

    def recent(self, name: str, steps: int) -> float:
        """The mean of the values that came in the last steps; NaN where none did."""
        values = self.series(name)[-steps:]
        known = values[~np.isnan(values)]
        return float(known.mean()) if len(known) else math.nan

    def usual(self, name: str, least: int) -> float:
        """The median of what came; NaN where fewer than `least` values did."""
        values = self.series(name)
        known = values[~np.isnan(values)]
        return float(np.median(known)) if len(known) >= least else math.nan

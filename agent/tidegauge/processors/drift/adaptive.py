"""Thresholds that a column's own scores give: what they are usually below."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegauge.config import Drift as Settings


class ScoresState(NamedTuple):
    """Scores as they were at one moment: float32[samples, columns], the last of which is not used yet, and
    the number of the window that it was taken in."""

    scores: npt.NDArray[np.float32]
    number: int | None


class Scores:
    """The scores of one identity's columns, once in each `drift.window`, over `drift.adaptive.period`.

    Windows that follow each other share no rows, so neither do two scores.
    """

    LEAST = 24
    """Scores, for a quantile of them."""

    def __init__(self, columns: int, settings: Settings) -> None:
        self._quantile = settings.adaptive.quantile
        self._width_ns = int(settings.window * 1e9)
        self._most = max(math.ceil(settings.adaptive.period / settings.window), self.LEAST)
        # The latest one shares rows with the window that is judged, and waits.
        self._held: deque[npt.NDArray[np.float32]] = deque(maxlen=self._most + 1)
        self._number: int | None = None
        self.usual = np.full(columns, np.nan)
        """float64[columns]: the quantile of each column's scores, NaN where there are not LEAST of them."""

    def look(self, now_ns: int, scores: npt.NDArray[np.float64], judged: npt.NDArray[np.bool_]) -> None:
        """Take in the scores of the window that ends at `now_ns`, an event time, if they are to be kept."""
        number = now_ns // self._width_ns
        if self._number is not None and number <= self._number:
            return
        self._number = number
        self._work_out()
        self._held.append(np.where(judged, scores, np.nan).astype(np.float32))

    def capture(self) -> ScoresState:
        """All that it holds."""
        columns = len(self.usual)
        return ScoresState(np.array(self._held, np.float32).reshape(-1, columns), self._number)

    def restore(self, state: ScoresState) -> None:
        """Go on from there."""
        self._held.extend(state.scores[:-1])
        self._work_out()
        self._held.extend(state.scores[-1:])
        self._number = state.number

    def _work_out(self) -> None:
        """The least score that a share of `drift.adaptive.quantile` is not above."""
        if not self._held:
            return
        ordered = np.sort(np.array(self._held)[-self._most :], axis=0)  # NaN last
        known = np.isfinite(ordered).sum(axis=0)
        place = np.maximum(np.ceil(self._quantile * known).astype(np.int64) - 1, 0)
        found = np.take_along_axis(ordered, place[None], 0)[0].astype(np.float64)
        self.usual = np.where(known >= self.LEAST, found, np.nan)

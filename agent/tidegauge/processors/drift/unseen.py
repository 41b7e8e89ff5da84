"""Which categories of no reference are the most frequent, in bounded memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tidegauge.heavy_hitters import HeavyHitters, Ranked, Summary
from tidegauge.wire import met

Texts = Any  # pa.Array of string; the stubs make it generic in a type that is not known here

CAPACITY = 32
"""Categories counted per column and part: each with more than a 33rd of the part's unseen rows is there."""

LONGEST = met.LONGEST
"""Characters that are kept of a category."""

PARTS = 4
"""Parts of a window; it and the part that begins are counted."""


class Unknown(NamedTuple):
    """The most frequent texts of a batch's column that are none of the known ones, string[n], and their rows,
    int64[n]: at most `taken` less than they have. `rows` are those of all such texts."""

    texts: Texts
    counts: npt.NDArray[np.int64]
    rows: int
    taken: int


class UnseenState(NamedTuple):
    """Unseen categories as they were at one moment: how long a part is, nanoseconds, and the summary of
    each part, by its number, and column."""

    width_ns: int
    summaries: dict[tuple[int, int], Summary]


class Unseen:
    """A summary of unseen categories for each column and each quarter of a window that has any.

    A column takes 5 * CAPACITY texts of LONGEST characters at most, and those that wait to be merged.
    """

    def __init__(self, window_ns: int) -> None:
        self._width = max(window_ns // PARTS, 1)
        self._parts: dict[int, dict[int, HeavyHitters]] = {}

    def update(self, column: int, unknown: Unknown, time_ns: int) -> None:
        """Count what a column has of no reference, as of event time `time_ns`."""
        number = time_ns // self._width
        part = self._parts.get(number)
        if part is None:
            part = self._parts[number] = {}
            for old in [one for one in self._parts if one < number - PARTS]:
                del self._parts[old]
        its = unknown.texts, unknown.counts
        self._summary(part, column).update(*its, rows=unknown.rows, taken=unknown.taken)

    def frequent(self, column: int, time_ns: int) -> Ranked:
        """The most frequent ones of a column in the window that ends at `time_ns`, or up to a quarter longer.

        A count is never more than the rows there were, and less by one in CAPACITY + 1 of the unseen ones at
        most.
        """
        now = time_ns // self._width
        whole = HeavyHitters(CAPACITY, waiting=(PARTS + 1) * CAPACITY)  # merged at once
        for number, part in self._parts.items():
            if now - PARTS <= number <= now and column in part:
                whole.merge(part[column])
        return whole.ranked()

    def capture(self) -> UnseenState:
        """All of it, without a copy."""
        held = {
            (number, column): summary.capture()
            for number, part in self._parts.items()
            for column, summary in part.items()
        }
        return UnseenState(self._width, held)

    def restore(self, state: UnseenState) -> None:
        """Go on from there.

        Raises:
            ValueError: where the window has another length.
        """
        if state.width_ns != self._width:
            raise ValueError("its unseen categories are of a window of another length (drift.window)")
        for (number, column), its in state.summaries.items():
            self._summary(self._parts.setdefault(number, {}), column).restore(its)

    @staticmethod
    def _summary(part: dict[int, HeavyHitters], column: int) -> HeavyHitters:
        summary = part.get(column)
        if summary is None:
            summary = part[column] = HeavyHitters(CAPACITY, waiting=8 * CAPACITY)
        return summary
